/* How sessions end in the engine: by their peers, by the relay, by a broken rule, a loss or a limit. */
#define _GNU_SOURCE
#include "engine_cases.h"

#include <poll.h>

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

void check_ends(void) {
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
}
