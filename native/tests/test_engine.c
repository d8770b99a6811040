/* The engine's contract over real sockets. One thread plays all far ends (engine_world.h); nothing sleeps for order, and what
 * is waited for fails after 30 s. `test_engine N` divides the heavy cases by N, for builds that are slow by nature. */
#define _GNU_SOURCE
#include "engine_world.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    WS_SERVER = RC_LEG_WS_SERVER,
    WS_CLIENT = RC_LEG_WS_CLIENT,
    RAW = RC_LEG_RAW,
    BUFFER = 65536,
    SMALL = 16384 /* for a socket */
};

static unsigned slowness = 1;
static uint64_t dice = 0x9E3779B97F4A7C15u;

static uint64_t roll(uint64_t below) {
    return rc_test_random(&dice) % below;
}

static struct world *small_world(size_t count) {
    return world_new(1, 16, BUFFER, count);
}

static const uint8_t *filler(void) {
    static uint8_t bytes[1 << 22];

    if (bytes[1] == 0)
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)(i * 13 + i / 253);
    return bytes;
}

/* What a peer that takes leave sends. */
static void say_close(struct joint *joint, unsigned leg) {
    if (joint->kinds[leg] != RAW)
        joint_say(joint, leg, RC_OP_CLOSE, true, "\x03\xe8", 2);
    else
        joint->peers[leg].ends = true;
}

/* The job's end, and that both peers may see it. */
static void check_end(const struct joint *joint, unsigned end, unsigned by) {
    CHECK(joint->is_done);
    CHECK_INT(joint->job.end, end);
    CHECK_INT(joint->job.by, by);
}

static void submit(struct world *world, struct joint *joint, unsigned sender, unsigned listener,
                   enum transport transport, int buffer_bytes) {
    joint_be(joint, sender, listener);
    joint_wire(joint, transport, buffer_bytes);
    joint_submit(world, joint);
}

static struct rc_engine_statistics statistics_of(const struct world *world) {
    struct rc_engine_statistics now;

    rc_engine_statistics(world->engine, &now);
    return now;
}

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
    struct rc_engine *engine = (struct rc_engine *)&dice;
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

/* ---------------------------------------------------------------------------------------------------------------- bytes */

/* 0 to 3 messages of each size both ways, all kinds of legs. */
static void check_messages(enum transport transport) {
    static const size_t sizes[] = {0, 1, 125, 126, 4000, 65535, 65536, 65537, 300000, 3000000};
    enum {
        COUNT = 9 * sizeof sizes / sizeof *sizes
    };
    struct world *world = world_new(2, 8, BUFFER, COUNT);

    rc_test_case = "messages";
    for (size_t i = 0; i < COUNT; i++) {
        struct joint *joint = &world->joints[i];
        size_t size = sizes[i / 9];
        joint_wire(joint, transport, 0);
        for (unsigned leg = 0; leg < 2; leg++) {
            for (size_t n = 0; n < 2 + leg; n++)
                joint_say(joint, leg, n & 1 ? RC_OP_TEXT : RC_OP_BINARY, true, filler() + n * 7, size);
            say_close(joint, leg);
            joint->peers[leg].is_vocal = true;
            joint->peers[leg].read_most = i % 4 == 3 ? 1000 : 0;
        }
        joint_submit(world, joint);
    }
    WORLD_UNTIL(world, world_is_over(world));
    for (size_t i = 0; i < COUNT; i++) {
        struct joint *joint = &world->joints[i];
        size_t size = sizes[i / 9];
        for (unsigned leg = 0; leg < 2; leg++) {
            struct bytes all = {0};
            CHECK_INT(joint_heard_bytes(joint, leg, &all), size * (3 - leg));
            for (size_t n = 0; n < 3 - leg; n++)
                CHECK_BYTES(all.data + n * size, filler() + n * 7, size);
            free(all.data);
            CHECK(joint_heard_close(joint, leg, 1000));
            CHECK(joint->peers[leg].heard_end && !joint->peers[leg].heard_reset);
        }
        CHECK_INT(joint->job.end, RC_END_CLOSED);
        CHECK(joint->job.by != RC_BY_RELAY);
    }
    world_free(world);
}

/* The same stream in pieces of a few bytes, through sockets that hold little. */
static void check_pieces(void) {
    enum {
        COUNT = 18
    };
    struct world *world = small_world(COUNT);

    rc_test_case = "pieces";
    for (size_t i = 0; i < COUNT; i++) {
        struct joint *joint = &world->joints[i];
        joint_wire(joint, i < 9 ? BY_TCP : BY_UNIX, SMALL);
        for (unsigned leg = 0; leg < 2; leg++) {
            joint->peers[leg].send_most = 1 + i % 5;
            joint->peers[leg].read_most = 1 + i % 7;
            for (size_t n = 0; n < 20; n++)
                joint_say(joint, leg, n % 4 == 0 ? RC_OP_BINARY : RC_OP_CONTINUATION, n % 4 == 3, filler() + n, n * 6);
            say_close(joint, leg);
            joint->peers[leg].is_vocal = true;
        }
        joint_submit(world, joint);
    }
    WORLD_UNTIL(world, world_is_over(world));
    for (size_t i = 0; i < COUNT; i++) {
        for (unsigned leg = 0; leg < 2; leg++) {
            CHECK_INT(joint_heard_bytes(&world->joints[i], leg, NULL), 20 * 19 / 2 * 6);
            CHECK(joint_heard_close(&world->joints[i], leg, 1000));
        }
        CHECK_INT(world->joints[i].job.end, RC_END_CLOSED);
    }
    world_free(world);
}

