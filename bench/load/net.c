/* Connections over one epoll: dialling, both sides of the handshake, queued and direct sending.
 *
 * A callback may drop the connection that it was called for, and no other of the same turn but one it owns for good; memory of
 * dropped connections is freed between turns, so pointers that epoll has already handed out stay good.
 */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

bool wraps_streams;
static int epoll_fd;
static uint8_t input[READ_BYTES];
static void (*incoming_handler)(int fd);
static void (*command_handler)(char *line);
static struct conn acceptor_mark, command_mark, timer_mark; /* told apart from connections by address */
static int acceptor_fd = -1, timer_fd = -1;
static void (*tick_handler)(void);
static struct conn *dropped[65536];
static unsigned dropped_count;

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void print_json_string(const char *text)
{
    putchar('"');
    for (const char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e)
            printf("\\u%04x", (unsigned char)*c);
        else if (*c == '"' || *c == '\\')
            printf("\\%c", *c);
        else
            putchar(*c);
    }
    putchar('"');
}

void fatal(const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("{\"error\":");
    print_json_string(text);
    printf("}\n");
    fflush(stdout);
    exit(1);
}

void loop_init(void)
{
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        fatal("epoll_create1: %s", strerror(errno));
}

static void watch(int fd, void *mark, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.ptr = mark};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        fatal("epoll_ctl: %s", strerror(errno));
}

void loop_tick_at(uint64_t at_ns, void (*tick)(void))
{
    struct itimerspec at = {0};
    tick_handler = tick;
    if (timer_fd < 0) {
        if (at_ns == UINT64_MAX)
            return;
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (timer_fd < 0)
            fatal("timerfd_create: %s", strerror(errno));
        watch(timer_fd, &timer_mark, EPOLLIN);
    }
    if (at_ns != UINT64_MAX)
        at.it_value = (struct timespec){(time_t)(at_ns / 1000000000u), (long)(at_ns % 1000000000u)};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL) != 0)
        fatal("timerfd_settime: %s", strerror(errno));
}

void loop_read_commands(void (*line)(char *line))
{
    command_handler = line;
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    watch(STDIN_FILENO, &command_mark, EPOLLIN);
}

static void read_commands(void)
{
    static char buffer[256];
    static size_t have;
    ssize_t n = read(STDIN_FILENO, buffer + have, sizeof buffer - 1 - have);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        exit(0);
    have += (size_t)n;
    buffer[have] = '\0';
    char *start = buffer, *stop;
    while ((stop = strchr(start, '\n')) != NULL) {
        *stop = '\0';
        if (command_handler != NULL)
            command_handler(start);
        start = stop + 1;
    }
    have = strlen(start);
    memmove(buffer, start, have + 1);
    if (have == sizeof buffer - 1)
        fatal("command line too long");
}

/* ---- queue ------------------------------------------------------------------------------------------------------- */

uint8_t *conn_reserve(struct conn *c, size_t len)
{
    struct queue *q = &c->out;
    if (q->start == q->end)
        q->start = q->end = 0;
    if (q->capacity - q->end < len) {
        if (q->start > 0) {
            memmove(q->data, q->data + q->start, q->end - q->start);
            q->end -= q->start;
            q->start = 0;
        }
        if (q->capacity - q->end < len) {
            size_t capacity = q->capacity > 0 ? q->capacity : 512;
            while (capacity - q->end < len)
                capacity *= 2;
            q->data = realloc(q->data, capacity);
            if (q->data == NULL)
                fatal("out of memory");
            q->capacity = capacity;
        }
    }
    q->end += len;
    return q->data + q->end - len;
}

void conn_queue(struct conn *c, const void *data, size_t len)
{
    memcpy(conn_reserve(c, len), data, len);
}

/* What is not a ready-made block: orders, control frames and the inner handshake. */
static void queue_wrapped(struct conn *c, const void *data, size_t len)
{
    uint8_t head[14];
    if (!c->outer_open) {
        conn_queue(c, data, len);
        return;
    }
    conn_queue(c, head, frame_header(head, OP_BINARY, true, len, mask_key));
    xor_key(conn_reserve(c, len), data, len, mask_key);
}

