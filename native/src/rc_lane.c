/* Theory of operation
 *
 * 1. A lane is one direction of a job. It borrows a buffer, receives once, has it translated in place, sends, and gives
 *    the buffer back. It keeps the buffer only while the destination takes no more; meanwhile nothing is read, and that is
 *    the whole of back-pressure.
 *
 *        readable ──▶ borrow ──▶ recv ──▶ translate ──▶ send ──┬─ all sent ──▶ give back ──▶ more to read? BUSY : wait
 *                       │                     ▲                │
 *                       ▼                     └── rest_bytes ──┤ (the brain wanted room: RC_STEP_MORE)
 *                    STARVED                                   └─ EAGAIN ──▶ wait for EPOLLOUT, buffer kept
 *
 * 2. Sockets are watched edge-triggered, both ways, once for their whole stay. So a lane remembers that its source is
 *    readable until a receive brought less than it had room for, or EAGAIN. Whether a destination can be written is found
 *    out by writing. An event only ever puts a lane into a queue; everything else happens in its turn.
 *
 * 3. Fair shares. One turn receives at most RC_CHUNK_BYTES, or a whole buffer if the job has had its thread for itself
 *    lately: large chunks cost less per byte, but others would have to wait for them. Lanes that moved little the last
 *    time go before those that moved much, and of these only one has its turn before epoll is asked again: a small message
 *    waits for one chunk, not for all streams. Small ones cannot starve large ones: a round serves the events of
 *    one epoll_wait, RC_EVENTS of them, and then a heavy lane.
 *
 * 4. Two writers of one socket. Output of lane d goes to leg 1-d, and so do Pongs and Closes of the brain's own towards that
 *    leg, which also are output of lane d. As long as lane d has unsent output, nothing else is asked of the brain for d.
 *    What is owed stays owed, and comes out of the next translation or of say_owed() once the lane has sent.
 *
 * 5. States of a job
 *
 *      MOVING ──both Closes sent──▶ LINGERING ──both peers hung up, or RC_LINGER_MS──▶ OVER
 *        │ ├────broken rule───────▶ FAILING ──its Close is sent, or cannot be──▶ OVER
 *        │ └────lost, cancelled, deadline──────────────────────────────────────▶ OVER
 *        └ a leg that sent Close is still read, and what comes is dropped: it may hang up (wire contract 8.7)
 *
 *    OVER jobs stay in memory until the end of the round, since later events of the same epoll_wait may name them.
 */
#define _DEFAULT_SOURCE
#include "rc_lane.h"

#if RC_ENGINE_AVAILABLE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum {
    STATE_NEW = 0,
    STATE_MOVING,
    STATE_FAILING,
    STATE_LINGERING,
    STATE_OVER
};

enum {
    LOOK_MS = 20,       /* how late a deadline may be noticed */
    ALONE_MS = 20,      /* a thread that has served one job only for as long lets it take larger chunks */
    HEAVY_BYTES = 16384 /* a lane that moved this much in one turn waits in the second queue */
};

_Static_assert(sizeof(struct rc_session) + sizeof(struct rc_job) <= 1024, "the engine's share of an idle session");

static void push(struct rc_lane_queue *queue, struct rc_lane *lane, uint8_t name) {
    lane->queue = name;
    lane->next = NULL;
    *queue->last = lane;
    queue->last = &lane->next;
    queue->count++;
}

static void unqueue(struct rc_lane_queue *queue, struct rc_lane *lane) {
    for (struct rc_lane **at = &queue->first; *at != NULL; at = &(*at)->next) {
        if (*at != lane)
            continue;
        *at = lane->next;
        if (*at == NULL)
            queue->last = at;
        lane->next = NULL;
        lane->queue = RC_QUEUE_NONE;
        queue->count--;
        return;
    }
}

/* Puts a lane into the queue where it belongs, unless it stands in one. */
static void ready(struct rc_worker *worker, struct rc_lane *lane) {
    if (lane->queue != RC_QUEUE_NONE)
        return;
    if (lane->is_heavy)
        push(&worker->busy, lane, RC_QUEUE_BUSY);
    else
        push(&worker->fresh, lane, RC_QUEUE_FRESH);
}