/* Bytes that were read before go in first, wherever the cut is, and whatever is in them. */
static void check_early(void) {
    static const size_t parts[] = {1, 2, 7, 100, 65536, 200000, SIZE_MAX};
    enum {
        COUNT = 9 * sizeof parts / sizeof *parts
    };
    struct world *world = world_new(1, 2, 4096, COUNT);
    struct bytes early[COUNT][2];

    rc_test_case = "early";
    memset(early, 0, sizeof early);
    for (size_t i = 0; i < COUNT; i++) {
        struct joint *joint = &world->joints[i];
        joint_wire(joint, BY_UNIX, 0);
        for (unsigned leg = 0; leg < 2; leg++) {
            struct bytes *to_send = &joint->peers[leg].to_send;
            joint_say(joint, leg, RC_OP_BINARY, true, "first", 5);
            if (joint->kinds[leg] != RAW)
                joint_say(joint, leg, RC_OP_PING, true, "ping", 4);
            joint_say(joint, leg, RC_OP_BINARY, true, filler(), 210000);
            say_close(joint, leg);
            joint->peers[leg].is_vocal = true;
            size_t part = parts[i / 9] < to_send->length ? parts[i / 9] : to_send->length;
            bytes_append(&early[i][leg], to_send->data, part);
            joint->peers[leg].sent = part;
            joint->job.lanes[leg].early = early[i][leg].data;
            joint->job.lanes[leg].early_bytes = (uint32_t)part;
        }
        joint_submit(world, joint);
    }
    WORLD_UNTIL(world, world_is_over(world));
    for (size_t i = 0; i < COUNT; i++) {
        struct joint *joint = &world->joints[i];
        for (unsigned leg = 0; leg < 2; leg++) {
            struct bytes all = {0};
            struct rc_direction_counters counters;
            uint16_t close_code;
            CHECK_INT(joint_heard_bytes(joint, leg, &all), 210005);
            CHECK_BYTES(all.data, "first", 5);
            CHECK_BYTES(all.data + 5, filler(), 210000);
            CHECK(joint_heard_close(joint, leg, 1000));
            free(all.data);
            rc_session_counters(&joint->session, leg, &counters, &close_code);
            CHECK_INT(counters.bytes_in, joint->peers[leg].to_send.length);
            free(early[i][leg].data);
        }
        CHECK_INT(joint->job.end, RC_END_CLOSED);
    }
    world_free(world);
}

static void check_early_error(void) {
    struct world *world = small_world(1);
    struct joint *joint = &world->joints[0];
    static const uint8_t reserved_bit[] = {0xC1, 0x80, 0, 0, 0, 0, 'x'};

    rc_test_case = "early error";
    joint_be(joint, WS_SERVER, WS_CLIENT);
    joint_wire(joint, BY_TCP, 0);
    joint->job.lanes[0].early = reserved_bit;
    joint->job.lanes[0].early_bytes = sizeof reserved_bit;
    joint_submit(world, joint);
    WORLD_UNTIL(world, joint->peers[0].heard_end && joint->peers[1].heard_end);
    check_end(joint, RC_END_PROTOCOL_ERROR, RC_BY_SENDER);
    CHECK(joint_heard_close(joint, 0, 1002));
    CHECK_INT(joint->peers[1].got.length, 0);
    world_free(world);
}

/* Each Ping is answered by the relay, also beside data of the other direction. */
static void check_pings(void) {
    struct world *world = small_world(1);
    struct joint *joint = &world->joints[0];
    size_t at = 0;
    struct heard heard;

    rc_test_case = "pings";
    submit(world, joint, WS_SERVER, WS_CLIENT, BY_TCP, 0);
    for (int i = 0; i < 10; i++)
        joint_say(joint, 0, RC_OP_PING, true, &"0123456789"[i], 1);
    joint_say(joint, 1, RC_OP_PING, true, "listener", 8);
    WORLD_UNTIL(world, joint->peers[0].got.length >= 30 && joint->peers[1].got.length >= 14);
    for (int i = 0; i < 10; i++) {
        CHECK(joint_hear(joint, 0, &at, &heard));
        CHECK(heard.opcode == RC_OP_PONG && heard.length == 1 && heard.data[0] == (uint8_t)('0' + i));
    }
    at = 0;
    CHECK(joint_hear(joint, 1, &at, &heard));
    CHECK(heard.opcode == RC_OP_PONG && heard.length == 8);
    say_close(joint, 0);
    say_close(joint, 1);
    joint->peers[0].is_vocal = joint->peers[1].is_vocal = true;
    WORLD_UNTIL(world, joint->is_done);
    CHECK_INT(joint->job.end, RC_END_CLOSED);
    world_free(world);
}

/* -------------------------------------------------------------------------------------------------------------- stories */

struct player {
    struct world *world;
    struct joint *joint;
    bool is_closed;
};

static void player_send(void *context, unsigned direction, const uint8_t *data, size_t length) {
    struct player *player = context;

    peer_say(&player->joint->peers[direction], data, length);
    if (roll(3) == 0)
        world_glance(player->world);
}

static void player_end(void *context, unsigned direction) {
    struct player *player = context;

    player->joint->peers[direction].ends = true;
    if (roll(3) == 0)
        world_glance(player->world);
}

static void player_close(void *context) {
    struct player *player = context;

    if (!player->joint->is_done)
        CHECK_INT(rc_engine_close(player->world->engine, &player->joint->job, 1001, (const uint8_t *)"going", 5),
                  RC_OK);
}

