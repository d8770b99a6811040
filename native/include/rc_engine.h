/* Joined sessions on threads of their own: sockets in, sockets out, the rules of rc_session.h in between.
 *
 *      caller's thread                       engine thread k (of N)
 *      rc_engine_submit() ──┐                epoll, edge-triggered: both sockets of each job
 *      rc_engine_close()  ──┼─ commands ──▶  ready lanes, one chunk each per turn
 *      rc_engine_cancel() ──┘  + eventfd     pool of buffers, timers
 *      rc_engine_completions() ◀── completions + one eventfd for the whole engine ──┘
 *
 * A job is one joined session with its two sockets. From rc_engine_submit() until its token has come out of
 * rc_engine_completions() the job, its session and both sockets belong to the engine: the caller closes neither socket and
 * calls nothing of rc_session.h on that session but rc_session_counters(). Afterwards the engine touches none of them. The
 * engine never closes a descriptor and changes none of its flags; it does shut down the sending side (see RC_END_CLOSED).
 *
 * All functions of this file are for one thread at a time, the caller's. None of them blocks, but rc_engine_open() and
 * rc_engine_shut() for as long as it takes to start and to stop threads.
 *
 * Linux only (epoll, eventfd). Elsewhere rc_engine_is_available() is false and rc_engine_open() says RC_EINVAL.
 */
#ifndef RC_ENGINE_H
#define RC_ENGINE_H

#include "rc_pool.h"
#include "rc_session.h"

#ifdef __linux__
#define RC_ENGINE_AVAILABLE 1
#else
#define RC_ENGINE_AVAILABLE 0
#endif

enum {
    RC_ENGINE_THREADS_MAX = 64,
    RC_CHUNK_BYTES = 65536,       /* most that one lane reads in one turn, on a thread that others use as well */
    RC_SMALL_BUFFER_BYTES = 4096, /* of the reserve, which serves while every buffer is out */
    RC_SMALL_PER_BUFFER = 4,
    RC_LINGER_MS = 2000,        /* for the peers to hang up after us, and for a last word to get out */
    RC_LEFTOVER_BYTES = 1 << 20 /* read and dropped behind a leg's Close; more is not read */
};

/* How a job ended. */
enum {
    RC_END_NONE = 0,
    RC_END_CLOSED = 1,         /* both sides took leave; the sending side of both sockets is shut down, and the peers
                                       have hung up, or have been given RC_LINGER_MS for it */
    RC_END_ABORTED = 2,        /* a leg ended without Close, or was lost */
    RC_END_PROTOCOL_ERROR = 3, /* `offender` broke RFC 6455; its Close has been sent where that was possible */
    RC_END_HALF_CLOSED_TIMEOUT = 4, /* nothing came or went for half_closed_ms behind the first Close */
    RC_END_RELAY_CLOSED = 5,        /* rc_engine_close() */
    RC_END_IDLE_TIMEOUT = 6,        /* nothing came or went for idle_ms */
    RC_END_CANCELLED = 7,           /* rc_engine_cancel(), rc_engine_shut() */
    RC_END_REFUSED = 8 /* the system would not watch the sockets: `error` says why; nothing was read or sent */
};

enum {
    RC_BY_RELAY = 0,
    RC_BY_SENDER = 1,
    RC_BY_LISTENER = 2
};

/* One direction's way through the engine; its own business but for the early bytes. Lane RC_TO_LISTENER reads sockets[0] and writes sockets[1]. */
struct rc_lane {
    const uint8_t *early; /* set by the caller: bytes of the source that were read before; they go in first */
    uint8_t *slab;        /* borrowed, or NULL: between two turns only while output waits or input is left over */
    struct rc_lane *next; /* in the one queue it stands in */
    uint64_t lease;
    uint32_t early_bytes;         /* set by the caller */
    uint32_t out_at, out_bytes;   /* unsent output, in the slab */
    uint32_t rest_at, rest_bytes; /* input that waits for room, in the slab */
    uint32_t leftover_bytes;
    uint32_t events; /* RC_STEP_* that are due once the output is sent */
    uint8_t index;   /* RC_TO_LISTENER or RC_TO_SENDER */
    uint8_t queue;
    bool is_small; /* the slab is one of the reserve */
    bool is_readable;
    bool is_hung; /* its source will send no more than what is here */
    bool is_lost; /* its source was reset */
    bool is_heavy;
    bool is_over; /* its source has no more to say */
};

