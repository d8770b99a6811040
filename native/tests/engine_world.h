/* The world around an engine under test: its jobs, and the far ends of their sockets, all moved by one thread. */
#ifndef ENGINE_WORLD_H
#define ENGINE_WORLD_H

#include "rc_engine.h"
#include "rc_test.h"
#include "session_story.h"

#include <pthread.h>

enum transport {
    BY_UNIX,
    BY_TCP
};

/* The far end of one leg. */
struct peer {
    int fd;               /* -1: gone */
    struct bytes to_send; /* from `sent` on still to go */
    size_t sent;
    size_t send_most; /* per call; 0: no limit */
    size_t read_most;
    bool ends; /* shuts down its sending side once everything is sent */
    bool has_ended;
    bool is_deaf;  /* does not read */
    bool is_vocal; /* hangs up of itself once it has heard the end */
    struct bytes got;
    bool heard_end; /* or could not be sent to any more */
    bool heard_reset;
};

/* A job, its session and all four ends. */
struct joint {
    struct rc_session session;
    struct rc_job job;
    struct peer peers[2]; /* of the sender's leg, of the listener's */
    uint8_t kinds[2];
    uint64_t submitted_ms, done_ms;
    bool is_running, is_done;
};

struct world {
    struct rc_engine *engine;
    struct joint *joints;
    size_t count;
    size_t done;
    /* A thread that reads all that may be read at any time. */
    pthread_t watcher;
    bool is_watched;
    bool watcher_stops; /* atomic */
    uint64_t watched;
};

/* Opens an engine and `count` joints without sockets, whose sessions are set up: joint i's kinds are i % 9. */
struct world *world_new(unsigned threads, uint32_t buffers, uint32_t buffer_bytes, size_t count);

/* Everything must be back: jobs, buffers, descriptors. Closes what is left on the far side. */
void world_free(struct world *world);

/* Another thread reads the statistics and every session's counters until the end. */
void world_watch(struct world *world);

/* Gives the joint its kinds and a fresh session; before its submission, and not in a watched world. */
void joint_be(struct joint *joint, unsigned sender, unsigned listener);

/* Gives it sockets. `buffer_bytes` is asked for on both ends of each; 0 for the system's own choice. */
void joint_wire(struct joint *joint, enum transport transport, int buffer_bytes);

void joint_submit(struct world *world, struct joint *joint);

/* Moves bytes at the far ends and takes completions; waits for something to happen, for at most 100 ms. True if it did. */
bool world_move(struct world *world);

/* Moves what can be moved now. */
void world_glance(struct world *world);

/* Moves until the condition holds; fails if that takes 30 s. */
#define WORLD_UNTIL(world, condition)                                                                                  \
    do {                                                                                                               \
        uint64_t rc_from = rc_test_ms();                                                                               \
        while (!(condition)) {                                                                                         \
            world_move(world);                                                                                         \
            if (rc_test_ms() - rc_from > 30000) {                                                                      \
                fprintf(stderr, "%s:%d: [%s] in vain: %s\n", __FILE__, __LINE__, rc_test_case, #condition);            \
                world_print(world);                                                                                    \
                abort();                                                                                               \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

/* All jobs are completed, and every peer that is still there has heard the end of its stream. */
bool world_is_over(const struct world *world);

/* Moves until nothing has moved at the far ends and in the engine for two polls of 20 ms: only for what shall not happen. */
void world_settle(struct world *world);

void world_print(const struct world *world);

uint64_t rc_test_ms(void);

/* What the peer of a leg says: bytes as they are; a frame as its kind sends it. */
void peer_say(struct peer *peer, const void *data, size_t length);
void joint_say(struct joint *joint, unsigned leg, uint8_t opcode, bool fin, const void *data, size_t length);

/* Without Close and without FIN. */
void peer_reset(struct peer *peer);

/* One frame out of what the peer of the leg got, from `*at` on; false if no whole one is there. The payload is unmasked. */
struct heard {
    uint8_t opcode;
    bool fin;
    const uint8_t *data;
    size_t length;
};
bool joint_hear(struct joint *joint, unsigned leg, size_t *at, struct heard *heard);

/* Does what the leg's peer got end with a Close of that code? */
bool joint_heard_close(struct joint *joint, unsigned leg, unsigned code);

/* How many payload bytes of data the peer of the leg got. */
size_t joint_heard_bytes(struct joint *joint, unsigned leg, struct bytes *all);

#endif