/* Random scripts, as test_session.c plays them in memory; at the end of each both sources take leave. */
static void check_stories(unsigned threads, uint32_t buffers, enum transport transport, size_t count) {
    struct world *world = world_new(threads, buffers, roll(2) ? 4096 : BUFFER, count);
    struct story_streams *streams = calloc(count, sizeof *streams);
    unsigned ends[RC_END_REFUSED + 1] = {0};

    rc_test_case = "stories";
    CHECK(streams != NULL);
    world_watch(world);
    for (size_t i = 0; i < count; i++) {
        struct joint *joint = &world->joints[i];
        struct player player = {.world = world, .joint = joint};
        const struct story_stage stage = {
            .context = &player, .send = player_send, .end = player_end, .close = player_close};
        bool is_wild = roll(3) == 0; /* arbitrary bytes, ends and closes of the relay in between */
        uint8_t script[64];
        size_t length = 0, most = 4 + roll(40);

        while (length < most) {
            static const uint8_t tame[] = {1, 1, 1, 5, 3, 7};
            uint8_t act = is_wild ? (uint8_t)roll(8) : tame[roll(sizeof tame)];
            script[length++] = (uint8_t)(act | roll(2) << 7);
            if (act == 0) {
                script[length++] = 3;
                for (int n = 0; n < 3; n++)
                    script[length++] = (uint8_t)roll(256);
            } else if (act == 1) {
                script[length++] = (uint8_t)(roll(4) == 0 ? roll(256) : roll(4));
                script[length++] = (uint8_t)(roll(256) | (roll(4) != 0));
            } else if (act == 5 || act == 7) {
                script[length++] = (uint8_t)roll(256);
            }
        }
        memcpy(streams[i].kinds, joint->kinds, 2);
        joint_wire(joint, transport, roll(2) ? SMALL : 0);
        for (int leg = 0; leg < 2; leg++) {
            joint->peers[leg].read_most = roll(3) == 0 ? 1 + roll(5000) : 0;
            joint->peers[leg].send_most = roll(3) == 0 ? 1 + roll(5000) : 0;
        }
        joint_submit(world, joint);
        story_act(script, length, SIZE_MAX, &stage, &streams[i]);
        for (unsigned leg = 0; leg < 2; leg++) {
            const uint8_t leave[] = {(uint8_t)(6 | leg << 7), (uint8_t)(2 | leg << 7)};
            story_act(leave, 2, SIZE_MAX, &stage, &streams[i]);
        }
    }
    WORLD_UNTIL(world, world_is_over(world));

    for (size_t i = 0; i < count; i++) {
        struct joint *joint = &world->joints[i];
        const struct rc_session *session = &joint->session;
        for (unsigned d = 0; d < 2; d++) {
            streams[i].out[d] = joint->peers[1 - d].got;
            CHECK(!joint->peers[d].heard_reset || joint->job.end != RC_END_CLOSED);
        }
        story_compare(session, &streams[i]);
        ends[joint->job.end]++;
        switch (joint->job.end) {
        case RC_END_CLOSED:
            CHECK(rc_session_is_finished(session));
            break;
        case RC_END_ABORTED:
            CHECK(!rc_session_is_finished(session) || joint->peers[0].heard_reset || joint->peers[1].heard_reset);
            break;
        case RC_END_PROTOCOL_ERROR:
            CHECK(session->failure != 0);
            CHECK_INT(joint->job.offender, session->failed_from);
            break;
        case RC_END_RELAY_CLOSED:
            CHECK(streams[i].closed_by_relay);
            break;
        default:
            CHECK_INT(joint->job.end, RC_END_CLOSED);
        }
        for (unsigned d = 0; d < 2; d++)
            free(streams[i].in[d].data);
    }
    CHECK(ends[RC_END_CLOSED] > count / 5 && ends[RC_END_ABORTED] > 0);
    free(streams);
    world_free(world);
}

/* ------------------------------------------------------------------------------------------------------------ half-close */

static void check_half_close(void) {
    enum {
        COUNT = 18
    };
    struct world *world = small_world(COUNT);

    rc_test_case = "half-close";
    for (size_t i = 0; i < COUNT; i++) {
        struct joint *joint = &world->joints[i];
        unsigned first = i >= 9;
        joint_wire(joint, i % 2 ? BY_TCP : BY_UNIX, 0);
        joint_submit(world, joint);
        joint_say(joint, first, RC_OP_BINARY, true, "last words", 10);
        say_close(joint, first);
        WORLD_UNTIL(world, joint_heard_close(joint, 1 - first, 1000));
        CHECK_INT(joint_heard_bytes(joint, 1 - first, NULL), 10);
        CHECK(!joint->peers[first].heard_end);
        joint_say(joint, 1 - first, RC_OP_BINARY, true, filler(), 300000);
        WORLD_UNTIL(world, joint->peers[first].got.length >= 300000);
        CHECK(!joint->is_done);
        say_close(joint, 1 - first);
        WORLD_UNTIL(world, joint_heard_close(joint, first, 1000) && joint->peers[first].heard_end);
        WORLD_UNTIL(world, joint->peers[1 - first].heard_end); /* the relay hangs up first */
        joint->peers[0].ends = joint->peers[1].ends = true;
        WORLD_UNTIL(world, joint->is_done);
        check_end(joint, RC_END_CLOSED, first == 0 ? RC_BY_SENDER : RC_BY_LISTENER);
        CHECK_INT(joint_heard_bytes(joint, first, NULL), 300000);
    }
    world_free(world);
}

/* Peers that stay connected behind both Closes are let go after RC_LINGER_MS. */
static void check_linger(void) {
    struct world *world = small_world(1);
    struct joint *joint = &world->joints[0];

    rc_test_case = "linger";
    submit(world, joint, WS_SERVER, WS_SERVER, BY_TCP, 0);
    say_close(joint, 0);
    say_close(joint, 1);
    WORLD_UNTIL(world, joint->peers[0].heard_end && joint->peers[1].heard_end);
    uint64_t from = rc_test_ms();
    WORLD_UNTIL(world, joint->is_done);
    CHECK(joint->done_ms - joint->submitted_ms >= RC_LINGER_MS && rc_test_ms() - from < 2 * RC_LINGER_MS);
    CHECK_INT(joint->job.end, RC_END_CLOSED);
    world_free(world);
}

/* ----------------------------------------------------------------------------------------------------------- relay closes */

static void close_job(struct world *world, struct joint *joint) {
    CHECK_INT(rc_engine_close(world->engine, &joint->job, 1001, (const uint8_t *)"going away", 10), RC_OK);
}

static void answer_close(struct world *world, struct joint *joint) {
    for (unsigned leg = 0; leg < 2; leg++) {
        WORLD_UNTIL(world, joint_heard_close(joint, leg, 1001));
        say_close(joint, leg);
        joint->peers[leg].is_vocal = true;
    }
    WORLD_UNTIL(world, joint->is_done);
    check_end(joint, RC_END_RELAY_CLOSED, RC_BY_RELAY);
    CHECK(joint->peers[0].heard_end || joint->done_ms - joint->submitted_ms < 20000);
}

static void check_relay_close(void) {
    struct world *world = small_world(9 * 4);

    rc_test_case = "relay closes";
    for (size_t i = 0; i < world->count; i++) {
        struct joint *joint = &world->joints[i];
        joint_wire(joint, i % 2 ? BY_TCP : BY_UNIX, 0);
        switch (i / 9) {
        case 0: /* before the start, by the session itself */
            CHECK_INT(rc_session_close(&joint->session, 1001, NULL, 0), RC_OK);
            joint_submit(world, joint);
            break;
        case 1: /* at once, with early bytes of both */
            joint_submit(world, joint);
            close_job(world, joint);
            close_job(world, joint);
            break;
        case 2: /* idle */
            joint_submit(world, joint);
            world_settle(world);
            CHECK_INT(rc_engine_close(world->engine, &joint->job, 1005, NULL, 0), RC_EINVAL);
            CHECK_INT(rc_engine_close(world->engine, &joint->job, 1001, filler(), 124), RC_EINVAL);
            CHECK_INT(rc_engine_close(world->engine, &joint->job, 1001, (const uint8_t *)"\xff", 1), RC_EINVAL);
            close_job(world, joint);
            break;
        default: /* after traffic */
            joint_submit(world, joint);
            for (unsigned leg = 0; leg < 2; leg++)
                joint_say(joint, leg, RC_OP_BINARY, true, filler(), 100000);
            WORLD_UNTIL(world, joint->peers[0].got.length >= 100000 && joint->peers[1].got.length >= 100000);
            close_job(world, joint);
        }
        answer_close(world, joint);
    }
    world_free(world);
}