void conn_queue_frame(struct conn *c, uint8_t opcode, const void *payload, size_t len)
{
    uint8_t frame[14 + COMMAND_BYTES];
    const uint8_t *key = c->is_client ? mask_key : NULL;
    size_t head = frame_header(frame, opcode, true, len, key);
    if (len > COMMAND_BYTES)
        fatal("a command or control frame of %zu bytes", len);
    if (key != NULL)
        xor_key(frame + head, payload, len, key);
    else
        memcpy(frame + head, payload, len);
    queue_wrapped(c, frame, head + len);
}

void conn_queue_text(struct conn *c, const char *format, ...)
{
    char text[COMMAND_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    conn_queue_frame(c, OP_TEXT, text, (size_t)len);
}

/* ---- one connection ---------------------------------------------------------------------------------------------- */

void conn_update_interest(struct conn *c)
{
    uint32_t interest = c->paused ? 0 : EPOLLIN;
    if (c->state == CONN_DIALING || c->out.end > c->out.start || (c->wants_out && c->state == CONN_OPEN))
        interest |= EPOLLOUT;
    if (c->fd < 0 || interest == c->interest)
        return;
    struct epoll_event event = {.events = interest, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event) != 0)
        fatal("epoll_ctl: %s", strerror(errno));
    c->interest = interest;
}

void conn_drop(struct conn *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->state = CONN_CLOSED;
    free(c->head);
    free(c->out.data);
    c->head = NULL;
    c->head_len = 0;
    c->out = (struct queue){0};
    c->in = c->outer = (struct frame_reader){0};
    c->wants_out = c->paused = c->mid_frame = c->outer_open = false;
    if (c->free_when_dropped) {
        if (dropped_count == sizeof dropped / sizeof dropped[0])
            fatal("too many connections ended in one turn");
        dropped[dropped_count++] = c;
    }
}

static void lose(struct conn *c, const char *why)
{
    char kept[256];
    snprintf(kept, sizeof kept, "%s", why);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->state = CONN_CLOSED;
    c->ops->lost(c, kept);
}

long conn_send(struct conn *c, const uint8_t *data, size_t len)
{
    ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL);
    if (n >= 0)
        return n;
    if (errno == EAGAIN || errno == EINTR)
        return 0;
    lose(c, strerror(errno));
    return -1;
}

bool conn_send_parts(struct conn *c, struct outgoing *out)
{
    c->wants_out = out->at < out->count;
    while (out->at < out->count && c->out.start == c->out.end) {
        struct msghdr message = {.msg_iov = out->parts + out->at, .msg_iovlen = out->count - out->at};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            lose(c, strerror(errno));
            return false;
        }
        if (n <= 0)
            break;
        size_t left = (size_t)n;
        while (out->at < out->count && left >= out->parts[out->at].iov_len)
            left -= out->parts[out->at++].iov_len;
        if (left > 0) {
            out->parts[out->at].iov_base = (uint8_t *)out->parts[out->at].iov_base + left;
            out->parts[out->at].iov_len -= left;
        }
        c->wants_out = out->at < out->count;
    }
    c->mid_frame = c->wants_out && !c->is_plain;
    return !c->wants_out;
}

bool conn_pump(struct conn *c, const struct block *block, uint64_t *position, bool stopping)
{
    size_t offset = *position % block->len, len = block->len - offset;
    if (stopping) {
        size_t into_frame = offset % block->frame;
        len = into_frame > 0 ? block->frame - into_frame : 0;
    }
    if (len > 0) {
        long n = conn_send(c, block->data + offset, len);
        if (n < 0)
            return false;
        *position += (uint64_t)n;
    }
    c->mid_frame = *position % block->frame != 0;
    return stopping && !c->mid_frame;
}

void conn_control(struct conn *c, struct piece *piece)
{
    if (piece->starts_frame)
        c->control_len = 0;
    xor_key(c->control + c->control_len, piece->data, piece->len, piece->key);
    c->control_len += piece->len;
    if (piece->ends_frame && piece->opcode != OP_PONG && !c->mid_frame)
        conn_queue_frame(c, piece->opcode == OP_PING ? OP_PONG : OP_CLOSE, c->control, c->control_len);
}

bool conn_flush(struct conn *c)
{
    struct queue *q = &c->out;
    if (q->start < q->end) {
        long n = conn_send(c, q->data + q->start, q->end - q->start);
        if (n < 0)
            return false;
        q->start += (size_t)n;
        if (q->start == q->end) {
            q->start = q->end = 0;
            if (q->capacity > 65536) { /* an idle stream keeps nothing large */
                free(q->data);
                *q = (struct queue){0};
            }
        }
    }
    conn_update_interest(c);
    return true;
}

