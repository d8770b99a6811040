/* HTTP/1.1 as both ends of a request speak it, and the plain server. */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Gathers the head. True when it is whole; *at then stands behind it. */
static bool take_head(struct http_reader *r, uint8_t **at, uint8_t *end)
{
    size_t had = r->head_len, room = HEAD_BYTES - 1 - had;
    size_t take = (size_t)(end - *at) < room ? (size_t)(end - *at) : room;
    memcpy(r->head + had, *at, take);
    size_t from = had > 3 ? had - 3 : 0;
    char *blank = memmem(r->head + from, had + take - from, "\r\n\r\n", 4);
    if (blank == NULL) {
        r->head_len = had + take;
        *at += take;
        return false;
    }
    r->head_len = (size_t)(blank + 4 - r->head);
    r->head[r->head_len] = '\0';
    *at += r->head_len - had;
    return true;
}

/* How the body of the head in hand is framed; false when that cannot be known. */
static bool begin_body(struct http_reader *r)
{
    char coding[32], length[16];
    bool is_coded = find_header(r->head, "Transfer-Encoding", coding, sizeof coding);
    bool is_sized = find_header(r->head, "Content-Length", length, sizeof length);
    if (memchr(r->head, '\0', r->head_len) != NULL || (is_coded && is_sized) || (r->reads_answers && !is_coded && !is_sized))
        return false;
    r->left = 0;
    r->digits = 0;
    r->last_chunk = r->behind_cr = false;
    r->part = is_coded ? HTTP_IN_SIZE : HTTP_IN_SIZED;
    if (is_coded)
        return strcasecmp(coding, "chunked") == 0;
    if (!is_sized)
        return true;
    for (const char *c = length; *c != '\0'; c++) {
        if (*c < '0' || *c > '9')
            return false;
        r->left = r->left * 10 + (uint64_t)(*c - '0');
    }
    return length[0] != '\0';
}

/* One byte of a chunk's frame: its size in hexadecimal and CRLF before it, CRLF behind it. No extensions, no trailers. */
static bool take_chunk_byte(struct http_reader *r, uint8_t byte)
{
    static const char digits[] = "0123456789abcdef";
    bool behind_size = r->part == HTTP_IN_SIZE;
    if (r->behind_cr) {
        r->behind_cr = false;
        r->digits = 0;
        if (behind_size)
            r->last_chunk = r->left == 0;
        r->part = behind_size ? (r->last_chunk ? HTTP_BEHIND_CHUNK : HTTP_IN_CHUNK) : r->last_chunk ? HTTP_AT_END : HTTP_IN_SIZE;
        return byte == '\n';
    }
    if (byte == '\r') {
        r->behind_cr = true;
        return !behind_size || r->digits > 0;
    }
    const char *digit = byte > ' ' ? strchr(digits, byte | 0x20) : NULL;
    if (!behind_size || digit == NULL || r->digits++ == 8)
        return false;
    r->left = r->left << 4 | (uint64_t)(digit - digits);
    return true;
}

enum http_event http_next(struct http_reader *r, uint8_t **at, uint8_t *end, uint8_t **data, size_t *len)
{
    for (;;) {
        switch (r->part) {
        case HTTP_IN_HEAD:
            if (*at == end)
                return HTTP_MORE;
            if (!take_head(r, at, end))
                return r->head_len == HEAD_BYTES - 1 ? HTTP_BROKEN : HTTP_MORE;
            return begin_body(r) ? HTTP_HEAD : HTTP_BROKEN;
        case HTTP_IN_SIZED:
        case HTTP_IN_CHUNK:
            if (r->left == 0) {
                r->part = r->part == HTTP_IN_SIZED ? HTTP_AT_END : HTTP_BEHIND_CHUNK;
                break;
            }
            if (*at == end)
                return HTTP_MORE;
            *data = *at;
            *len = r->left < (uint64_t)(end - *at) ? (size_t)r->left : (size_t)(end - *at);
            *at += *len;
            r->left -= *len;
            return HTTP_BODY;
        case HTTP_IN_SIZE:
        case HTTP_BEHIND_CHUNK:
            if (*at == end)
                return HTTP_MORE;
            if (!take_chunk_byte(r, *(*at)++))
                return HTTP_BROKEN;
            break;
        case HTTP_AT_END:
            r->part = HTTP_IN_HEAD;
            r->head_len = 0;
            return HTTP_END;
        }
    }
}

/* ---- the plain server -------------------------------------------------------------------------------------------- */

struct origin {
    struct conn c;
    struct http_reader in;
    struct outgoing out;
    char head[256], id[REQUEST_ID_CHARS + 1];
    uint64_t received;
    bool wrong;
};

/* 200 and as many bytes as came, or 422 when they were not those of the pattern. */
static void answer(struct origin *o)
{
    if (o->out.at < o->out.count)
        fatal("a request before its connection's last answer was gone");
    size_t len = o->wrong ? 0 : (size_t)o->received;
    int head_len = snprintf(o->head, sizeof o->head,
                            "HTTP/1.1 %s\r\n" REQUEST_ID_HEADER ": %s\r\n%sContent-Length: %zu\r\n\r\n",
                            o->wrong ? "422 Changed on the way" : "200 OK", o->id,
                            len > 0 ? "Content-Type: application/octet-stream\r\n" : "", len);
    o->out = (struct outgoing){{{o->head, (size_t)head_len}, {pattern, len}}, 0, 2};
    requests++;
    conn_send_parts(&o->c, &o->out);
}

static void origin_data(struct conn *c, uint8_t *data, size_t len)
{
    struct origin *o = (struct origin *)c;
    uint8_t *end = data + len, *part;
    size_t part_len;
    while (c->state == CONN_OPEN) {
        switch (http_next(&o->in, &data, end, &part, &part_len)) {
        case HTTP_HEAD:
            o->received = 0;
            o->wrong = false;
            if (!find_header(o->in.head, REQUEST_ID_HEADER, o->id, sizeof o->id))
                o->id[0] = '\0';
            break;
        case HTTP_BODY:
            o->wrong = o->wrong || o->received + part_len > MAX_MESSAGE_BYTES ||
                       memcmp(part, pattern + o->received, part_len) != 0;
            o->received += part_len;
            break;
        case HTTP_END:
            answer(o);
            break;
        case HTTP_MORE:
            return;
        case HTTP_BROKEN:
            fatal("a request with broken framing");
        }
    }
}

static void origin_writable(struct conn *c)
{
    conn_send_parts(c, &((struct origin *)c)->out);
}

static void origin_opened(struct conn *c)
{
    (void)c;
}

static void origin_lost(struct conn *c, const char *why)
{
    (void)why;
    conn_drop(c);
}

static const struct conn_ops origin_ops = {origin_opened, origin_data, origin_writable, origin_lost};

static void take_connection(int fd)
{
    struct origin *o = calloc(1, sizeof *o);
    if (o == NULL)
        fatal("out of memory");
    o->c.free_when_dropped = true;
    conn_accept_plain(&o->c, &origin_ops, fd);
}

void run_origin(const struct settings *settings)
{
    (void)settings;
    int port = listen_on_loopback(take_connection);
    printf("{\"ready\":true,\"port\":%d}\n", port);
    fflush(stdout);
    loop_read_commands(answer_count);
    for (;;)
        loop_turn(-1);
}