/* The same for a lane that has something to do which takes no buffer, or one of those for control. Work: in proportion to
 * the lanes that wait for a buffer, if it is one of them. */
static void rouse(struct rc_worker *worker, struct rc_lane *lane) {
    if (lane->queue == RC_QUEUE_STARVED)
        unqueue(&worker->starved, lane);
    ready(worker, lane);
}

static struct rc_lane *other_lane(struct rc_job *job, const struct rc_lane *lane) {
    return &job->lanes[1 - lane->index];
}

static int source_socket(struct rc_lane *lane) {
    return rc_lane_job(lane)->sockets[lane->index];
}

static int destination_socket(struct rc_lane *lane) {
    return rc_lane_job(lane)->sockets[1 - lane->index];
}

static uint8_t source_name(const struct rc_lane *lane) {
    return lane->index == RC_TO_LISTENER ? RC_BY_SENDER : RC_BY_LISTENER;
}

static const struct rc_direction *rules(const struct rc_job *job, const struct rc_lane *lane) {
    return &job->session->directions[lane->index];
}

bool rc_job_is_over(const struct rc_job *job) {
    return job->state == STATE_OVER;
}

/* ------------------------------------------------------------------------------------------------------------ buffers */

/* How many buffers data may take now. */
static uint64_t free_for_data(const struct rc_worker *worker) {
    uint32_t small = worker->reserve.free_count;

    return (uint64_t)worker->pool.free_count + (small > RC_CONTROL_BUFFERS ? small - RC_CONTROL_BUFFERS : 0);
}

static bool borrow(struct rc_worker *worker, struct rc_lane *lane, bool for_control) {
    RC_ASSERT(lane->slab == NULL);
    if (rc_pool_take(&worker->pool, &lane->lease, &lane->slab) == RC_OK) {
        lane->is_small = false;
        return true;
    }
    rc_count(&worker->counts.exhausted, 1);
    if ((for_control || worker->reserve.free_count > RC_CONTROL_BUFFERS) &&
        rc_pool_take(&worker->reserve, &lane->lease, &lane->slab) == RC_OK) {
        lane->is_small = true;
        return true;
    }
    return false;
}

static void give_back(struct rc_worker *worker, struct rc_lane *lane) {
    if (lane->slab == NULL)
        return;
    int result = rc_pool_give(lane->is_small ? &worker->reserve : &worker->pool, lane->lease);
    RC_ASSERT(result == RC_OK);
    lane->slab = NULL;
    lane->out_bytes = lane->rest_bytes = 0;
}

void rc_lane_feed(struct rc_worker *worker) {
    uint64_t free = free_for_data(worker);

    for (; free > 0 && worker->starved.first != NULL; free--)
        ready(worker, rc_lane_pop(&worker->starved));
}

/* ------------------------------------------------------------------------------------------------------------- timers */

static uint64_t deadline_of(const struct rc_job *job) {
    uint64_t deadline = job->cut_ms != 0 ? job->cut_ms : UINT64_MAX;
    uint32_t silence = job->is_half_closed ? job->half_closed_ms : job->idle_ms;

    if (silence != 0 && job->state == STATE_MOVING && job->active_ms + silence < deadline)
        deadline = job->active_ms + silence;
    return deadline;
}

/* Looks at the deadlines again by then; but not sooner than LOOK_MS behind the last look, since each costs work for every
 * timed job. */
static void look_at(struct rc_worker *worker, uint64_t deadline) {
    uint64_t soonest = worker->looked_ms + LOOK_MS;

    if (deadline < soonest)
        deadline = soonest;
    if (deadline < worker->next_deadline_ms)
        worker->next_deadline_ms = deadline;
}

