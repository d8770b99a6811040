/* Dials, runs jobs in two phases (warm, then measured) and prints what was delivered.
 *
 * A job keeps its streams busy until the phase is over and then brings them to rest: only what the other end has confirmed counts,
 * and the clock of a job stops with its last confirmation. In the warm phase both ends compare every byte with the pattern; in the
 * measured one they count bytes and messages, and pings and requests are still compared.
 *
 * Paced pings have moments of their own, whatever became of those before: stream k of a job sends at k, count + k, 2 count + k ...
 * steps behind the beginning of the phase, and latency counts from that moment, however late we are. All whose moment lies in the
 * phase are sent and waited for.
 */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

/* STALL: a sink whose far end does not read while the other jobs run. UNREAD: a source that we do not read meanwhile. */
enum kind { SINK, SOURCE, ECHO, PING, IDLE, JOIN, STALL, UNREAD, HTTP, KINDS };
static const char *const kind_names[] = {"sink", "source", "echo", "ping", "idle", "join", "stall", "unread", "http"};

/* Log-linear: 64 steps to each power of two, so a value is off by at most 1/64 of itself. */
#define STEPS 64
#define BUCKETS (64 * STEPS)

struct job {
    enum kind kind;
    size_t size;
    unsigned count, busy;
    const struct block *block;
    struct stream *first;
    uint64_t step_ns;       /* from one paced ping of the job to the next; 0: closed loops */
    uint64_t next_step;     /* paced pings of the job sent in this phase */
    uint64_t late[BUCKETS]; /* how much behind its moment a paced ping went out */
    uint64_t bytes, messages, ended_ns;
    uint64_t least, most; /* bytes confirmed on the stream that had the fewest, and on the one that had the most */
    uint64_t latency[BUCKETS];
};

struct stream {
    struct conn c;
    struct job *job;
    bool at_rest, stopping;
    uint64_t position, sent_ns;
    uint64_t due_ns;     /* moment of the paced ping that is answered next */
    uint64_t paced_sent; /* in this phase */
    uint64_t received_bytes, received_messages, message_offset;
    uint8_t last_close;
    char answer[COMMAND_BYTES + 1];
    size_t answer_len;
    struct exchange *exchange; /* HTTP only */
};

/* The request under way on a connection. */
struct exchange {
    struct http_reader in;
    struct outgoing out;
    char *head, *id; /* id points into head: REQUEST_ID_CHARS digits, the only part that changes */
    size_t head_len;
    uint64_t number;
};

static const struct settings *settings;
static struct job jobs[MAX_JOBS];
static struct stream *streams;
static unsigned stream_count, dialling, open_count, busy_count;
static bool checks, over, finish_asked, leaving;
static const char *phase = "dialling";
static uint64_t paced_from_ns, paced_until_ns; /* moments of paced pings are not before the one, and before the other */
static uint64_t memory_open[MAX_WATCHED], memory_stalled[MAX_WATCHED];

static void count_in(uint64_t buckets[BUCKETS], uint64_t ns)
{
    unsigned index;
    if (ns < STEPS) {
        index = (unsigned)ns;
    } else {
        unsigned shift = 63 - (unsigned)__builtin_clzll(ns) - 6;
        index = (shift + 1) * STEPS + (unsigned)((ns >> shift) - STEPS);
    }
    buckets[index]++;
}

static void count_latency(struct job *job, uint64_t ns)
{
    count_in(job->latency, ns);
}

/* Middle of a bucket, in ns. */
static uint64_t bucket_value(unsigned index)
{
    if (index < STEPS)
        return index;
    unsigned shift = index / STEPS - 1;
    return ((uint64_t)(index % STEPS + STEPS) << shift) + ((uint64_t)1 << shift >> 1);
}

static const struct conn_ops stream_ops, http_ops;

static void dial(struct stream *s)
{
    const struct listen_line *to = &settings->listens[0];
    dialling++;
    s->sent_ns = now_ns();
    if (s->job->kind == HTTP)
        conn_dial(&s->c, &http_ops, to->host, to->port, NULL, NULL);
    else
        conn_dial(&s->c, &stream_ops, to->host, to->port, to->target, settings->headers);
}

