/* Bytes through the engine: whole, in pieces, read before; and the stories of session_story.c through real sockets. */
#define _GNU_SOURCE
#include "engine_cases.h"

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

void check_bytes(void) {
    check_messages(BY_UNIX);
    check_messages(BY_TCP);
    check_pieces();
    check_early();
    check_early_error();
    check_pings();
    check_stories(1, 64, BY_UNIX, 200 / slowness + 18);
    check_stories(2, 64, BY_TCP, 200 / slowness + 18);
    check_stories(1, 2, BY_TCP, 100 / slowness + 18);
}