static void untime(struct rc_worker *worker, struct rc_job *job) {
    if (!job->is_timed)
        return;
    job->is_timed = false;
    if (job->timed_before != NULL)
        job->timed_before->timed_after = job->timed_after;
    else
        worker->timed = job->timed_after;
    if (job->timed_after != NULL)
        job->timed_after->timed_before = job->timed_before;
    job->timed_before = job->timed_after = NULL;
}

/* To be called when a deadline begins or comes nearer; one that moves away is noticed when it is looked at. */
static void time_job(struct rc_worker *worker, struct rc_job *job) {
    uint64_t deadline = deadline_of(job);

    if (deadline == UINT64_MAX)
        return;
    if (!job->is_timed) {
        job->is_timed = true;
        job->timed_before = NULL;
        job->timed_after = worker->timed;
        if (worker->timed != NULL)
            worker->timed->timed_before = job;
        worker->timed = job;
    }
    look_at(worker, deadline);
}

static void cut_at(struct rc_worker *worker, struct rc_job *job, uint64_t after_ms) {
    uint64_t at = worker->now_ms + after_ms;

    if (job->cut_ms == 0 || at < job->cut_ms)
        job->cut_ms = at;
    time_job(worker, job);
}

/* ---------------------------------------------------------------------------------------------------------------- end */

/* The first reason stands. Who began to take leave has ended it, whatever the reason is in the end. */
static void note_end(struct rc_job *job, uint8_t end, uint8_t by) {
    if (job->end != RC_END_NONE)
        return;
    job->end = end;
    if (!job->is_half_closed)
        job->by = by;
}

/* The engine lets go of both sockets. Lanes leave their queues: work in proportion to those that wait for a turn. */
static void finish(struct rc_worker *worker, struct rc_job *job) {
    struct rc_lane_queue *queues[] = {
        [RC_QUEUE_FRESH] = &worker->fresh, [RC_QUEUE_BUSY] = &worker->busy, [RC_QUEUE_STARVED] = &worker->starved};

    if (job->state == STATE_OVER)
        return;
    job->state = STATE_OVER;
    untime(worker, job);
    for (unsigned leg = 0; leg < 2; leg++) {
        if (job->is_watched & 1u << leg)
            epoll_ctl(worker->epoll, EPOLL_CTL_DEL, job->sockets[leg], NULL);
        struct rc_lane *lane = &job->lanes[leg];
        if (lane->queue != RC_QUEUE_NONE)
            unqueue(queues[lane->queue], lane);
        give_back(worker, lane);
    }
    job->timed_after = worker->over; /* not `next`: the caller may just be pushing the job onto the commands */
    worker->over = job;
}

static void abort_job(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_job *job = rc_lane_job(lane);

    note_end(job, RC_END_ABORTED, source_name(lane));
    finish(worker, job);
}

/* Both sides have taken leave, and everything is sent. 8.7: the relay closes first. */
static void linger(struct rc_worker *worker, struct rc_job *job, uint8_t by) {
    note_end(job, RC_END_CLOSED, by);
    job->state = STATE_LINGERING;
    job->cut_ms = 0;
    cut_at(worker, job, RC_LINGER_MS);
    for (unsigned leg = 0; leg < 2; leg++) {
        shutdown(job->sockets[leg], SHUT_WR);
        give_back(worker, &job->lanes[leg]);
        rouse(worker, &job->lanes[leg]);
    }
}

/* ------------------------------------------------------------------------------------------------------------- sending */

enum sent {
    SENT_ALL,
    SENT_PART, /* the destination takes no more now */
    SENT_LOST  /* the job is over */
};

static enum sent send_output(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_job *job = rc_lane_job(lane);

    while (lane->out_bytes > 0) {
        ssize_t count =
            send(destination_socket(lane), lane->slab + lane->out_at, lane->out_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        rc_count(&worker->counts.sends, 1);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            if (errno == EAGAIN || errno == EWOULDBLOCK) {
                rc_count(&worker->counts.blocked, 1);
                return SENT_PART;
            }
            abort_job(worker, other_lane(job, lane)); /* the destination is lost */
            return SENT_LOST;
        }
        rc_count(&worker->counts.bytes_out, (uint64_t)count);
        job->active_ms = worker->now_ms;
        lane->out_at += (uint32_t)count;
        lane->out_bytes -= (uint32_t)count;
    }
    return SENT_ALL;
}

