#include "engine_cases.h"

unsigned slowness = 1;
static uint64_t dice = 0x9E3779B97F4A7C15u;

uint64_t roll(uint64_t below) {
    return rc_test_random(&dice) % below;
}

struct world *small_world(size_t count) {
    return world_new(1, 16, BUFFER, count);
}

const uint8_t *filler(void) {
    static uint8_t bytes[1 << 22];

    if (bytes[1] == 0)
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)(i * 13 + i / 253);
    return bytes;
}

void say_close(struct joint *joint, unsigned leg) {
    if (joint->kinds[leg] != RAW)
        joint_say(joint, leg, RC_OP_CLOSE, true, "\x03\xe8", 2);
    else
        joint->peers[leg].ends = true;
}

void check_end(const struct joint *joint, unsigned end, unsigned by) {
    CHECK(joint->is_done);
    CHECK_INT(joint->job.end, end);
    CHECK_INT(joint->job.by, by);
}

void submit(struct world *world, struct joint *joint, unsigned sender, unsigned listener, enum transport transport,
            int buffer_bytes) {
    joint_be(joint, sender, listener);
    joint_wire(joint, transport, buffer_bytes);
    joint_submit(world, joint);
}

struct rc_engine_statistics statistics_of(const struct world *world) {
    struct rc_engine_statistics now;

    rc_engine_statistics(world->engine, &now);
    return now;
}

void close_job(struct world *world, struct joint *joint) {
    CHECK_INT(rc_engine_close(world->engine, &joint->job, 1001, (const uint8_t *)"going away", 10), RC_OK);
}

void answer_close(struct world *world, struct joint *joint) {
    for (unsigned leg = 0; leg < 2; leg++) {
        WORLD_UNTIL(world, joint_heard_close(joint, leg, 1001));
        say_close(joint, leg);
        joint->peers[leg].is_vocal = true;
    }
    WORLD_UNTIL(world, joint->is_done);
    check_end(joint, RC_END_RELAY_CLOSED, RC_BY_RELAY);
    CHECK(joint->peers[0].heard_end || joint->done_ms - joint->submitted_ms < 20000);
}

void block(struct world *world, struct joint *joint, unsigned leg, size_t bytes) {
    uint64_t before = statistics_of(world).blocked;

    joint->peers[leg].is_deaf = true;
    joint_say(joint, 1 - leg, RC_OP_BINARY, true, filler(), bytes);
    WORLD_UNTIL(world, statistics_of(world).blocked > before);
    CHECK(joint->peers[1 - leg].sent < joint->peers[1 - leg].to_send.length);
}