static void adopt(struct conn *c, const struct conn_ops *ops, int fd, uint32_t interest)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->ops = ops;
    c->fd = fd;
    c->interest = interest;
    c->in = (struct frame_reader){0};
    watch(fd, c, interest);
}

void conn_dial(struct conn *c, const struct conn_ops *ops, struct in_addr host, uint16_t port, const char *target,
               const char *headers)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = host};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fatal("socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS)
        fatal("connect: %s", strerror(errno));
    c->is_client = true;
    c->is_plain = target == NULL;
    c->state = CONN_DIALING;
    adopt(c, ops, fd, EPOLLIN | EPOLLOUT);
    if (c->is_plain)
        return;
    fresh_key(c->key);
    char name[INET_ADDRSTRLEN], text[64];
    inet_ntop(AF_INET, &host, name, sizeof name);
    conn_queue(c, "GET ", 4);
    conn_queue(c, target, strlen(target));
    conn_queue(c, text, (size_t)snprintf(text, sizeof text, " HTTP/1.1\r\nHost: %s:%u\r\n", name, port));
    static const char upgrade[] = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ";
    conn_queue(c, upgrade, sizeof upgrade - 1);
    conn_queue(c, c->key, strlen(c->key));
    conn_queue(c, "\r\n", 2);
    conn_queue(c, headers, strlen(headers));
    conn_queue(c, "\r\n", 2);
}

void conn_accept(struct conn *c, const struct conn_ops *ops, int fd)
{
    c->is_client = false;
    c->state = CONN_AWAITS_REQUEST;
    adopt(c, ops, fd, EPOLLIN);
}

void conn_accept_plain(struct conn *c, const struct conn_ops *ops, int fd)
{
    c->is_plain = true;
    c->state = CONN_OPEN;
    adopt(c, ops, fd, EPOLLIN);
}

int listen_on_loopback(void (*incoming)(int fd))
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    acceptor_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (acceptor_fd < 0 || bind(acceptor_fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(acceptor_fd, 4096) != 0 || getsockname(acceptor_fd, (struct sockaddr *)&address, &len) != 0)
        fatal("listen: %s", strerror(errno));
    incoming_handler = incoming;
    watch(acceptor_fd, &acceptor_mark, EPOLLIN);
    return ntohs(address.sin_port);
}

/* ---- handshake --------------------------------------------------------------------------------------------------- */

bool find_header(const char *head, const char *name, char *out, size_t out_len)
{
    size_t name_len = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
        const char *at = line + 2;
        if (strncasecmp(at, name, name_len) != 0 || at[name_len] != ':')
            continue;
        at += name_len + 1;
        while (*at == ' ' || *at == '\t')
            at++;
        size_t len = strcspn(at, "\r\n \t");
        if (len >= out_len)
            return false;
        memcpy(out, at, len);
        out[len] = '\0';
        return true;
    }
    return false;
}

static bool check_answer(struct conn *c)
{
    char accept[64], expected[ACCEPT_CHARS + 1], line[200];
    if (strncmp(c->head, "HTTP/1.1 101", 12) != 0) {
        snprintf(line, sizeof line, "refused: %.*s", (int)strcspn(c->head, "\r\n"), c->head);
        lose(c, line);
        return false;
    }
    accept_for_key(c->key, strlen(c->key), expected);
    if (!find_header(c->head, "Sec-WebSocket-Accept", accept, sizeof accept) || strcmp(accept, expected) != 0) {
        lose(c, "101 without the right Sec-WebSocket-Accept");
        return false;
    }
    return true;
}

static bool answer_request(struct conn *c)
{
    char key[80], accept[ACCEPT_CHARS + 1], answer[200];
    if (strncmp(c->head, "GET ", 4) != 0 || !find_header(c->head, "Sec-WebSocket-Key", key, sizeof key)) {
        lose(c, "not a WebSocket request");
        return false;
    }
    accept_for_key(key, strlen(key), accept);
    int len = snprintf(answer, sizeof answer,
                       "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       "Sec-WebSocket-Accept: %s\r\n\r\n",
                       accept);
    conn_queue(c, answer, (size_t)len);
    return true;
}

/* The gateway has answered. The far end behind it asks neither for a path nor for headers. */
static void open_inner(struct conn *c)
{
    char request[200];
    int len = snprintf(request, sizeof request,
                       "GET / HTTP/1.1\r\nHost: far\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n",
                       c->key);
    c->outer_open = true;
    queue_wrapped(c, request, (size_t)len);
}