static void rest(struct stream *s)
{
    if (s->at_rest)
        return;
    s->at_rest = true;
    busy_count--;
    if (--s->job->busy == 0)
        s->job->ended_ns = now_ns();
}

static void ping(struct stream *s)
{
    const struct block *block = s->job->block;
    s->sent_ns = now_ns();
    s->position = 0;
    if (s->c.out.end > s->c.out.start) /* the order to echo is still on its way out */
        conn_queue(&s->c, block->data, block->frame);
    else {
        long n = conn_send(&s->c, block->data, block->frame);
        if (n >= 0 && (size_t)n < block->frame)
            conn_queue(&s->c, block->data + n, block->frame - (size_t)n);
    }
}

/* Sends every paced ping whose moment has come, and sees to the next. What comes due meanwhile waits for the next turn: answers
 * have to be read even where sending takes all the time there is. */
static void send_due(void)
{
    uint64_t next = UINT64_MAX, until = now_ns() + 1;
    if (until > paced_until_ns)
        until = paced_until_ns;
    for (unsigned i = 0; i < settings->job_count; i++) {
        struct job *job = &jobs[i];
        if (job->step_ns == 0)
            continue;
        uint64_t at = paced_from_ns + job->next_step * job->step_ns;
        for (; at < until; at += job->step_ns) {
            struct stream *s = job->first + job->next_step++ % job->count;
            count_in(job->late, now_ns() - at);
            s->paced_sent++;
            ping(s);
            conn_flush(&s->c);
        }
        if (at < paced_until_ns && at < next)
            next = at;
    }
    loop_tick_at(next, send_due);
}

/* The first moments of a phase that lasts until end_ns. */
static void begin_paced(uint64_t from_ns, uint64_t end_ns)
{
    paced_from_ns = from_ns;
    paced_until_ns = end_ns;
    for (unsigned i = 0; i < settings->job_count; i++) {
        jobs[i].next_step = 0;
        for (unsigned k = 0; k < jobs[i].count; k++) {
            jobs[i].first[k].due_ns = from_ns + k * jobs[i].step_ns;
            jobs[i].first[k].paced_sent = 0;
        }
    }
    send_due();
}

/* GET without a body, POST with one. */
static void make_request_head(struct stream *s)
{
    const struct listen_line *to = &settings->listens[0];
    struct exchange *x = s->exchange = calloc(1, sizeof *x);
    char host[INET_ADDRSTRLEN], length[100] = "";
    if (x == NULL)
        fatal("out of memory");
    inet_ntop(AF_INET, &to->host, host, sizeof host);
    if (s->job->size > 0)
        snprintf(length, sizeof length, "Content-Type: application/octet-stream\r\nContent-Length: %zu\r\n", s->job->size);
    int len = asprintf(&x->head, "%s %s HTTP/1.1\r\nHost: %s:%u\r\n" REQUEST_ID_HEADER ": %0*x\r\n%s%s\r\n",
                       s->job->size > 0 ? "POST" : "GET", to->target, host, to->port, REQUEST_ID_CHARS, 0, length,
                       settings->headers);
    if (len < 0)
        fatal("out of memory");
    x->head_len = (size_t)len;
    x->id = strstr(x->head, "\r\n" REQUEST_ID_HEADER) + sizeof REQUEST_ID_HEADER + 3;
    x->number = (uint64_t)(s - streams) << 40;
    x->in.reads_answers = true;
}

static void request(struct stream *s)
{
    static const char digits[] = "0123456789abcdef";
    struct exchange *x = s->exchange;
    uint64_t number = ++x->number;
    for (unsigned i = REQUEST_ID_CHARS; i-- > 0; number >>= 4)
        x->id[i] = digits[number & 15];
    x->out = (struct outgoing){{{x->head, x->head_len}, {pattern, s->job->size}}, 0, 2};
    s->received_bytes = 0;
    s->sent_ns = now_ns();
    conn_send_parts(&s->c, &x->out);
}