/* What a step gave: its output is what the lane has to send now, its events are due after that. */
static void take_step(struct rc_worker *worker, struct rc_lane *lane, const struct rc_step *step) {
    struct rc_job *job = rc_lane_job(lane);

    lane->out_at = (uint32_t)step->out_offset;
    lane->out_bytes = (uint32_t)step->out_bytes;
    lane->events |= step->events & ~(uint32_t)(RC_STEP_MORE | RC_STEP_CONTROL_OWED_BACK);
    /* The limits of an end begin when it is heard of: a destination that reads nothing must not put them off. */
    if (step->events & RC_STEP_PROTOCOL_ERROR) {
        note_end(job, RC_END_PROTOCOL_ERROR, source_name(lane));
        job->offender = lane->index;
        cut_at(worker, job, RC_LINGER_MS);
    } else if (step->events & RC_STEP_SOURCE_FINISHED && !(step->events & RC_STEP_ABORT) && !job->is_half_closed) {
        job->is_half_closed = true;
        if (job->end == RC_END_NONE)
            job->by = source_name(lane);
        job->active_ms = worker->now_ms;
        time_job(worker, job);
    }
    if (step->events & RC_STEP_CONTROL_OWED_BACK)
        rouse(worker, other_lane(job, lane));
}

/* Bytes that one receive may bring into the lane's buffer. */
static size_t window_of(const struct rc_worker *worker, const struct rc_lane *lane) {
    return lane->is_small ? RC_SMALL_BUFFER_BYTES : worker->pool.buffer_bytes;
}

/* Makes what the brain itself owes to the destination the lane's output. The lane has a buffer, with nothing in it. */
static void take_owed(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_step step;
    int result = rc_session_control(rc_lane_job(lane)->session, lane->index, lane->slab,
                                    RC_HEADROOM + window_of(worker, lane), &step);

    RC_ASSERT(result == RC_OK);
    take_step(worker, lane, &step);
}

/* Everything of this lane is sent, and the other lane has nothing on its way either: is the session over? */
static bool check_finished(struct rc_worker *worker, struct rc_job *job, uint8_t by) {
    if (job->state != STATE_MOVING || !rc_session_is_finished(job->session))
        return false;
    for (unsigned index = 0; index < 2; index++)
        if (job->lanes[index].out_bytes > 0 || job->lanes[index].rest_bytes > 0 || job->lanes[index].events != 0)
            return false;
    linger(worker, job, by);
    return true;
}

/* The events of steps whose output has left. False when the lane's turn is over. */
static bool act(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_job *job = rc_lane_job(lane);
    uint32_t events = lane->events;

    lane->events = 0;
    if (events & RC_STEP_FINISHED && rules(job, lane)->destination == RC_LEG_RAW)
        shutdown(destination_socket(lane), SHUT_WR);
    if (events & RC_STEP_PROTOCOL_ERROR) {
        job->state = STATE_FAILING;
        rouse(worker, other_lane(job, lane));
        return false;
    }
    if (events & RC_STEP_ABORT) {
        abort_job(worker, lane);
        return false;
    }
    if (events & RC_STEP_SOURCE_FINISHED)
        lane->is_over = true;
    return !check_finished(worker, job, source_name(lane));
}

/* Can it be sent to? If not, EPOLLOUT will say when it can. */
static bool takes_more(int socket) {
    struct pollfd asked = {.fd = socket, .events = POLLOUT};

    return poll(&asked, 1, 0) != 0;
}