static void handle_input(struct conn *c, uint8_t *data, size_t len);

static void handle_data(struct conn *c, uint8_t *data, size_t len)
{
    if (c->state == CONN_OPEN) {
        c->ops->data(c, data, len);
        return;
    }
    if (c->head == NULL) {
        c->head = malloc(HEAD_BYTES);
        if (c->head == NULL)
            fatal("out of memory");
        c->head_len = 0;
    }
    size_t had = c->head_len, take = HEAD_BYTES - 1 - had < len ? HEAD_BYTES - 1 - had : len;
    memcpy(c->head + had, data, take);
    c->head_len += take;
    c->head[c->head_len] = '\0';
    char *blank = strstr(c->head, "\r\n\r\n");
    if (blank == NULL) {
        if (c->head_len == HEAD_BYTES - 1)
            lose(c, "head too long");
        return;
    }
    size_t used = (size_t)(blank + 4 - c->head) - had;
    if (!(c->state == CONN_AWAITS_101 ? check_answer(c) : answer_request(c)))
        return;
    free(c->head);
    c->head = NULL;
    if (wraps_streams && c->is_client && !c->outer_open) {
        open_inner(c);
        handle_input(c, data + used, len - used);
        return;
    }
    c->state = CONN_OPEN;
    c->ops->opened(c);
    if (c->state == CONN_OPEN && used < len)
        c->ops->data(c, data + used, len - used);
}

/* What was read, without the WebSocket around it if there is one. */
static void handle_input(struct conn *c, uint8_t *data, size_t len)
{
    struct piece piece;
    uint8_t *end = data + len;
    int result = 0;
    if (!c->outer_open) {
        handle_data(c, data, len);
        return;
    }
    while (c->outer_open && (result = frame_next(&c->outer, &data, end, &piece)) > 0) {
        if (piece.opcode == OP_CLOSE) {
            lose(c, "the gateway's Close");
            return;
        }
        if (piece.masked)
            fatal("a masked frame from the gateway");
        if (piece.opcode == OP_BINARY && piece.len > 0)
            handle_data(c, piece.data, piece.len);
    }
    if (result < 0)
        fatal("a gateway with broken framing");
}

static void serve(struct conn *c, uint32_t events)
{
    if (c->state == CONN_DIALING) {
        int error = 0;
        socklen_t len = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
        if (error != 0) {
            lose(c, strerror(error));
            return;
        }
        if (!(events & EPOLLOUT))
            return;
        c->state = c->is_plain ? CONN_OPEN : CONN_AWAITS_101;
        if (c->is_plain)
            c->ops->opened(c);
        if (c->state == CONN_CLOSED)
            return;
    }
    if (events & EPOLLOUT) {
        if (c->out.end > c->out.start) {
            if (!conn_flush(c))
                return;
        } else if (c->wants_out && c->state == CONN_OPEN) {
            c->ops->writable(c);
            if (c->state == CONN_CLOSED)
                return;
        }
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ssize_t n = recv(c->fd, input, sizeof input, 0);
        if (n > 0) {
            handle_input(c, input, (size_t)n);
        } else if (n == 0) {
            lose(c, "end of stream");
        } else if (errno != EAGAIN && errno != EINTR) {
            lose(c, strerror(errno));
        }
    }
    if (c->state != CONN_CLOSED)
        conn_flush(c);
}

static void accept_all(void)
{
    for (int i = 0; i < 64; i++) {
        int fd = accept4(acceptor_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
                return;
            fatal("accept: %s", strerror(errno));
        }
        incoming_handler(fd);
    }
}

void loop_turn(int timeout_ms)
{
    struct epoll_event events[256];
    int n = epoll_wait(epoll_fd, events, 256, timeout_ms);
    if (n < 0 && errno != EINTR)
        fatal("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < n; i++)
        if (events[i].data.ptr == &timer_mark)
            tick_handler();
    for (int i = 0; i < n; i++) {
        void *mark = events[i].data.ptr;
        if (mark == &timer_mark)
            continue;
        if (mark == &acceptor_mark)
            accept_all();
        else if (mark == &command_mark)
            read_commands();
        else if (((struct conn *)mark)->fd >= 0)
            serve(mark, events[i].events);
    }
    while (dropped_count > 0)
        free(dropped[--dropped_count]);
}