/* In the middle of a frame towards the listener, the sender hears of it at once, the listener once the frame is whole. */
static void check_relay_close_mid_frame(void) {
    struct world *world = small_world(1);
    struct joint *joint = &world->joints[0];

    rc_test_case = "relay closes mid-frame";
    submit(world, joint, WS_SERVER, WS_SERVER, BY_TCP, 0);
    joint_say(joint, 0, RC_OP_BINARY, true, filler(), 30000);
    joint_say(joint, 0, RC_OP_BINARY, true, filler(), 1000);
    struct bytes *to_send = &joint->peers[0].to_send;
    size_t all = to_send->length;
    to_send->length = 20000; /* for now */
    WORLD_UNTIL(world, joint->peers[1].got.length > 19000);
    close_job(world, joint);
    WORLD_UNTIL(world, joint_heard_close(joint, 0, 1001));
    CHECK(joint->peers[1].got.length <= 20000);
    to_send->length = all;
    WORLD_UNTIL(world, joint_heard_close(joint, 1, 1001));
    CHECK_INT(joint_heard_bytes(joint, 1, NULL), 30000); /* the frame behind it is dropped */
    answer_close(world, joint);
    world_free(world);
}

/* Fills the way to the peer of `leg`, which does not read. */
static void block(struct world *world, struct joint *joint, unsigned leg, size_t bytes) {
    uint64_t before = statistics_of(world).blocked;

    joint->peers[leg].is_deaf = true;
    joint_say(joint, 1 - leg, RC_OP_BINARY, true, filler(), bytes);
    WORLD_UNTIL(world, statistics_of(world).blocked > before);
    CHECK(joint->peers[1 - leg].sent < joint->peers[1 - leg].to_send.length);
}

static void check_relay_close_blocked(void) {
    struct world *world = small_world(2);
    struct joint *joint = &world->joints[0], *stays = &world->joints[1];

    rc_test_case = "relay closes, one reader blocked";
    submit(world, joint, WS_SERVER, WS_CLIENT, BY_TCP, SMALL);
    block(world, joint, 1, 1 << 20);
    close_job(world, joint);
    WORLD_UNTIL(world, joint_heard_close(joint, 0, 1001));
    CHECK(!joint->is_done);
    joint->peers[1].is_deaf = false;
    WORLD_UNTIL(world, joint_heard_close(joint, 1, 1001));
    answer_close(world, joint);

    rc_test_case = "relay closes, one reader never reads";
    joint_be(stays, WS_SERVER, WS_CLIENT);
    joint_wire(stays, BY_TCP, SMALL);
    stays->job.close_ms = 100;
    joint_submit(world, stays);
    block(world, stays, 1, 1 << 20);
    uint64_t from = rc_test_ms();
    close_job(world, stays);
    WORLD_UNTIL(world, stays->is_done);
    check_end(stays, RC_END_RELAY_CLOSED, RC_BY_RELAY);
    CHECK(stays->done_ms - from >= 99);
    world_free(world);
}

/* -------------------------------------------------------------------------------------------------------- errors and loss */

static void check_protocol_error(enum transport transport) {
    static const struct {
        const char *name;
        unsigned kind;
        const char *bytes;
        size_t length;
        unsigned code;
    } rows[] = {
        {"reserved bit", WS_SERVER, "\xC1\x80\0\0\0\0", 6, 1002},
        {"unmasked", WS_SERVER, "\x81\x01x", 3, 1002},
        {"masked", WS_CLIENT, "\x81\x80\0\0\0\0", 6, 1002},
        {"close reason", WS_CLIENT, "\x88\x03\x03\xe8\xff", 5, 1007},
    };
    enum {
        ROWS = sizeof rows / sizeof *rows
    };
    struct world *world = small_world(ROWS * 6);

    for (size_t i = 0; i < world->count; i++) {
        struct joint *joint = &world->joints[i];
        unsigned offender = i & 1, other = 1 - offender, row = (unsigned)(i / 6);
        rc_test_case = rows[row].name;
        unsigned kinds[2];
        kinds[offender] = rows[row].kind;
        kinds[other] = (unsigned)(i / 2 % 3);
        submit(world, joint, kinds[0], kinds[1], transport, 0);
        joint_say(joint, offender, RC_OP_BINARY, true, "good", 4);
        peer_say(&joint->peers[offender], rows[row].bytes, rows[row].length);
        WORLD_UNTIL(world, joint->peers[0].heard_end && joint->peers[1].heard_end);
        check_end(joint, RC_END_PROTOCOL_ERROR, offender == 0 ? RC_BY_SENDER : RC_BY_LISTENER);
        CHECK_INT(joint->job.offender, offender);
        CHECK(joint_heard_close(joint, offender, rows[row].code));
        CHECK_INT(joint_heard_bytes(joint, other, NULL), 4);
        if (kinds[other] != RAW) /* cut, without Close */
            CHECK_INT(joint->peers[other].got.length, 4 + (kinds[other] == WS_CLIENT ? 6 : 2));
    }
    world_free(world);
}

/* The offender does not read, and its last word cannot get out: it is let go all the same. */
static void check_protocol_error_blocked(void) {
    struct world *world = small_world(1);
    struct joint *joint = &world->joints[0];

    rc_test_case = "offender does not read";
    submit(world, joint, WS_SERVER, WS_SERVER, BY_TCP, SMALL);
    block(world, joint, 0, 1 << 20);
    peer_say(&joint->peers[0], "\x81\x01x", 3);
    WORLD_UNTIL(world, joint->is_done);
    check_end(joint, RC_END_PROTOCOL_ERROR, RC_BY_SENDER);
    world_free(world);
}

