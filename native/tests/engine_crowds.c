/* Jobs that are cancelled, and many at once: few buffers, random deaths, fair shares, and rest. */
#define _GNU_SOURCE
#include "engine_cases.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

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

/* Has a reset not even reached the socket, seconds later? Into a closed window it comes with a number that is not the next one
 * (RFC 5961 3.2); then the kernel asks back, and when that is lost nobody sends it again before somebody reads. */
static bool is_unheard(int socket, uint64_t from_ms) {
    struct tcp_info info;
    socklen_t length = sizeof info;

    return rc_test_ms() - from_ms > 5000 && getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
           info.tcpi_state == TCP_ESTABLISHED;
}

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
        const struct joint *joint = &world->joints[i];
        uint64_t from = rc_test_ms();
        peer_reset(&world->joints[i].peers[0]);
        WORLD_UNTIL(world, joint->is_done || is_unheard(joint->job.sockets[0], from));
        if (joint->is_done)
            CHECK_INT(joint->job.end, RC_END_ABORTED);
    }

    rc_test_case = "empty pool, recovery";
    for (size_t i = 0; i < COUNT; i++) {
        struct joint *joint = &world->joints[i];
        for (unsigned leg = 0; leg < 2; leg++) {
            joint->peers[leg].is_deaf = false;
            joint->peers[leg].is_vocal = true;
            if (!joint->is_done && !joint->peers[leg].ends && joint->peers[leg].fd >= 0)
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

void check_crowds(void) {
    check_cancel(1);
    check_cancel(4);
    check_reuse();
    check_shut(1);
    check_shut(4);
    check_empty_pool();
    check_many(1, 64);
    check_many(4, 64);
    check_many(1, 4);
    check_fairness();
    check_rest();
}