/* Sends what the brain itself owes to the destination. False when the lane's turn is over. */
static bool say_owed(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_job *job = rc_lane_job(lane);

    while (rc_session_owes_control(job->session, lane->index)) {
        /* A buffer that is kept for control must come back at once: none is lent for somebody who does not read. EPOLLOUT
         * brings the lane back here, and its next output says it, too. */
        if (lane->slab == NULL && worker->pool.free_count == 0 && !takes_more(destination_socket(lane)))
            break;
        if (lane->slab == NULL && !borrow(worker, lane, true)) {
            push(&worker->starved, lane, RC_QUEUE_STARVED);
            return false;
        }
        take_owed(worker, lane);
        bool said_nothing =
            lane->out_bytes == 0 && lane->events == 0; /* not at a frame boundary: a later step says it */
        if (send_output(worker, lane) != SENT_ALL)
            return false;
        if (lane->events != 0 && !act(worker, lane))
            return false;
        if (said_nothing)
            break;
    }
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- receiving */

/* Reads to drop: of a leg that has said its Close, or of one that we have closed. */
static void drain(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_job *job = rc_lane_job(lane);

    if (!lane->is_readable || lane->leftover_bytes == 0)
        return;
    ssize_t count = recv(source_socket(lane), worker->scratch, RC_CHUNK_BYTES, MSG_DONTWAIT);
    rc_count(&worker->counts.receives, 1);
    if (count > 0) {
        uint32_t dropped = (uint32_t)count;
        rc_count(&worker->counts.bytes_in, dropped);
        lane->leftover_bytes -= dropped < lane->leftover_bytes ? dropped : lane->leftover_bytes;
        lane->is_heavy = true;
        ready(worker, lane);
        return;
    }
    if (count < 0 && errno == EINTR) {
        ready(worker, lane);
        return;
    }
    lane->is_readable = false;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return;
    /* It hung up. While we still wait for the other side's Close, nobody is left to be sent it, or to send to. */
    lane->leftover_bytes = 0;
    if (job->state == STATE_MOVING && rules(job, lane)->source != RC_LEG_RAW) {
        /* But perhaps it only sends no more, and reads: then the other side is heard out, as long as it says something. */
        if (job->half_closed_ms == 0 || job->close_ms < job->half_closed_ms)
            job->half_closed_ms = job->close_ms;
        job->active_ms = worker->now_ms;
        time_job(worker, job);
    }
}

static void linger_turn(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_job *job = rc_lane_job(lane);

    drain(worker, lane);
    if (job->lanes[0].leftover_bytes == 0 && job->lanes[1].leftover_bytes == 0)
        finish(worker, job);
}

/* A broken rule: what is on its way to the offender goes out, then its Close. The other lane only stands still. */
static void failing_turn(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_job *job = rc_lane_job(lane);

    if (lane->index == job->session->failed_from)
        return;
    if (lane->out_bytes > 0 && send_output(worker, lane) != SENT_ALL)
        return;
    lane->events = 0;
    if (rc_session_owes_control(job->session, lane->index) && (lane->slab != NULL || borrow(worker, lane, true))) {
        lane->rest_bytes = 0;
        take_owed(worker, lane);
        if (send_output(worker, lane) != SENT_ALL)
            return;
    }
    finish(worker, job);
}

/* Brings input into the lane's buffer and through the brain. False when there is none, or the turn is over. */
static bool receive(struct rc_worker *worker, struct rc_lane *lane, bool *took) {
    struct rc_job *job = rc_lane_job(lane);
    struct rc_step step;
    int result;

    if (lane->early_bytes == 0 && !lane->is_readable)
        return false;
    if (!borrow(worker, lane, false)) {
        if (lane->is_lost)
            abort_job(worker, lane); /* what it said last is not worth a place among those who wait */
        else
            push(&worker->starved, lane, RC_QUEUE_STARVED);
        return false;
    }
    size_t window = window_of(worker, lane);
    *took = true;
    if (lane->early_bytes > 0) {
        result = rc_session_translate_from(job->session, lane->index, lane->early, lane->early_bytes, lane->slab,
                                           RC_HEADROOM + window, &step);
        RC_ASSERT(result == RC_OK);
        lane->early += step.consumed;
        lane->early_bytes -= (uint32_t)step.consumed;
        if (step.events & RC_STEP_SOURCE_FINISHED)
            lane->early_bytes = 0;
        take_step(worker, lane, &step);
        return true;
    }
    if (worker->served != job) {
        worker->served = job;
        worker->shared_ms = worker->now_ms;
    }
    if (window > RC_CHUNK_BYTES && worker->now_ms - worker->shared_ms < ALONE_MS)
        window = RC_CHUNK_BYTES;
    ssize_t count;
    do {
        count = recv(source_socket(lane), lane->slab + RC_HEADROOM, window, MSG_DONTWAIT);
        rc_count(&worker->counts.receives, 1);
    } while (count < 0 && errno == EINTR);
    if (count < 0) {
        give_back(worker, lane);
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            lane->is_readable = false;
        else
            abort_job(worker, lane);
        return false;
    }
    job->active_ms = worker->now_ms;
    lane->is_heavy = count >= HEAVY_BYTES;
    /* A short read was all there is; asking again would cost a call to hear so. But an end may stand right behind it,
     * told by an event that is spent. */
    lane->is_readable = count > 0 && ((size_t)count == window || lane->is_hung);
    if (count == 0) {
        lane->leftover_bytes = 0;
        result = rc_session_eof(job->session, lane->index, lane->slab, RC_HEADROOM + window, &step);
    } else {
        rc_count(&worker->counts.bytes_in, (uint64_t)count);
        result = rc_session_translate(job->session, lane->index, lane->slab, RC_HEADROOM, (size_t)count, &step);
        lane->rest_at = (uint32_t)(RC_HEADROOM + step.consumed);
        lane->rest_bytes = step.events & RC_STEP_MORE ? (uint32_t)((size_t)count - step.consumed) : 0;
    }
    RC_ASSERT(result == RC_OK);
    take_step(worker, lane, &step);
    return true;
}

/* Goes on with input that did not find room. Each call consumes some of it, see rc_session.c 2. */
static void resume(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_job *job = rc_lane_job(lane);
    struct rc_step step;
    int result = rc_session_translate(job->session, lane->index, lane->slab, lane->rest_at, lane->rest_bytes, &step);

    RC_ASSERT(result == RC_OK);
    lane->rest_at += (uint32_t)step.consumed;
    lane->rest_bytes = step.events & RC_STEP_MORE ? lane->rest_bytes - (uint32_t)step.consumed : 0;
    take_step(worker, lane, &step);
}

static void moving_turn(struct rc_worker *worker, struct rc_lane *lane) {
    struct rc_job *job = rc_lane_job(lane);
    bool took = false;

    for (;;) {
        if (lane->out_bytes > 0) {
            enum sent sent = send_output(worker, lane);
            if (sent == SENT_LOST)
                return;
            if (sent == SENT_PART) {
                if (lane->is_lost)
                    abort_job(worker, lane); /* nobody is left to say the rest, and nobody would notice */
                return;
            }
        }
        if (lane->rest_bytes > 0) {
            resume(worker, lane);
            continue;
        }
        if (lane->events != 0 && !act(worker, lane))
            return;
        if (!say_owed(worker, lane))
            return;
        give_back(worker, lane);
        if (check_finished(worker, job, RC_BY_RELAY))
            return;
        if (lane->is_over) {
            if (lane->is_lost && !job->session->is_closing) {
                abort_job(worker, lane); /* it hears nothing of what the other side still says */
                return;
            }
            if (rules(job, lane)->source != RC_LEG_RAW)
                drain(worker, lane);
            return;
        }
        if (took) { /* this turn's share is done */
            if (lane->is_readable || lane->early_bytes > 0)
                push(&worker->busy, lane, RC_QUEUE_BUSY);
            return;
        }
        if (!receive(worker, lane, &took))
            return;
    }
}

void rc_lane_turn(struct rc_worker *worker, struct rc_lane *lane) {
    rc_count(&worker->counts.turns, 1);
    switch (rc_lane_job(lane)->state) {
    case STATE_MOVING:
        moving_turn(worker, lane);
        break;
    case STATE_FAILING:
        failing_turn(worker, lane);
        break;
    case STATE_LINGERING:
        linger_turn(worker, lane);
        break;
    default:
        break;
    }
}

/* ---------------------------------------------------------------------------------------------------------------- jobs */

void rc_job_start(struct rc_worker *worker, struct rc_job *job) {
    for (unsigned leg = 0; leg < 2; leg++) {
        struct rc_lane *lane = &job->lanes[leg];
        lane->index = (uint8_t)leg;
        lane->leftover_bytes = RC_LEFTOVER_BYTES;
    }
    job->state = STATE_MOVING;
    job->active_ms = worker->now_ms;
    for (unsigned leg = 0; leg < 2; leg++) {
        /* Jobs are aligned: the lowest bit of the address says which leg it is. */
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                    .data.u64 = (uint64_t)(uintptr_t)job | leg};
        if (epoll_ctl(worker->epoll, EPOLL_CTL_ADD, job->sockets[leg], &event) < 0) {
            job->end = RC_END_REFUSED;
            job->error = errno;
            finish(worker, job);
            return;
        }
        job->is_watched |= (uint8_t)(1u << leg);
    }
    if (job->session->is_closing) {
        note_end(job, RC_END_RELAY_CLOSED, RC_BY_RELAY);
        cut_at(worker, job, job->close_ms);
    }
    time_job(worker, job);
    for (unsigned leg = 0; leg < 2; leg++)
        if (job->lanes[leg].early_bytes > 0 || rc_session_owes_control(job->session, leg))
            ready(worker, &job->lanes[leg]);
}

