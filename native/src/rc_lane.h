/* Between the engine's threads (rc_engine.c) and the jobs that they move (rc_lane.c); nobody else includes this. */
#ifndef RC_LANE_H
#define RC_LANE_H

#include "rc_engine.h"

/* A first-in-first-out queue of lanes. A lane stands in one at most; `queue` says in which. */
struct rc_lane_queue {
    struct rc_lane *first, **last;
    uint64_t count;
};

enum {
    RC_QUEUE_NONE = 0,
    RC_QUEUE_FRESH,  /* something has just happened, and what it sends is small: these go before the heavy ones */
    RC_QUEUE_BUSY,   /* more to do than one turn's share: one of these per round */
    RC_QUEUE_STARVED /* needs a buffer, and none was free */
};

enum {
    RC_CONTROL_BUFFERS = 16 /* of the reserve, lent for Pongs and Closes alone; they come back at once, nearly always */
};

/* What a thread lends to the jobs it moves. */
struct rc_worker {
    struct rc_pool pool, reserve;
    struct rc_lane_queue fresh, busy, starved;
    struct rc_job *timed;     /* those with a deadline */
    uint64_t now_ms;          /* of this round */
    uint64_t next_deadline_ms; /* no job is due before this; UINT64_MAX: none is timed */
    uint64_t looked_ms;        /* when they were looked at */
    const struct rc_job *served; /* the last job that received something; for comparing only */
    uint64_t shared_ms;          /* when that was another one than the time before */
    struct rc_job *over;      /* ended in this round; completed at its end, when no event can name them any more */
    uint8_t *scratch;         /* RC_CHUNK_BYTES for what is read to be dropped */
    int epoll;
    struct rc_engine_statistics counts; /* written by this thread only, through rc_count() and rc_set() */
};

/* Begins a job: its sockets are watched from here on. */
void rc_job_start(struct rc_worker *worker, struct rc_job *job);

/* Something happened to a socket: `leg` is 0 (sender) or 1 (listener), `events` what epoll said. */
void rc_job_event(struct rc_worker *worker, struct rc_job *job, unsigned leg, uint32_t events);

/* The close that rc_engine_close() has put into the job. */
void rc_job_close(struct rc_worker *worker, struct rc_job *job);

/* Ends a job now. */
void rc_job_cancel(struct rc_worker *worker, struct rc_job *job);

/* The deadlines that have come by now_ms; sets next_deadline_ms. Work: proportional to the timed jobs. */
void rc_job_deadlines(struct rc_worker *worker);

/* One turn of a lane that was taken out of its queue: at most one receive, and the sends that it leads to. */
void rc_lane_turn(struct rc_worker *worker, struct rc_lane *lane);

/* Lanes that waited for a buffer, as far as there are buffers. */
void rc_lane_feed(struct rc_worker *worker);

/* Stores what other threads may read at any time; the partner of rc_count(). */
static inline void rc_set(uint64_t *counter, uint64_t value) {
    __atomic_store_n(counter, value, __ATOMIC_RELAXED);
}

bool rc_job_is_over(const struct rc_job *job);

static inline struct rc_job *rc_lane_job(struct rc_lane *lane) {
    return (struct rc_job *)(void *)((char *)(lane - lane->index) - offsetof(struct rc_job, lanes));
}

static inline struct rc_lane *rc_lane_pop(struct rc_lane_queue *queue) {
    struct rc_lane *lane = queue->first;

    if (lane == NULL)
        return NULL;
    queue->first = lane->next;
    if (queue->first == NULL)
        queue->last = &queue->first;
    queue->count--;
    lane->next = NULL;
    lane->queue = RC_QUEUE_NONE;
    return lane;
}

#endif