struct rc_job {
    /* Set by the caller before rc_engine_submit(), and left alone until the completion. */
    struct rc_session *session;
    uint64_t token;          /* handed back on completion; nobody else's business */
    int sockets[2];          /* of the sender, of the listener: connected, non-blocking stream sockets, not the same */
    uint32_t half_closed_ms; /* 0: no limit */
    uint32_t close_ms;       /* how long the peers have for the answer to our Close */
    uint32_t idle_ms;        /* 0: no limit */

    /* Set by the engine; for the caller once the token has come back. */
    uint8_t end;      /* RC_END_* */
    uint8_t by;       /* RC_BY_*: who ended it first */
    uint8_t offender; /* behind RC_END_PROTOCOL_ERROR: the leg that broke the rule, 0 or 1 */
    int error;        /* errno behind RC_END_REFUSED */

    /* The engine's own. */
    uint8_t state, is_watched, close_reason_bytes;
    bool is_half_closed, is_timed;
    uint16_t close_code;
    const uint8_t *close_reason;
    uint32_t commands; /* shared by both sides; see rc_engine.c */
    uint32_t thread;
    struct rc_job *next;                       /* among commands or completions */
    struct rc_job *before, *after;             /* among all of the thread */
    struct rc_job *timed_before, *timed_after; /* among those with a deadline; then among those that are over */
    uint64_t active_ms, cut_ms;
    struct rc_lane lanes[2];
};

/* Since the start, of all threads together, but for the first three, which are of this moment. A snapshot: each number is
 * whole, but they need not be of the same instant. */
struct rc_engine_statistics {
    uint64_t jobs;           /* submitted and not yet completed */
    uint64_t buffers_in_use; /* those of the reserve included */
    uint64_t starved;        /* lanes that wait for a buffer */
    uint64_t buffers_peak;   /* highest of any thread, summed */
    uint64_t exhausted;      /* how often a lane found no large buffer */
    uint64_t completed;
    uint64_t turns;    /* of a lane */
    uint64_t receives; /* system calls */
    uint64_t sends;    /* system calls */
    uint64_t blocked;  /* sends that could not take everything */
    uint64_t waits;    /* epoll_wait calls */
    uint64_t sleeps;   /* those that found nothing ready and waited */
    uint64_t commands; /* taken */
    uint64_t bytes_in, bytes_out;
};

struct rc_engine; /* opaque */

bool rc_engine_is_available(void);

/* Starts `threads` threads, which share out `buffers` buffers of `buffer_bytes` among themselves, at least one each, and
 * block all signals. `*engine` is NULL on failure.
 *
 * Returns RC_OK; RC_EINVAL for counts that are 0 or above the limits, or no epoll on this system; RC_ENOMEM when memory,
 * descriptors or threads are refused. */
int rc_engine_open(struct rc_engine **engine, unsigned threads, uint32_t buffers, uint32_t buffer_bytes);

/* Completes every job that is still there (RC_END_CANCELLED), ends the threads and waits for them. Tokens can still be
 * taken afterwards; nothing else may be called any more but rc_engine_completions(), rc_engine_statistics() and
 * rc_engine_free(). Waits for at most the work of one turn. A second call does nothing. */
void rc_engine_shut(struct rc_engine *engine);

/* Frees it, after rc_engine_shut() (which it calls if need be). NULL is allowed. */
void rc_engine_free(struct rc_engine *engine);

/* Readable while completions wait; for poll() only. Valid until rc_engine_free(). */
int rc_engine_fd(const struct rc_engine *engine);

/* Hands a job over, to the thread that has the fewest. The caller has zeroed the struct and filled its first part; a session
 * that rc_session_close() was called on before is closed from the start on. */
void rc_engine_submit(struct rc_engine *engine, struct rc_job *job);

/* rc_session_close() in the engine: each leg gets this Close at its next frame boundary, and both are let go when they have
 * answered, or after close_ms. `reason` stays where it is until the completion. Of several calls the first counts. RC_OK, or
 * RC_EINVAL as rc_session_close() says. */
int rc_engine_close(struct rc_engine *engine, struct rc_job *job, uint16_t code, const uint8_t *reason, size_t length);

/* Asks the engine to let go at once. The completion still has to be waited for; if the job had ended by itself before, that
 * is what it says. */
void rc_engine_cancel(struct rc_engine *engine, struct rc_job *job);

/* Takes up to `room` tokens of completed jobs, in the order of their completion. Returns how many; fewer than `room`: there
 * were no more, and rc_engine_fd() is quiet until there are. */
size_t rc_engine_completions(struct rc_engine *engine, uint64_t *tokens, size_t room);

/* Readable at any time, without holding up a thread. */
void rc_engine_statistics(const struct rc_engine *engine, struct rc_engine_statistics *statistics);

#endif