static void begin(struct stream *s)
{
    s->at_rest = s->stopping = false;
    s->position = s->received_bytes = s->received_messages = s->message_offset = 0;
    switch (s->job->kind) {
    case SINK:
        conn_queue_text(&s->c, "check %d", checks);
        s->c.wants_out = true;
        break;
    case STALL:
        conn_queue_text(&s->c, "check %d", checks);
        conn_queue_text(&s->c, "stall");
        s->c.wants_out = true;
        break;
    case UNREAD:
    case SOURCE:
        conn_queue_text(&s->c, "source %zu", s->job->size);
        s->c.paused = s->job->kind == UNREAD;
        break;
    case ECHO:
        conn_queue_text(&s->c, "echo");
        s->c.wants_out = true;
        break;
    case PING:
    case IDLE:
        conn_queue_text(&s->c, "echo");
        if (s->job->step_ns == 0)
            ping(s);
        break;
    case JOIN:
        if (s->c.state == CONN_OPEN)
            conn_queue_frame(&s->c, OP_CLOSE, "\x03\xe8", 2);
        else
            dial(s);
        break;
    case HTTP:
        request(s);
        break;
    case KINDS:
        break;
    }
    if (s->c.state == CONN_OPEN)
        conn_flush(&s->c);
}

static void check_confirmed(struct stream *s, uint64_t bytes, uint64_t messages)
{
    if (s->received_bytes != bytes || s->received_messages != messages)
        fatal("%s: %llu bytes in %llu messages were sent and %llu in %llu arrived", kind_names[s->job->kind],
              (unsigned long long)bytes, (unsigned long long)messages, (unsigned long long)s->received_bytes,
              (unsigned long long)s->received_messages);
    s->job->bytes += bytes;
    s->job->messages += messages;
    if (bytes < s->job->least)
        s->job->least = bytes;
    if (bytes > s->job->most)
        s->job->most = bytes;
    rest(s);
}

/* Brings a stream of paced pings to rest when the last one that the phase asks for is back. */
static void rest_paced(struct stream *s)
{
    if (over && s->received_messages == s->paced_sent && !s->at_rest)
        check_confirmed(s, s->paced_sent * s->job->size, s->paced_sent);
}

/* The phase is over for this stream: brings it to rest, in its own time. */
static void stop(struct stream *s)
{
    s->stopping = true;
    if (s->job->kind == SOURCE || s->job->kind == UNREAD)
        conn_queue_text(&s->c, "stop");
    if (s->job->step_ns > 0)
        rest_paced(s);
    s->c.paused = false;
    if (s->c.state == CONN_OPEN)
        conn_flush(&s->c);
}

static void take_answer(struct stream *s)
{
    unsigned long long bytes, messages, wrong;
    s->answer[s->answer_len] = '\0';
    s->answer_len = 0;
    if (sscanf(s->answer, "report %llu %llu %llu", &bytes, &messages, &wrong) != 3)
        fatal("an answer that is not known: %s", s->answer);
    if (wrong != 0)
        fatal("%llu pieces arrived changed", wrong);
    if (s->job->kind == SINK || s->job->kind == STALL) {
        s->received_bytes = bytes;
        s->received_messages = messages;
        messages = s->position / s->job->block->frame;
        bytes = messages * s->job->size;
    }
    check_confirmed(s, bytes, messages);
}

static void take_data(struct stream *s, struct piece *piece)
{
    struct job *job = s->job;
    bool compares = checks || job->kind == PING || job->kind == IDLE;
    if (piece->masked)
        fatal("a masked frame from the server side");
    if (compares && (s->message_offset + piece->len > job->size ||
                     memcmp(piece->data, pattern + s->message_offset, piece->len) != 0))
        fatal("%s: a message arrived changed at byte %llu", kind_names[job->kind], (unsigned long long)s->message_offset);
    s->received_bytes += piece->len;
    s->message_offset += piece->len;
    if (!piece->ends_frame || !piece->fin)
        return;
    if (s->message_offset != job->size)
        fatal("%s: a message of %llu bytes arrived with %llu", kind_names[job->kind], (unsigned long long)job->size,
              (unsigned long long)s->message_offset);
    s->message_offset = 0;
    s->received_messages++;
    if (job->step_ns > 0) {
        if (s->received_messages > s->paced_sent)
            fatal("an echo of nothing");
        count_latency(job, now_ns() - s->due_ns);
        s->due_ns += job->step_ns * job->count;
        rest_paced(s);
    } else if (job->kind == PING || job->kind == IDLE) {
        count_latency(job, now_ns() - s->sent_ns);
        if (over || job->kind == IDLE)
            check_confirmed(s, s->received_bytes, s->received_messages);
        else
            ping(s);
    }
}