static void check_abort(void) {
    struct world *world = small_world(12);
    struct joint *joint = world->joints;

    rc_test_case = "abort by end of stream";
    for (unsigned leg = 0; leg < 2; leg++, joint++) {
        submit(world, joint, WS_SERVER, WS_CLIENT, leg ? BY_TCP : BY_UNIX, 0);
        joint_say(joint, leg, RC_OP_BINARY, true, "half", 4);
        joint->peers[leg].ends = true;
        WORLD_UNTIL(world, joint->peers[1 - leg].heard_end);
        WORLD_UNTIL(world, joint->is_done);
        check_end(joint, RC_END_ABORTED, leg == 0 ? RC_BY_SENDER : RC_BY_LISTENER);
        CHECK_INT(joint_heard_bytes(joint, 1 - leg, NULL), 4);
    }
    rc_test_case = "abort inside a frame";
    for (unsigned leg = 0; leg < 2; leg++, joint++) {
        submit(world, joint, WS_SERVER, WS_CLIENT, leg ? BY_TCP : BY_UNIX, 0);
        joint_say(joint, leg, RC_OP_BINARY, true, "0123456789", 10);
        joint->peers[leg].to_send.length -= 4;
        joint->peers[leg].ends = true;
        WORLD_UNTIL(world, joint->peers[1 - leg].heard_end && joint->is_done);
        check_end(joint, RC_END_ABORTED, leg == 0 ? RC_BY_SENDER : RC_BY_LISTENER);
    }
    rc_test_case = "abort by reset";
    for (unsigned i = 0; i < 4; i++, joint++) {
        unsigned leg = i & 1, kind = i & 2 ? WS_SERVER : RAW;
        submit(world, joint, kind, kind, BY_TCP, 0);
        joint_say(joint, 1 - leg, RC_OP_BINARY, true, "x", 1);
        WORLD_UNTIL(world, joint->peers[leg].got.length > 0);
        peer_reset(&joint->peers[leg]);
        WORLD_UNTIL(world, joint->peers[1 - leg].heard_end && joint->is_done);
        check_end(joint, RC_END_ABORTED, leg == 0 ? RC_BY_SENDER : RC_BY_LISTENER);
    }
    rc_test_case = "reset of a source whose destination does not read";
    for (unsigned leg = 0; leg < 2; leg++, joint++) {
        submit(world, joint, WS_SERVER, WS_SERVER, BY_TCP, SMALL);
        block(world, joint, 1 - leg, 1 << 20);
        peer_reset(&joint->peers[leg]);
        WORLD_UNTIL(world, joint->is_done);
        check_end(joint, RC_END_ABORTED, leg == 0 ? RC_BY_SENDER : RC_BY_LISTENER);
    }
    rc_test_case = "reset of a destination that does not read";
    for (unsigned leg = 0; leg < 2; leg++, joint++) {
        submit(world, joint, WS_SERVER, WS_SERVER, BY_TCP, SMALL);
        block(world, joint, leg, 1 << 20);
        peer_reset(&joint->peers[leg]);
        WORLD_UNTIL(world, joint->is_done);
        check_end(joint, RC_END_ABORTED, leg == 0 ? RC_BY_SENDER : RC_BY_LISTENER);
    }
    world_free(world);
}

/* Behind its Close a leg may be lost, and may send what is dropped; the other leg's bytes go nowhere, but it is told. */
static void check_loss_after_close(void) {
    struct world *world = small_world(3);
    struct joint *hangs_up = &world->joints[0], *chatters = &world->joints[1], *raw = &world->joints[2];

    rc_test_case = "reset behind Close";
    submit(world, hangs_up, WS_SERVER, WS_SERVER, BY_TCP, 0);
    say_close(hangs_up, 0);
    WORLD_UNTIL(world, joint_heard_close(hangs_up, 1, 1000));
    peer_reset(&hangs_up->peers[0]);
    joint_say(hangs_up, 1, RC_OP_BINARY, true, filler(), 200000);
    WORLD_UNTIL(world, hangs_up->is_done);
    CHECK(hangs_up->job.end == RC_END_ABORTED || hangs_up->job.end == RC_END_CLOSED);
    CHECK_INT(hangs_up->job.by, RC_BY_SENDER);

    rc_test_case = "chatter behind Close";
    submit(world, chatters, WS_SERVER, WS_SERVER, BY_TCP, 0);
    say_close(chatters, 0);
    joint_say(chatters, 0, RC_OP_BINARY, true, filler(), 500000);
    WORLD_UNTIL(world, chatters->peers[0].sent == chatters->peers[0].to_send.length);
    WORLD_UNTIL(world, joint_heard_close(chatters, 1, 1000));
    joint_say(chatters, 1, RC_OP_TEXT, true, "answer", 6);
    say_close(chatters, 1);
    chatters->peers[0].is_vocal = chatters->peers[1].is_vocal = true;
    WORLD_UNTIL(world, chatters->is_done);
    check_end(chatters, RC_END_CLOSED, RC_BY_SENDER);
    CHECK_INT(joint_heard_bytes(chatters, 0, NULL), 6);
    CHECK_INT(joint_heard_bytes(chatters, 1, NULL), 0);

    rc_test_case = "reset of a raw leg behind its end";
    submit(world, raw, RAW, WS_SERVER, BY_TCP, 0);
    say_close(raw, 0);
    WORLD_UNTIL(world, joint_heard_close(raw, 1, 1000));
    peer_reset(&raw->peers[0]);
    WORLD_UNTIL(world, raw->is_done);
    check_end(raw, RC_END_ABORTED, RC_BY_SENDER);
    world_free(world);
}

/* ---------------------------------------------------------------------------------------------------------------- limits */

