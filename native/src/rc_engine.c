/* Theory of operation
 *
 * 1. A round of a thread
 *
 *      epoll_wait (not waiting while a lane is ready)
 *        ├─ wake-up: commands
 *        ├─ sockets: lanes into queues
 *        └─ nothing by the next deadline: deadlines
 *      the fresh lanes of this moment, one turn each; one busy lane, one turn
 *      starved lanes, as far as buffers came back
 *      jobs that are over: to the completions
 *
 *    Each step is bounded: RC_EVENTS events, the lanes of those, one chunk each. So a command, a deadline or a small message
 *    waits for one round at the most.
 *
 * 2. Commands without locks
 *
 *    Every thread has a stack of jobs with commands; the caller pushes, the thread takes all of it. `job->commands` holds the
 *    bits that are still to be looked at, and who changes it from 0 owns the right to push: so a job stands in the stack once.
 *
 *      caller:  old = fetch_or(commands, bit);  old == 0 ? push, and wake the thread if the stack was empty
 *      thread:  take the stack; for each job: bits = exchange(commands, 0); obey
 *
 *    The same word settles who speaks last. A completed job may be freed by the caller, so it must not stand in the stack:
 *
 *      thread, at the end of a job:  old = fetch_or(commands, DONE);  old == 0 ? complete
 *                                    else it is in the stack, and is completed when it is taken from there
 *      caller, later:                old has DONE: nothing is pushed any more
 *
 * 3. Completions are a stack as well, pushed by all threads and taken by the caller. Only who pushes onto an empty stack
 *    writes to the eventfd, and the caller clears it when it has found nothing more, and then looks once again: no wake-up is
 *    lost, a hundred completions cost one, and the eventfd stays readable while the caller leaves some for later.
 */
#define _GNU_SOURCE /* pthread_setname_np */
#include "rc_engine.h"

#if RC_ENGINE_AVAILABLE
#include "rc_lane.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum {
    RC_EVENTS = 64,
    SLEEP_MAX_MS = 60000
};

enum {
    COMMAND_START = 1,
    COMMAND_CLOSE = 2,
    COMMAND_CANCEL = 4,
    DONE = 8
};

struct thread {
    struct rc_worker worker;
    struct rc_engine *engine;
    pthread_t id;
    int wake; /* eventfd: commands, or the end */
    bool is_started;
    uint32_t is_stopping;    /* atomic */
    struct rc_job *jobs;     /* all that it has */
    struct rc_job *commands; /* atomic: the stack of section 2 */
    uint64_t submitted;      /* counted by the caller */
};

struct rc_engine {
    struct rc_job *completions; /* atomic: the stack of section 3 */
    struct rc_job *taken;       /* the caller's part of it, oldest first */
    int fd;
    unsigned count;
    bool is_shut;
    struct thread threads[];
};

_Static_assert(_Alignof(struct rc_job) > 1, "the lowest bit of a job's address names the leg");

bool rc_engine_is_available(void) {
    return true;
}

/* --------------------------------------------------------------------------------------------------- stacks and signals */