void rc_job_event(struct rc_worker *worker, struct rc_job *job, unsigned leg, uint32_t events) {
    struct rc_lane *from = &job->lanes[leg], *to = &job->lanes[1 - leg];

    if (job->state == STATE_OVER)
        return;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        from->is_readable = true;
        if (events & EPOLLERR)
            from->is_lost = true;
        if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            from->is_hung = true;
        if (from->is_lost)
            rouse(worker, from);
        else
            ready(worker, from);
    }
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR) &&
        (to->out_bytes > 0 || to->events != 0 || rc_session_owes_control(job->session, to->index)))
        rouse(worker, to);
}

void rc_job_close(struct rc_worker *worker, struct rc_job *job) {
    if (job->state != STATE_MOVING || job->end != RC_END_NONE)
        return;
    note_end(job, RC_END_RELAY_CLOSED, RC_BY_RELAY);
    int result = rc_session_close(job->session, job->close_code, job->close_reason, job->close_reason_bytes);
    RC_ASSERT(result == RC_OK);
    cut_at(worker, job, job->close_ms);
    for (unsigned leg = 0; leg < 2; leg++)
        rouse(worker, &job->lanes[leg]);
}

void rc_job_cancel(struct rc_worker *worker, struct rc_job *job) {
    if (job->state == STATE_OVER)
        return;
    job->end = RC_END_CANCELLED;
    job->by = RC_BY_RELAY;
    finish(worker, job);
}

void rc_job_deadlines(struct rc_worker *worker) {
    struct rc_job *next;

    worker->next_deadline_ms = UINT64_MAX;
    worker->looked_ms = worker->now_ms;
    for (struct rc_job *job = worker->timed; job != NULL; job = next) {
        uint64_t deadline = deadline_of(job);
        next = job->timed_after;
        if (deadline > worker->now_ms) {
            look_at(worker, deadline);
            continue;
        }
        if (job->state == STATE_MOVING && job->end == RC_END_NONE) {
            if (job->is_half_closed) {
                job->end = RC_END_HALF_CLOSED_TIMEOUT; /* `by` stays who had closed */
            } else {
                note_end(job, RC_END_IDLE_TIMEOUT, RC_BY_RELAY);
            }
        }
        finish(worker, job);
    }
}

#else
typedef int rc_lane_is_for_linux;
#endif