static void stream_data(struct conn *c, uint8_t *data, size_t len)
{
    struct stream *s = (struct stream *)c;
    struct piece piece;
    uint8_t *end = data + len;
    int result;
    while ((result = frame_next(&c->in, &data, end, &piece)) > 0) {
        if (piece.opcode == OP_BINARY) {
            take_data(s, &piece);
        } else if (piece.opcode == OP_TEXT) {
            if (s->answer_len + piece.len > COMMAND_BYTES)
                fatal("an answer of more than %d bytes", COMMAND_BYTES);
            memcpy(s->answer + s->answer_len, piece.data, piece.len);
            s->answer_len += piece.len;
            if (piece.ends_frame && piece.fin)
                take_answer(s);
        } else if (piece.opcode == OP_CLOSE) {
            s->c.ops->lost(c, "Close");
            return;
        } else {
            conn_control(c, &piece);
        }
        if (c->state != CONN_OPEN)
            return;
    }
    if (result < 0)
        fatal("a stream with broken framing");
    if (s->job->kind == ECHO && s->stopping && !c->wants_out && !s->at_rest &&
        s->received_messages == s->position / s->job->block->frame)
        check_confirmed(s, s->received_messages * s->job->size, s->received_messages);
}

static void stream_writable(struct conn *c)
{
    struct stream *s = (struct stream *)c;
    if (!conn_pump(c, s->job->block, &s->position, s->stopping))
        return;
    c->wants_out = false;
    if (s->job->kind == SINK || s->job->kind == STALL)
        conn_queue_text(c, "report");
    else if (s->received_messages == s->position / s->job->block->frame)
        check_confirmed(s, s->received_messages * s->job->size, s->received_messages);
}

static void stream_opened(struct conn *c)
{
    struct stream *s = (struct stream *)c;
    dialling--;
    open_count++;
    if (s->job->kind != JOIN || s->at_rest)
        return;
    count_latency(s->job, now_ns() - s->sent_ns);
    s->job->messages++;
    if (over)
        rest(s);
    else
        conn_queue_frame(c, OP_CLOSE, "\x03\xe8", 2);
}

static void stream_lost(struct conn *c, const char *why)
{
    struct stream *s = (struct stream *)c;
    if (!leaving && (s->job->kind != JOIN || strcmp(why, "Close") != 0))
        fatal("%s stream lost while %s: %s", kind_names[s->job->kind], phase, why);
    open_count--;
    conn_drop(c);
    if (leaving)
        return;
    if (over)
        rest(s);
    else
        dial(s);
}

static const struct conn_ops stream_ops = {stream_opened, stream_data, stream_writable, stream_lost};

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static void check_answer_head(struct stream *s)
{
    struct exchange *x = s->exchange;
    char id[REQUEST_ID_CHARS + 1];
    if (strncmp(x->in.head, "HTTP/1.1 200", 12) != 0)
        fatal("a request was answered with: %.*s", (int)strcspn(x->in.head, "\r\n"), x->in.head);
    if (x->out.at < x->out.count)
        fatal("a request was answered before it was sent");
    if (!find_header(x->in.head, REQUEST_ID_HEADER, id, sizeof id) || memcmp(id, x->id, REQUEST_ID_CHARS) != 0)
        fatal("a request was answered with another's answer");
    if (find_header(x->in.head, "Connection", id, sizeof id) && strcasecmp(id, "close") == 0)
        fatal("a connection that closes with its answer");
}

static void http_data(struct conn *c, uint8_t *data, size_t len)
{
    struct stream *s = (struct stream *)c;
    struct exchange *x = s->exchange;
    uint8_t *end = data + len, *part;
    size_t part_len;
    while (c->state == CONN_OPEN) {
        if (s->at_rest && data < end)
            fatal("an answer without a request");
        switch (http_next(&x->in, &data, end, &part, &part_len)) {
        case HTTP_HEAD:
            check_answer_head(s);
            break;
        case HTTP_BODY:
            if (s->received_bytes + part_len > s->job->size || memcmp(part, pattern + s->received_bytes, part_len) != 0)
                fatal("http: a body arrived changed behind byte %llu", (unsigned long long)s->received_bytes);
            s->received_bytes += part_len;
            break;
        case HTTP_END:
            if (s->received_bytes != s->job->size)
                fatal("http: a body of %zu bytes arrived with %llu", s->job->size, (unsigned long long)s->received_bytes);
            count_latency(s->job, now_ns() - s->sent_ns);
            s->job->bytes += s->received_bytes;
            s->job->messages++;
            if (over)
                rest(s);
            else
                request(s);
            break;
        case HTTP_MORE:
            return;
        case HTTP_BROKEN:
            fatal("http: an answer with broken framing");
        }
    }
}