static void check_timeouts(void) {
    struct world *world = small_world(8);
    struct joint *joint = world->joints;

    rc_test_case = "half-closed for too long";
    for (unsigned leg = 0; leg < 2; leg++, joint++) {
        joint_be(joint, leg ? RAW : WS_SERVER, leg ? RAW : WS_CLIENT);
        joint_wire(joint, BY_TCP, 0);
        joint->job.half_closed_ms = 120;
        joint_submit(world, joint);
        world_settle(world);
        CHECK(!joint->is_done);
        say_close(joint, leg);
        WORLD_UNTIL(world, joint_heard_close(joint, 1 - leg, 1000));
        WORLD_UNTIL(world, joint->is_done);
        check_end(joint, RC_END_HALF_CLOSED_TIMEOUT, leg == 0 ? RC_BY_SENDER : RC_BY_LISTENER);
        CHECK(joint->done_ms - joint->submitted_ms >= 119);
    }

    rc_test_case = "idle for too long";
    joint_wire(joint, BY_UNIX, 0);
    joint->job.idle_ms = 100;
    joint_submit(world, joint);
    WORLD_UNTIL(world, joint->is_done);
    check_end(joint, RC_END_IDLE_TIMEOUT, RC_BY_RELAY);
    CHECK(joint->done_ms - joint->submitted_ms >= 99);
    joint++;

    rc_test_case = "idle after traffic";
    submit(world, joint, WS_SERVER, WS_SERVER, BY_UNIX, 0); /* without a limit, beside one that has it */
    joint[1].job.idle_ms = 200;
    submit(world, joint + 1, WS_SERVER, WS_SERVER, BY_UNIX, 0);
    uint64_t last = rc_test_ms();
    for (int i = 0; i < 6 && !joint[1].is_done; i++) {
        size_t wanted = joint[1].peers[1].got.length + 3;
        last = rc_test_ms();
        joint_say(&joint[1], 0, RC_OP_BINARY, true, "x", 1);
        WORLD_UNTIL(world, joint[1].peers[1].got.length >= wanted || joint[1].is_done);
        poll(NULL, 0, 60);
    }
    WORLD_UNTIL(world, joint[1].is_done);
    check_end(&joint[1], RC_END_IDLE_TIMEOUT, RC_BY_RELAY);
    CHECK(joint[1].done_ms - last >= 199);
    CHECK(!joint->is_done);
    rc_engine_cancel(world->engine, &joint->job);
    WORLD_UNTIL(world, joint->is_done);
    joint += 2;

    rc_test_case = "no answer to our Close";
    for (unsigned leg = 0; leg < 2; leg++, joint++) {
        joint_be(joint, WS_SERVER, leg ? RAW : WS_CLIENT);
        joint_wire(joint, BY_TCP, 0);
        joint->job.close_ms = 120;
        joint_submit(world, joint);
        uint64_t from = rc_test_ms();
        close_job(world, joint);
        if (leg == 0) {
            WORLD_UNTIL(world, joint_heard_close(joint, 1, 1001));
            say_close(joint, 1); /* only one answers */
        }
        WORLD_UNTIL(world, joint->is_done);
        check_end(joint, RC_END_RELAY_CLOSED, RC_BY_RELAY);
        CHECK(joint->done_ms - from >= 119);
    }

    rc_test_case = "a blocked stream is idle, too";
    joint_be(joint, WS_SERVER, WS_SERVER);
    joint_wire(joint, BY_TCP, SMALL);
    joint->job.idle_ms = 300;
    joint_submit(world, joint);
    joint->peers[1].is_deaf = true;
    joint_say(joint, 0, RC_OP_BINARY, true, filler(), 1 << 20);
    WORLD_UNTIL(world, joint->is_done);
    check_end(joint, RC_END_IDLE_TIMEOUT, RC_BY_RELAY);
    world_free(world);
}

/* ---------------------------------------------------------------------------------------------------------------- cancel */

/* At any moment: before the start, while bytes fly, at the very end. What it says is one of two things. */
static void check_cancel(unsigned threads) {
    size_t count = 300 / slowness + 9;
    struct world *world = world_new(threads, 8, BUFFER, count);
    unsigned cancelled = 0, closed = 0;

    rc_test_case = "cancel";
    world_watch(world);
    for (size_t i = 0; i < count; i++) {
        struct joint *joint = &world->joints[i];
        joint_wire(joint, i % 2 ? BY_TCP : BY_UNIX, 0);
        for (unsigned leg = 0; leg < 2; leg++) {
            joint_say(joint, leg, RC_OP_BINARY, true, filler(), roll(100000));
            if (i % 3 != 0)
                say_close(joint, leg);
            joint->peers[leg].is_vocal = true;
        }
        joint_submit(world, joint);
        for (uint64_t n = roll(8); n > 0 && !joint->is_done; n--)
            world_glance(world);
        if (!joint->is_done && i % 5 == 0)
            close_job(world, joint);
        if (!joint->is_done)
            rc_engine_cancel(world->engine, &joint->job);
        if (roll(2) && !joint->is_done)
            rc_engine_cancel(world->engine, &joint->job);
    }
    WORLD_UNTIL(world, world->done == count);
    for (size_t i = 0; i < count; i++) {
        cancelled += world->joints[i].job.end == RC_END_CANCELLED;
        closed += world->joints[i].job.end == RC_END_CLOSED;
        if (world->joints[i].job.end == RC_END_CANCELLED)
            CHECK_INT(world->joints[i].job.by, RC_BY_RELAY);
    }
    CHECK(cancelled > 0 && cancelled + closed == count);
    world_free(world);
}

/* A descriptor that was closed and given out again is nobody's old one: nothing of a cancelled job reaches its successor. */
static void check_reuse(void) {
    size_t count = 200 / slowness + 2;
    struct world *world = world_new(2, 8, BUFFER, count);

    rc_test_case = "reuse";
    for (size_t i = 0; i < count; i++) {
        struct joint *joint = &world->joints[i];
        submit(world, joint, RAW, RAW, BY_UNIX, 0);
        peer_say(&joint->peers[0], filler() + i, 20000);
        if (i % 2 == 0) {
            world_move(world);
            if (!joint->is_done)
                rc_engine_cancel(world->engine, &joint->job);
        } else {
            WORLD_UNTIL(world, joint->peers[1].got.length == 20000);
            CHECK_BYTES(joint->peers[1].got.data, filler() + i, 20000);
            joint->peers[0].ends = joint->peers[1].ends = true;
        }
        WORLD_UNTIL(world, joint->is_done);
        CHECK_INT(joint->job.end, i % 2 ? RC_END_CLOSED : RC_END_CANCELLED);
    }
    world_free(world);
}

