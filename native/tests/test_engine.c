/* The engine's contract over real sockets. One thread plays all far ends (engine_world.h); nothing sleeps for order, and what
 * is waited for fails after 30 s. `test_engine N` divides the heavy cases by N, for builds that are slow by nature. */
#define _GNU_SOURCE
#include "engine_cases.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------------------------- life */

static unsigned open_descriptors(void) {
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    CHECK(directory != NULL);
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

static void check_life(void) {
    struct rc_engine *engine = (struct rc_engine *)&slowness; /* anything but NULL */
    uint64_t token;

    rc_test_case = "life";
    CHECK(rc_engine_is_available());
    CHECK_INT(rc_engine_open(&engine, 0, 1, BUFFER), RC_EINVAL);
    CHECK(engine == NULL);
    CHECK_INT(rc_engine_open(&engine, RC_ENGINE_THREADS_MAX + 1, 1, BUFFER), RC_EINVAL);
    CHECK_INT(rc_engine_open(&engine, 1, 0, BUFFER), RC_EINVAL);
    CHECK_INT(rc_engine_open(&engine, 1, RC_POOL_BUFFERS_MAX + 1u, BUFFER), RC_EINVAL);
    CHECK_INT(rc_engine_open(&engine, 1, 1, 0), RC_EINVAL);
    CHECK_INT(rc_engine_open(&engine, 1, 1, RC_POOL_BUFFER_BYTES_MAX + 1u), RC_EINVAL);
    CHECK(engine == NULL);
    rc_engine_free(NULL);

    CHECK_INT(rc_engine_open(&engine, 3, 1, BUFFER), RC_OK); /* each thread has one buffer at least */
    struct pollfd fd = {.fd = rc_engine_fd(engine), .events = POLLIN};
    CHECK_INT(poll(&fd, 1, 0), 0);
    CHECK_INT(rc_engine_completions(engine, &token, 1), 0);
    rc_engine_shut(engine);
    rc_engine_shut(engine);
    CHECK_INT(rc_engine_completions(engine, &token, 1), 0);
    rc_engine_free(engine);

    CHECK_INT(rc_engine_open(&engine, 2, 5, 100000), RC_OK);
    rc_engine_free(engine);
}

/* Sockets that cannot be watched are said to be so; the other jobs go on. */
static void check_refused(void) {
    struct world *world = small_world(2);
    struct joint *bad = &world->joints[0], *good = &world->joints[1];
    char path[] = "/tmp/rc-engine-XXXXXX";

    rc_test_case = "refused";
    for (int leg = 0; leg < 2; leg++) {
        joint_be(bad, WS_SERVER, WS_SERVER);
        joint_wire(bad, BY_UNIX, 0);
        close(bad->job.sockets[leg]);
        bad->job.sockets[leg] = mkstemp(path); /* epoll takes no plain file */
        CHECK(bad->job.sockets[leg] >= 0 && unlink(path) == 0);
        memcpy(path + sizeof path - 7, "XXXXXX", 6);
        joint_submit(world, bad);
        WORLD_UNTIL(world, bad->is_done);
        CHECK_INT(bad->job.end, RC_END_REFUSED);
        CHECK_INT(bad->job.error, EPERM);
        CHECK_INT(bad->peers[1 - leg].got.length, 0);
        for (int far = 0; far < 2; far++)
            close(bad->peers[far].fd);
        free(bad->peers[0].got.data);
        memset(bad, 0, sizeof *bad);
        bad->peers[0].fd = bad->peers[1].fd = -1;
    }
    submit(world, good, RAW, RAW, BY_UNIX, 0);
    peer_say(&good->peers[0], "hello", 5);
    say_close(good, 0);
    say_close(good, 1);
    WORLD_UNTIL(world, good->is_done && good->peers[1].heard_end);
    CHECK_INT(good->job.end, RC_END_CLOSED);
    CHECK_INT(good->peers[1].got.length, 5);
    world_free(world);
}

/* The descriptor is readable for as long as a completion waits, however few are taken at a time. */
static void check_completions(void) {
    enum {
        COUNT = 20
    };
    struct world *world = small_world(COUNT);
    struct rc_engine_statistics now;
    uint64_t token;
    size_t taken = 0;

    rc_test_case = "completions";
    for (size_t i = 0; i < COUNT; i++) {
        submit(world, &world->joints[i], RAW, WS_CLIENT, BY_UNIX, 0);
        rc_engine_cancel(world->engine, &world->joints[i].job);
    }
    struct pollfd fd = {.fd = rc_engine_fd(world->engine), .events = POLLIN};
    CHECK_INT(poll(&fd, 1, 30000), 1);
    while (taken < COUNT) {
        CHECK_INT(poll(&fd, 1, 30000), 1);
        if (rc_engine_completions(world->engine, &token, 1) == 0)
            continue;
        struct joint *joint = &world->joints[token];
        CHECK(token < COUNT && !joint->is_done);
        joint->is_done = true;
        check_end(joint, RC_END_CANCELLED, RC_BY_RELAY);
        close(joint->job.sockets[0]);
        close(joint->job.sockets[1]);
        taken++;
    }
    CHECK_INT(rc_engine_completions(world->engine, &token, 1), 0);
    CHECK_INT(poll(&fd, 1, 0), 0);
    rc_engine_statistics(world->engine, &now);
    CHECK(now.jobs == 0 && now.completed == COUNT);
    world_free(world);
}

int main(int argc, char **argv) {
    unsigned descriptors = open_descriptors();

    slowness = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    if (slowness == 0)
        slowness = 1;
    signal(SIGPIPE, SIG_DFL); /* the engine must not raise it */
    check_life();
    check_refused();
    check_completions();
    check_bytes();
    check_ends();
    check_crowds();
    CHECK_INT(open_descriptors(), descriptors);
    return rc_test_done("test_engine");
}