static void http_writable(struct conn *c)
{
    conn_send_parts(c, &((struct stream *)c)->exchange->out);
}

static void http_opened(struct conn *c)
{
    (void)c;
    dialling--;
    open_count++;
}

static void http_lost(struct conn *c, const char *why)
{
    (void)c;
    fatal("http connection lost while %s: %s", phase, why);
}

static const struct conn_ops http_ops = {http_opened, http_data, http_writable, http_lost};

/* ---- phases and their figures ------------------------------------------------------------------------------------ */

static bool is_stalled(const struct stream *s)
{
    return s->job->kind == STALL || s->job->kind == UNREAD;
}

static void begin_those(bool stalled)
{
    for (unsigned i = 0; i < stream_count; i++)
        if (is_stalled(&streams[i]) == stalled)
            begin(&streams[i]);
}

static void stop_those(bool stalled)
{
    for (unsigned i = 0; i < stream_count; i++)
        if (is_stalled(&streams[i]) == stalled)
            stop(&streams[i]);
}

/* Serves until only this many streams are busy, or until the deadline. Returns false when the deadline came first. */
static bool wait_busy(unsigned left, uint64_t deadline)
{
    while (busy_count > left) {
        uint64_t now = now_ns();
        if (now >= deadline)
            return false;
        loop_turn(deadline == UINT64_MAX ? -1 : (int)((deadline - now) / 1000000 + 1));
    }
    return true;
}

/* Runs every job for seconds and until all streams are at rest. Stalled streams begin earlier and end later, and what the watched
 * processes use is taken from the beginning of the others to their rest. Returns when that began. */
static uint64_t run_phase(const char *name, double seconds, struct usage *before, struct usage *after)
{
    unsigned stalled = 0;
    phase = name;
    over = false;
    busy_count = stream_count;
    for (unsigned i = 0; i < settings->job_count; i++) {
        struct job *job = &jobs[i];
        job->busy = job->count;
        job->bytes = job->messages = job->most = 0;
        job->least = UINT64_MAX;
        memset(job->latency, 0, sizeof job->latency);
        memset(job->late, 0, sizeof job->late);
        if (job->kind == STALL || job->kind == UNREAD)
            stalled += job->count;
    }
    if (stalled > 0) {
        begin_those(true);
        wait_busy(0, now_ns() + (uint64_t)(settings->lead_s * 1e9));
    }
    usage_take(settings, before);
    uint64_t start = now_ns();
    begin_those(false);
    uint64_t begun = now_ns(), end = begun + (uint64_t)(seconds * 1e9);
    begin_paced(begun, end);
    if (!wait_busy(stalled, end) || stalled > 0) {
        over = true;
        send_due();
        if (stalled > 0)
            memory_take(settings, memory_stalled);
        stop_those(false);
        wait_busy(stalled, UINT64_MAX);
    }
    usage_take(settings, after);
    if (stalled > 0) {
        conn_queue_text(&streams[0].c, "resume");
        conn_flush(&streams[0].c);
        stop_those(true);
        wait_busy(0, UINT64_MAX);
    }
    return start;
}

static void print_buckets(const char *name, const uint64_t buckets[BUCKETS])
{
    const char *comma = "";
    printf("\"%s\":[", name);
    for (unsigned k = 0; k < BUCKETS; k++) {
        if (buckets[k] > 0) {
            printf("%s[%llu,%llu]", comma, (unsigned long long)bucket_value(k), (unsigned long long)buckets[k]);
            comma = ",";
        }
    }
    putchar(']');
}