static void check_shut(unsigned threads) {
    enum {
        COUNT = 60
    };
    struct world *world = world_new(threads, 4, BUFFER, COUNT);
    uint64_t tokens[COUNT];
    size_t count = 0, part;

    rc_test_case = "shut";
    for (size_t i = 0; i < COUNT; i++) {
        struct joint *joint = &world->joints[i];
        joint_wire(joint, i % 2 ? BY_TCP : BY_UNIX, SMALL);
        joint_say(joint, 0, RC_OP_BINARY, true, filler(), 300000);
        joint->peers[1].is_deaf = i % 3 == 0;
        joint_submit(world, joint);
        if (i % 7 == 0)
            world_glance(world);
        if (i % 10 == 0)
            close_job(world, joint);
    }
    rc_engine_shut(world->engine); /* with the last of them perhaps not yet begun */
    struct pollfd fd = {.fd = rc_engine_fd(world->engine), .events = POLLIN};
    CHECK_INT(poll(&fd, 1, 0), 1);
    while ((part = rc_engine_completions(world->engine, tokens + count, 13)) > 0)
        for (size_t i = 0; i < part; i++, count++) {
            struct joint *joint = &world->joints[tokens[count]];
            CHECK(!joint->is_done);
            joint->is_done = true;
            check_end(joint, RC_END_CANCELLED, RC_BY_RELAY);
            /* Both sockets are as they were: open, and good for more. */
            if (tokens[count] % 10 != 0)
                CHECK(send(joint->job.sockets[0], "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1);
            close(joint->job.sockets[0]);
            close(joint->job.sockets[1]);
        }
    CHECK_INT(count, COUNT);
    world_free(world);
}

/* ------------------------------------------------------------------------------------------------------------- empty pool */

/* Readers that do not read hold every buffer. The others go on with less, nobody fails, and all recover. */
static void check_empty_pool(void) {
    enum {
        HELD = 40,
        COUNT = HELD + 6
    };
    struct world *world = world_new(1, 1, BUFFER, COUNT);
    struct rc_engine_statistics now;

    rc_test_case = "empty pool";
    world_watch(world);
    for (size_t i = 0; i < HELD; i++) {
        struct joint *joint = &world->joints[i];
        joint_wire(joint, BY_TCP, SMALL);
        joint->peers[1].is_deaf = true;
        joint_say(joint, 0, RC_OP_BINARY, true, filler() + i, 1 << 19);
        joint_submit(world, joint);
    }
    WORLD_UNTIL(world, statistics_of(world).starved > HELD / 3);
    now = statistics_of(world);
    CHECK(now.exhausted > 0 && now.buffers_in_use > 0 && now.buffers_in_use <= 1 + RC_SMALL_PER_BUFFER);

    rc_test_case = "empty pool, relay closes";
    for (size_t i = 0; i < 6; i++) { /* those who read hear of it, though no data can move */
        struct joint *joint = &world->joints[HELD + i];
        joint_wire(joint, BY_TCP, 0);
        joint_submit(world, joint);
        if (i & 1)
            world_settle(world);
        close_job(world, joint);
        WORLD_UNTIL(world, joint_heard_close(joint, 0, 1001) && joint_heard_close(joint, 1, 1001));
    }
    for (size_t i = 0; i < HELD; i += 2) { /* their senders read, and their lanes wait for a buffer or hold one */
        close_job(world, &world->joints[i]);
        WORLD_UNTIL(world, joint_heard_close(&world->joints[i], 0, 1001));
    }

    rc_test_case = "empty pool, reset of a lane that waits";
    WORLD_UNTIL(world, statistics_of(world).starved > 0);
    for (size_t i = 1; i < HELD; i += 8) {
        peer_reset(&world->joints[i].peers[0]);
        WORLD_UNTIL(world, world->joints[i].is_done);
        CHECK_INT(world->joints[i].job.end, RC_END_ABORTED);
    }

    rc_test_case = "empty pool, recovery";
    for (size_t i = 0; i < COUNT; i++) {
        struct joint *joint = &world->joints[i];
        for (unsigned leg = 0; leg < 2; leg++) {
            joint->peers[leg].is_deaf = false;
            joint->peers[leg].is_vocal = true;
            if (!joint->is_done && !joint->peers[leg].ends)
                say_close(joint, leg);
        }
    }
    WORLD_UNTIL(world, world_is_over(world));
    for (size_t i = 1; i < HELD; i += 2) {
        struct joint *joint = &world->joints[i];
        if (joint->job.end == RC_END_ABORTED)
            continue;
        struct bytes all = {0};
        CHECK_INT(joint->job.end, RC_END_CLOSED);
        CHECK_INT(joint_heard_bytes(joint, 1, &all), 1 << 19);
        CHECK_BYTES(all.data, filler() + i, 1 << 19);
        free(all.data);
    }
    CHECK_INT(statistics_of(world).starved, 0);
    world_free(world);
}

/* ------------------------------------------------------------------------------------------------------------------- many */

/* Random traffic and random deaths. What the survivors got is what was sent. */
static void check_many(unsigned threads, uint32_t buffers) {
    size_t count = 500 / slowness + 20, begun = 0;
    struct world *world = world_new(threads, buffers, BUFFER, count);
    size_t *said = calloc(count * 2, sizeof *said);
    uint8_t *fate = calloc(count, 1); /* 0: lives to its end */
    struct rc_engine_statistics now;

    rc_test_case = "many";
    CHECK(said != NULL && fate != NULL);
    world_watch(world);
    uint64_t from = rc_test_ms();
    while (world->done < count) {
        CHECK(rc_test_ms() - from < 60000);
        for (int i = 0; i < 20 && begun < count; i++, begun++) {
            struct joint *joint = &world->joints[begun];
            fate[begun] = (uint8_t)(roll(2) ? 0 : 1 + roll(6));
            joint_wire(joint, roll(2) ? BY_TCP : BY_UNIX, roll(3) ? 0 : SMALL);
            /* Linux sends no reset for a socket whose FIN is on its way: such a peer is simply gone. */
            joint->job.half_closed_ms = 3000;
            for (unsigned leg = 0; leg < 2; leg++) {
                struct peer *peer = &joint->peers[leg];
                for (uint64_t n = roll(6); n > 0; n--) {
                    size_t size = roll(3) ? roll(200) : roll(70000);
                    joint_say(joint, leg, RC_OP_BINARY, true, filler() + said[begun * 2 + leg], size);
                    said[begun * 2 + leg] += size;
                    if (joint->kinds[leg] != RAW && roll(3) == 0)
                        joint_say(joint, leg, RC_OP_PING, true, "are you there", roll(13));
                }
                peer->is_vocal = true;
                peer->read_most = roll(4) ? 0 : 1 + roll(3000);
                peer->send_most = roll(4) ? 0 : 1 + roll(3000);
                say_close(joint, leg);
            }
            joint_submit(world, joint);
        }
        for (int i = 0; i < 4; i++)
            world_glance(world);
        for (int i = 0; i < 10; i++) {
            size_t n = roll(begun);
            struct joint *joint = &world->joints[n];
            if (joint->is_done)
                continue;
            switch (fate[n]) {
            case 1:
                rc_engine_cancel(world->engine, &joint->job);
                break;
            case 2:
                close_job(world, joint);
                break;
            case 3:
            case 4:
                if (joint->peers[fate[n] - 3].fd >= 0)
                    peer_reset(&joint->peers[fate[n] - 3]);
                break;
            case 5:
                joint->peers[0].is_deaf = !joint->peers[0].is_deaf;
                break;
            case 6:
                joint->peers[1].sent = joint->peers[1].to_send.length; /* stops in mid-sentence */
                joint->peers[1].ends = true;
                break;
            default:
                break;
            }
        }
        if (begun == count)
            for (size_t n = 0; n < count; n++)
                world->joints[n].peers[0].is_deaf = false;
    }
    WORLD_UNTIL(world, world_is_over(world));
    for (size_t i = 0; i < count; i++) {
        struct joint *joint = &world->joints[i];
        if (fate[i] != 0)
            continue;
        CHECK_INT(joint->job.end, RC_END_CLOSED);
        for (unsigned leg = 0; leg < 2; leg++) {
            struct bytes all = {0};
            CHECK_INT(joint_heard_bytes(joint, leg, &all), said[i * 2 + 1 - leg]);
            CHECK_BYTES(all.data, filler(), all.length);
            CHECK(joint_heard_close(joint, leg, 1000));
            free(all.data);
        }
    }
    rc_engine_statistics(world->engine, &now);
    CHECK_INT(now.jobs, 0);
    CHECK_INT(now.completed, count);
    CHECK_INT(now.starved, 0);
    free(said);
    free(fate);
    world_free(world);
}

/* --------------------------------------------------------------------------------------------------------------- fairness */

/* Streams on one thread that always have more to send get like shares of it, and a small one its turn between theirs. */
static void check_fairness(void) {
    enum {
        STREAMS = 8
    };
    struct world *world = world_new(1, 64, BUFFER, STREAMS + 1);
    struct joint *small = &world->joints[STREAMS];
    size_t least = SIZE_MAX, most = 0, round_trips = 0;

    rc_test_case = "fairness";
    for (size_t i = 0; i < STREAMS; i++) {
        submit(world, &world->joints[i], WS_SERVER, WS_CLIENT, BY_UNIX, 0);
        joint_say(&world->joints[i], 0, RC_OP_BINARY, true, filler(), 1 << 22);
        world->joints[i].peers[0].send_most = world->joints[i].peers[1].read_most = 1 << 17;
    }
    submit(world, small, RAW, RAW, BY_UNIX, 0);
    while (most < 3 << 20) {
        most = 0, least = SIZE_MAX;
        if (small->peers[1].got.length == round_trips) {
            peer_say(&small->peers[0], "x", 1);
            round_trips++;
        }
        world_move(world);
        for (size_t i = 0; i < STREAMS; i++) {
            size_t got = world->joints[i].peers[1].got.length;
            most = got > most ? got : most;
            least = got < least ? got : least;
        }
    }
    CHECK(least > most / 2);
    CHECK(round_trips >= 8);
    for (size_t i = 0; i <= STREAMS; i++)
        rc_engine_cancel(world->engine, &world->joints[i].job);
    WORLD_UNTIL(world, world->done == STREAMS + 1);
    world_free(world);
}

/* Does the engine do nothing for 50 ms? */
static bool is_at_rest(const struct world *world) {
    struct rc_engine_statistics before = statistics_of(world), after;

    poll(NULL, 0, 50);
    after = statistics_of(world);
    return after.waits <= before.waits + 1 && after.turns == before.turns;
}

/* Nothing spins: without traffic the thread sleeps, also with a blocked stream, an ended leg and a starved lane. */
static void check_rest(void) {
    struct world *world = world_new(1, 1, BUFFER, 12);

    rc_test_case = "rest";
    for (size_t i = 0; i < 10; i++) {
        submit(world, &world->joints[i], WS_SERVER, RAW, BY_TCP, SMALL);
        world->joints[i].peers[1].is_deaf = true;
        joint_say(&world->joints[i], 0, RC_OP_BINARY, true, filler(), 1 << 18);
    }
    submit(world, &world->joints[10], WS_SERVER, WS_SERVER, BY_TCP, 0);
    say_close(&world->joints[10], 0);
    world->joints[10].peers[0].ends = true;
    submit(world, &world->joints[11], RAW, WS_SERVER, BY_TCP, 0);
    say_close(&world->joints[11], 0);
    WORLD_UNTIL(world, is_at_rest(world));
    for (size_t i = 0; i < 12; i++)
        if (!world->joints[i].is_done)
            rc_engine_cancel(world->engine, &world->joints[i].job);
    WORLD_UNTIL(world, world->done == 12);
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
    check_messages(BY_UNIX);
    check_messages(BY_TCP);
    check_pieces();
    check_early();
    check_early_error();
    check_pings();
    check_half_close();
    check_linger();
    check_relay_close();
    check_relay_close_mid_frame();
    check_relay_close_blocked();
    check_protocol_error(BY_UNIX);
    check_protocol_error(BY_TCP);
    check_protocol_error_blocked();
    check_abort();
    check_loss_after_close();
    check_timeouts();
    check_cancel(1);
    check_cancel(4);
    check_reuse();
    check_shut(1);
    check_shut(4);
    check_empty_pool();
    check_stories(1, 64, BY_UNIX, 200 / slowness + 18);
    check_stories(2, 64, BY_TCP, 200 / slowness + 18);
    check_stories(1, 2, BY_TCP, 100 / slowness + 18);
    check_many(1, 64);
    check_many(4, 64);
    check_many(1, 4);
    check_fairness();
    check_rest();
    CHECK_INT(open_descriptors(), descriptors);
    return rc_test_done("test_engine");
}