/* Returns whether it was empty before. */
static bool push(struct rc_job **stack, struct rc_job *job) {
    struct rc_job *head = __atomic_load_n(stack, __ATOMIC_RELAXED);

    do {
        job->next = head;
    } while (!__atomic_compare_exchange_n(stack, &head, job, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    return head == NULL;
}

/* The whole stack, first pushed first. */
static struct rc_job *take_all(struct rc_job **stack) {
    struct rc_job *job = __atomic_exchange_n(stack, NULL, __ATOMIC_ACQ_REL), *first = NULL;

    while (job != NULL) {
        struct rc_job *next = job->next;
        job->next = first;
        first = job;
        job = next;
    }
    return first;
}

/* A full eventfd counter, the only way to fail, is as loud a signal as one more. */
static void ring(int fd) {
    uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

static void hush(int fd) {
    uint64_t count;
    while (read(fd, &count, sizeof count) < 0 && errno == EINTR) {
    }
}

static void command(struct thread *thread, struct rc_job *job, uint32_t bit) {
    if (__atomic_fetch_or(&job->commands, bit, __ATOMIC_ACQ_REL) == 0 && push(&thread->commands, job))
        ring(thread->wake);
}

/* ------------------------------------------------------------------------------------------------------ a thread's round */

static uint64_t clock_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void complete(struct thread *thread, struct rc_job *job) {
    if (job->before != NULL)
        job->before->after = job->after;
    else
        thread->jobs = job->after;
    if (job->after != NULL)
        job->after->before = job->before;
    rc_count(&thread->worker.counts.completed, 1);
    if (push(&thread->engine->completions, job))
        ring(thread->engine->fd);
}

static void complete_over(struct thread *thread) {
    struct rc_job *job = thread->worker.over, *next;

    thread->worker.over = NULL;
    for (; job != NULL; job = next) {
        next = job->timed_after;
        if (__atomic_fetch_or(&job->commands, DONE, __ATOMIC_ACQ_REL) == 0)
            complete(thread, job);
    }
}

static void obey(struct thread *thread) {
    struct rc_worker *worker = &thread->worker;
    struct rc_job *job, *next;

    hush(thread->wake);
    for (job = take_all(&thread->commands); job != NULL; job = next) {
        next = job->next;
        rc_count(&worker->counts.commands, 1);
        if (__atomic_load_n(&job->commands, __ATOMIC_ACQUIRE) & DONE) {
            complete(thread, job);
            continue;
        }
        uint32_t bits = __atomic_exchange_n(&job->commands, 0, __ATOMIC_ACQ_REL);
        if (bits & COMMAND_START) {
            job->before = NULL;
            job->after = thread->jobs;
            if (thread->jobs != NULL)
                thread->jobs->before = job;
            thread->jobs = job;
            rc_job_start(worker, job);
        }
        if (bits & COMMAND_CLOSE && !rc_job_is_over(job))
            rc_job_close(worker, job);
        if (bits & COMMAND_CANCEL)
            rc_job_cancel(worker, job);
    }
}

static void publish(struct rc_worker *worker) {
    uint32_t large = worker->pool.buffers - worker->pool.free_count;
    uint32_t small = worker->reserve.buffers - worker->reserve.free_count;

    rc_set(&worker->counts.buffers_in_use, (uint64_t)large + small);
    rc_set(&worker->counts.buffers_peak, (uint64_t)worker->pool.peak + worker->reserve.peak);
    rc_set(&worker->counts.starved, worker->starved.count);
}

static int patience(const struct rc_worker *worker) {
    if (worker->fresh.first != NULL || worker->busy.first != NULL)
        return 0;
    if (worker->next_deadline_ms == UINT64_MAX)
        return -1;
    uint64_t now = clock_ms();
    if (worker->next_deadline_ms <= now)
        return 0;
    uint64_t left = worker->next_deadline_ms - now;
    return left < SLEEP_MAX_MS ? (int)left : SLEEP_MAX_MS;
}

static void *run(void *argument) {
    struct thread *thread = argument;
    struct rc_worker *worker = &thread->worker;
    struct epoll_event events[RC_EVENTS];
    bool stops = false;

    while (!stops) {
        int timeout = patience(worker);
        int count = epoll_wait(worker->epoll, events, RC_EVENTS, timeout);
        rc_count(&worker->counts.waits, 1);
        rc_count(&worker->counts.sleeps, timeout != 0);
        worker->now_ms = clock_ms();

        for (int i = 0; i < count; i++) {
            uintptr_t name = (uintptr_t)events[i].data.u64;
            if (name != 0)
                rc_job_event(worker, (struct rc_job *)(name & ~(uintptr_t)1), name & 1, events[i].events);
            else
                obey(thread);
        }
        if (worker->next_deadline_ms <= worker->now_ms)
            rc_job_deadlines(worker);
        for (uint64_t left = worker->fresh.count; left > 0 && worker->fresh.first != NULL; left--)
            rc_lane_turn(worker, rc_lane_pop(&worker->fresh));
        if (worker->busy.first != NULL)
            rc_lane_turn(worker, rc_lane_pop(&worker->busy));
        if (worker->starved.first != NULL)
            rc_lane_feed(worker);
        if (__atomic_load_n(&thread->is_stopping, __ATOMIC_ACQUIRE)) {
            obey(thread);
            for (struct rc_job *job = thread->jobs; job != NULL; job = job->after)
                rc_job_cancel(worker, job);
            stops = true;
        }
        publish(worker);
        complete_over(thread);
    }
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------------- open and shut */

static int open_thread(struct rc_engine *engine, struct thread *thread, uint32_t buffers, uint32_t buffer_bytes) {
    struct rc_worker *worker = &thread->worker;
    uint32_t small = buffers < RC_POOL_BUFFERS_MAX / RC_SMALL_PER_BUFFER - RC_CONTROL_BUFFERS
                         ? buffers * RC_SMALL_PER_BUFFER + RC_CONTROL_BUFFERS
                         : RC_POOL_BUFFERS_MAX;

    thread->engine = engine;
    worker->next_deadline_ms = UINT64_MAX;
    worker->fresh.last = &worker->fresh.first;
    worker->busy.last = &worker->busy.first;
    worker->starved.last = &worker->starved.first;
    int result = rc_pool_open(&worker->pool, buffers, buffer_bytes);
    if (result == RC_OK)
        result = rc_pool_open(&worker->reserve, small, RC_SMALL_BUFFER_BYTES);
    if (result != RC_OK)
        return result;
    worker->scratch = malloc(RC_CHUNK_BYTES);
    worker->epoll = epoll_create1(EPOLL_CLOEXEC);
    thread->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    if (worker->scratch == NULL || worker->epoll < 0 || thread->wake < 0 ||
        epoll_ctl(worker->epoll, EPOLL_CTL_ADD, thread->wake, &event) < 0)
        return RC_ENOMEM;

    /* Signals are for the threads of whoever embeds us. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread->is_started = pthread_create(&thread->id, NULL, run, thread) == 0;
    if (thread->is_started)
        pthread_setname_np(thread->id, "rc_engine"); /* for top -H, perf and the like */
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return thread->is_started ? RC_OK : RC_ENOMEM;
}

int rc_engine_open(struct rc_engine **opened, unsigned threads, uint32_t buffers, uint32_t buffer_bytes) {
    *opened = NULL;
    if (threads == 0 || threads > RC_ENGINE_THREADS_MAX || buffers == 0 || buffers > RC_POOL_BUFFERS_MAX ||
        buffer_bytes < RC_SMALL_BUFFER_BYTES || buffer_bytes > RC_POOL_BUFFER_BYTES_MAX)
        return RC_EINVAL;
    struct rc_engine *engine = calloc(1, sizeof *engine + threads * sizeof engine->threads[0]);
    if (engine == NULL)
        return RC_ENOMEM;

    engine->count = threads;
    engine->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (unsigned i = 0; i < threads; i++)
        engine->threads[i].wake = engine->threads[i].worker.epoll = -1;
    int result = engine->fd < 0 ? RC_ENOMEM : RC_OK;
    for (unsigned i = 0; i < threads && result == RC_OK; i++) {
        uint32_t share = buffers / threads + (i < buffers % threads);
        result = open_thread(engine, &engine->threads[i], share > 0 ? share : 1, buffer_bytes);
    }
    if (result != RC_OK) {
        rc_engine_free(engine);
        return result;
    }
    *opened = engine;
    return RC_OK;
}

void rc_engine_shut(struct rc_engine *engine) {
    if (engine->is_shut)
        return;
    engine->is_shut = true;
    for (unsigned i = 0; i < engine->count; i++) {
        struct thread *thread = &engine->threads[i];
        if (!thread->is_started)
            continue;
        __atomic_store_n(&thread->is_stopping, 1, __ATOMIC_RELEASE);
        ring(thread->wake);
    }
    for (unsigned i = 0; i < engine->count; i++)
        if (engine->threads[i].is_started)
            pthread_join(engine->threads[i].id, NULL);
}

void rc_engine_free(struct rc_engine *engine) {
    if (engine == NULL)
        return;
    rc_engine_shut(engine);
    for (unsigned i = 0; i < engine->count; i++) {
        struct thread *thread = &engine->threads[i];
        rc_pool_close(&thread->worker.pool);
        rc_pool_close(&thread->worker.reserve);
        free(thread->worker.scratch);
        if (thread->worker.epoll >= 0)
            close(thread->worker.epoll);
        if (thread->wake >= 0)
            close(thread->wake);
    }
    if (engine->fd >= 0)
        close(engine->fd);
    free(engine);
}

/* ----------------------------------------------------------------------------------------------------- the caller's side */

int rc_engine_fd(const struct rc_engine *engine) {
    return engine->fd;
}

/* Completed first: a job completed meanwhile must not be missing among those submitted. */
static uint64_t load_of(const struct thread *thread) {
    uint64_t completed = __atomic_load_n(&thread->worker.counts.completed, __ATOMIC_ACQUIRE);
    uint64_t submitted = rc_counted(&thread->submitted);

    return submitted > completed ? submitted - completed : 0;
}

void rc_engine_submit(struct rc_engine *engine, struct rc_job *job) {
    struct thread *best = &engine->threads[0];

    RC_ASSERT(!engine->is_shut);
    for (unsigned i = 1; i < engine->count; i++)
        if (load_of(&engine->threads[i]) < load_of(best))
            best = &engine->threads[i];
    job->thread = (uint32_t)(best - engine->threads);
    rc_count(&best->submitted, 1);
    command(best, job, COMMAND_START);
}

int rc_engine_close(struct rc_engine *engine, struct rc_job *job, uint16_t code, const uint8_t *reason, size_t length) {
    if (!rc_close_code_is_valid(code) || length > RC_CLOSE_REASON_MAX || !rc_utf8_is_valid(reason, length))
        return RC_EINVAL;
    if (job->close_code != 0)
        return RC_OK;
    job->close_code = code;
    job->close_reason = reason;
    job->close_reason_bytes = (uint8_t)length;
    command(&engine->threads[job->thread], job, COMMAND_CLOSE);
    return RC_OK;
}

void rc_engine_cancel(struct rc_engine *engine, struct rc_job *job) {
    command(&engine->threads[job->thread], job, COMMAND_CANCEL);
}

size_t rc_engine_completions(struct rc_engine *engine, uint64_t *tokens, size_t room) {
    size_t count = 0;

    while (count < room) {
        if (engine->taken == NULL)
            engine->taken = take_all(&engine->completions);
        if (engine->taken == NULL) {
            hush(engine->fd);
            engine->taken = take_all(&engine->completions);
        }
        if (engine->taken == NULL)
            break;
        struct rc_job *job = engine->taken;
        engine->taken = job->next;
        tokens[count++] = job->token;
    }
    return count;
}

void rc_engine_statistics(const struct rc_engine *engine, struct rc_engine_statistics *sum) {
    memset(sum, 0, sizeof *sum);
    for (unsigned i = 0; i < engine->count; i++) {
        const struct thread *thread = &engine->threads[i];
        const struct rc_engine_statistics *counts = &thread->worker.counts;
        sum->jobs += load_of(thread);
        sum->buffers_in_use += rc_counted(&counts->buffers_in_use);
        sum->starved += rc_counted(&counts->starved);
        sum->buffers_peak += rc_counted(&counts->buffers_peak);
        sum->exhausted += rc_counted(&counts->exhausted);
        sum->completed += rc_counted(&counts->completed);
        sum->turns += rc_counted(&counts->turns);
        sum->receives += rc_counted(&counts->receives);
        sum->sends += rc_counted(&counts->sends);
        sum->blocked += rc_counted(&counts->blocked);
        sum->waits += rc_counted(&counts->waits);
        sum->sleeps += rc_counted(&counts->sleeps);
        sum->commands += rc_counted(&counts->commands);
        sum->bytes_in += rc_counted(&counts->bytes_in);
        sum->bytes_out += rc_counted(&counts->bytes_out);
    }
}

#else

bool rc_engine_is_available(void) {
    return false;
}

int rc_engine_open(struct rc_engine **engine, unsigned threads, uint32_t buffers, uint32_t buffer_bytes) {
    (void)threads, (void)buffers, (void)buffer_bytes;
    *engine = NULL;
    return RC_EINVAL;
}

/* The others are never reached: there is no engine to call them with. */
void rc_engine_shut(struct rc_engine *engine) {
    (void)engine;
}

void rc_engine_free(struct rc_engine *engine) {
    (void)engine;
}

int rc_engine_fd(const struct rc_engine *engine) {
    (void)engine;
    return -1;
}

void rc_engine_submit(struct rc_engine *engine, struct rc_job *job) {
    (void)engine, (void)job;
}

int rc_engine_close(struct rc_engine *engine, struct rc_job *job, uint16_t code, const uint8_t *reason, size_t length) {
    (void)engine, (void)job, (void)code, (void)reason, (void)length;
    return RC_EINVAL;
}

void rc_engine_cancel(struct rc_engine *engine, struct rc_job *job) {
    (void)engine, (void)job;
}

size_t rc_engine_completions(struct rc_engine *engine, uint64_t *tokens, size_t room) {
    (void)engine, (void)tokens, (void)room;
    return 0;
}

void rc_engine_statistics(const struct rc_engine *engine, struct rc_engine_statistics *statistics) {
    (void)engine;
    *statistics = (struct rc_engine_statistics){0};
}
#endif