static void print_job(const struct job *job, uint64_t start)
{
    printf("{\"kind\":\"%s\",\"size\":%zu,\"count\":%u,\"seconds\":%.9f,\"bytes\":%llu,\"messages\":%llu,",
           kind_names[job->kind], job->size, job->count, (double)(job->ended_ns - start) / 1e9, (unsigned long long)job->bytes,
           (unsigned long long)job->messages);
    if (job->least <= job->most)
        printf("\"least_bytes\":%llu,\"most_bytes\":%llu,", (unsigned long long)job->least, (unsigned long long)job->most);
    if (job->step_ns > 0) {
        print_buckets("late", job->late);
        putchar(',');
    }
    print_buckets("latency", job->latency);
    putchar('}');
}

static void print_results(uint64_t start, const struct usage *before, const struct usage *after)
{
    uint64_t end = start;
    printf("{\"jobs\":[");
    for (unsigned i = 0; i < settings->job_count; i++) {
        const struct job *job = &jobs[i];
        if (job->ended_ns > end && job->kind != STALL && job->kind != UNREAD)
            end = job->ended_ns;
        if (i > 0)
            putchar(',');
        print_job(job, start);
    }
    printf("],\"seconds\":%.9f", (double)(end - start) / 1e9);
    usage_print(settings, before, after);
    memory_print(settings, "watched_open_bytes", memory_open);
    memory_print(settings, "watched_stalled_bytes", memory_stalled);
    printf("}\n");
    fflush(stdout);
}

static void leave(void)
{
    leaving = true;
    for (unsigned i = 0; i < stream_count; i++) {
        if (streams[i].job->kind == HTTP) {
            conn_drop(&streams[i].c);
            open_count--;
        } else if (streams[i].c.state == CONN_OPEN) {
            conn_queue_frame(&streams[i].c, OP_CLOSE, "\x03\xe8", 2);
            conn_flush(&streams[i].c);
        }
    }
    uint64_t deadline = now_ns() + 2000000000u + stream_count * 2000000ull;
    while (open_count > 0 && now_ns() < deadline)
        loop_turn(100);
}

static void take_command(char *line)
{
    if (strcmp(line, "finish") != 0)
        fatal("a command that is not known: %s", line);
    finish_asked = true;
}

void run_client(const struct settings *given)
{
    struct usage before, after;
    settings = given;
    loop_read_commands(take_command);
    for (unsigned i = 0; i < settings->job_count; i++)
        stream_count += settings->jobs[i].count;
    streams = calloc(stream_count, sizeof *streams);
    if (streams == NULL || stream_count == 0 || settings->listen_count != 1)
        fatal("a client needs one address and at least one job");
    unsigned next = 0;
    uint64_t dial_start = now_ns();
    for (unsigned i = 0; i < settings->job_count; i++) {
        const struct job_line *line = &settings->jobs[i];
        struct job *job = &jobs[i];
        job->size = line->size;
        job->count = line->count;
        job->step_ns = line->rate > 0 ? 1000000000u / ((uint64_t)line->rate * line->count) : 0;
        job->first = streams + next;
        unsigned kind = 0;
        while (kind < KINDS && strcmp(kind_names[kind], line->kind) != 0)
            kind++;
        if (kind == KINDS)
            fatal("a job that is not known: %s", line->kind);
        job->kind = (enum kind)kind;
        job->block = block_of(job->size, true);
        for (unsigned k = 0; k < line->count; k++) {
            streams[next].job = job;
            streams[next].at_rest = true;
            if (job->kind == HTTP)
                make_request_head(&streams[next]);
            dial(&streams[next++]);
            while (dialling >= settings->parallel)
                loop_turn(-1);
        }
    }
    while (open_count < stream_count)
        loop_turn(-1);
    if (jobs[0].kind == STALL || jobs[0].kind == UNREAD)
        fatal("the first job is a stalled one: nobody could wake it");
    memory_take(settings, memory_open);
    if (settings->holds) {
        printf("{\"ready\":true,\"streams\":%u,\"dial_seconds\":%.6f}\n", stream_count, (double)(now_ns() - dial_start) / 1e9);
        fflush(stdout);
        while (!finish_asked)
            loop_turn(-1);
    }
    if (settings->warm_s > 0) {
        checks = true;
        run_phase("warming up", settings->warm_s, &before, &after);
        checks = false;
    }
    uint64_t start = run_phase("measured", settings->measured_s, &before, &after);
    print_results(start, &before, &after);
    leave();
}
