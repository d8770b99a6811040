/* What the engine's cases share, and the groups that they come in: each file is one of them. */
#ifndef ENGINE_CASES_H
#define ENGINE_CASES_H

#include "engine_world.h"

enum {
    WS_SERVER = RC_LEG_WS_SERVER,
    WS_CLIENT = RC_LEG_WS_CLIENT,
    RAW = RC_LEG_RAW,
    BUFFER = 65536,
    SMALL = 16384 /* for a socket */
};

/* The heavy cases are divided by it, for builds that are slow by nature. */
extern unsigned slowness;

/* Below `below`, at random, the same in every run. */
uint64_t roll(uint64_t below);

/* One thread, sixteen buffers. */
struct world *small_world(size_t count);

/* 4 MiB that differ everywhere enough to be compared. */
const uint8_t *filler(void);

/* What a peer that takes leave sends. */
void say_close(struct joint *joint, unsigned leg);

/* The job's end, and that both peers may see it. */
void check_end(const struct joint *joint, unsigned end, unsigned by);

void submit(struct world *world, struct joint *joint, unsigned sender, unsigned listener, enum transport transport,
            int buffer_bytes);

struct rc_engine_statistics statistics_of(const struct world *world);

/* The relay closes the session with 1001. */
void close_job(struct world *world, struct joint *joint);

/* Both peers hear of that and answer, which ends the job. */
void answer_close(struct world *world, struct joint *joint);

/* Fills the way to the peer of `leg`, which does not read. */
void block(struct world *world, struct joint *joint, unsigned leg, size_t bytes);

/* What comes out is what went in, whatever the pieces, kinds of legs and scripts. */
void check_bytes(void);

/* Half-closes, Closes of the relay, broken rules, losses and limits. */
void check_ends(void);

/* Cancelled jobs, few buffers, many sessions, fair shares, and rest. */
void check_crowds(void);

#endif
