/* The far end of every stream, whether a plain server accepted it or a relay listener dialled it; and the plain server.
 *
 * Text messages are orders from the client, binary messages are data:
 *
 *   echo            send each data frame back as it comes
 *   sink            only count (the start)
 *   check 0|1       compare what arrives with the pattern, from the next message on
 *   report          answer "report BYTES MESSAGES WRONG" since the last report, and count from zero
 *   source SIZE     send messages of SIZE without end ...
 *   stop            ... up to here; answered like report, with what was sent
 *   stall           read nothing more from this stream ...
 *   resume          ... until any stream brings this; all that stall go on
 */
#include "load.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ECHO_QUEUE_BYTES ((size_t)256 << 10)

struct peer {
    struct conn c;
    bool echoes, checks, in_message, stopping, stalls;
    uint64_t bytes, messages, wrong, message_offset;
    const struct block *source;
    uint64_t position;
    char command[COMMAND_BYTES + 1];
    size_t command_len;
    struct peer *next_stalled;
};

unsigned listening, requests, failures; /* of the listener, told with our own count */
static unsigned streams;
static struct peer *first_stalled;

static void stall(struct peer *p)
{
    if (p->stalls)
        return;
    p->stalls = p->c.paused = true;
    p->next_stalled = first_stalled;
    first_stalled = p;
}

static void resume(struct peer *p)
{
    struct peer **at = &first_stalled;
    while (*at != p)
        at = &(*at)->next_stalled;
    *at = p->next_stalled;
    p->stalls = p->c.paused = false;
    conn_update_interest(&p->c);
}

static void report(struct peer *p)
{
    conn_queue_text(&p->c, "report %llu %llu %llu", (unsigned long long)p->bytes, (unsigned long long)p->messages,
                    (unsigned long long)p->wrong);
    p->bytes = p->messages = p->wrong = 0;
}

static void obey(struct peer *p)
{
    unsigned long size;
    p->command[p->command_len] = '\0';
    p->command_len = 0;
    if (strcmp(p->command, "echo") == 0) {
        p->echoes = true;
    } else if (strcmp(p->command, "sink") == 0) {
        p->echoes = false;
    } else if (strcmp(p->command, "check 0") == 0 || strcmp(p->command, "check 1") == 0) {
        p->checks = p->command[6] == '1';
    } else if (strcmp(p->command, "report") == 0) {
        report(p);
    } else if (sscanf(p->command, "source %lu", &size) == 1 && size <= MAX_MESSAGE_BYTES) {
        p->source = block_of(size, p->c.is_client);
        p->position = 0;
        p->stopping = false;
        p->c.wants_out = true;
    } else if (strcmp(p->command, "stop") == 0) {
        p->stopping = true;
    } else if (strcmp(p->command, "stall") == 0) {
        stall(p);
    } else if (strcmp(p->command, "resume") == 0) {
        while (first_stalled != NULL)
            resume(first_stalled);
    } else {
        fatal("an order that is not known: %s", p->command);
    }
}

static void take_data(struct peer *p, struct piece *piece)
{
    struct conn *c = &p->c;
    if (p->echoes) {
        const uint8_t *own = c->is_client ? mask_key : NULL;
        if (piece->starts_frame) {
            uint8_t head[14];
            size_t len =
                frame_header(head, p->in_message ? OP_CONTINUATION : piece->opcode, piece->fin, piece->frame_length, own);
            conn_queue(c, head, len);
            p->in_message = true;
        }
        uint8_t key[4];
        for (unsigned i = 0; i < 4; i++)
            key[i] = piece->key[i] ^ (own != NULL ? own[(c->in.done - piece->len + i) & 3] : 0);
        xor_key(conn_reserve(c, piece->len), piece->data, piece->len, key);
    } else if (p->checks) {
        xor_key(piece->data, piece->data, piece->len, piece->key);
        if (p->message_offset + piece->len > MAX_MESSAGE_BYTES ||
            memcmp(piece->data, pattern + p->message_offset, piece->len) != 0)
            p->wrong++;
    }
    p->bytes += piece->len;
    p->message_offset += piece->len;
    if (piece->ends_frame && piece->fin) {
        p->messages++;
        p->message_offset = 0;
        p->in_message = false;
    }
}

static void peer_data(struct conn *c, uint8_t *data, size_t len)
{
    struct peer *p = (struct peer *)c;
    struct piece piece;
    uint8_t *end = data + len;
    int result;
    while ((result = frame_next(&c->in, &data, end, &piece)) > 0) {
        switch (piece.opcode) {
        case OP_BINARY:
            take_data(p, &piece);
            break;
        case OP_TEXT:
            xor_key(piece.data, piece.data, piece.len, piece.key);
            if (p->command_len + piece.len > COMMAND_BYTES)
                fatal("an order of more than %d bytes", COMMAND_BYTES);
            memcpy(p->command + p->command_len, piece.data, piece.len);
            p->command_len += piece.len;
            if (piece.ends_frame && piece.fin)
                obey(p);
            break;
        default:
            conn_control(c, &piece);
            break;
        }
    }
    if (result < 0)
        fatal("a stream with broken framing");
    if (!conn_flush(c))
        return;
    if (p->echoes && c->out.end - c->out.start > ECHO_QUEUE_BYTES) {
        c->paused = c->wants_out = true; /* writable takes it back */
        conn_update_interest(c);
    }
}

static void peer_writable(struct conn *c)
{
    struct peer *p = (struct peer *)c;
    if (c->paused) {
        c->paused = c->wants_out = false;
    } else if (p->source != NULL) {
        if (conn_pump(c, p->source, &p->position, p->stopping)) {
            p->messages = p->position / p->source->frame;
            p->bytes = p->messages * p->source->message;
            report(p);
            p->source = NULL;
            c->wants_out = false;
        }
    }
}

static void peer_opened(struct conn *c)
{
    (void)c;
    streams++;
}

static void peer_lost(struct conn *c, const char *why)
{
    struct peer *p = (struct peer *)c;
    if (p->c.is_client && strncmp(why, "refused", 7) == 0)
        failures++;
    if (p->stalls)
        resume(p);
    conn_drop(c);
}

static const struct conn_ops peer_ops = {peer_opened, peer_data, peer_writable, peer_lost};

static struct peer *new_peer(void)
{
    struct peer *p = calloc(1, sizeof *p);
    if (p == NULL)
        fatal("out of memory");
    p->c.free_when_dropped = true;
    return p;
}

void peer_dial(struct in_addr host, uint16_t port, const char *target)
{
    conn_dial(&new_peer()->c, &peer_ops, host, port, target, "");
}

/* ---- server ------------------------------------------------------------------------------------------------------ */

static void take_connection(int fd)
{
    conn_accept(&new_peer()->c, &peer_ops, fd);
}

void answer_count(char *line)
{
    if (strcmp(line, "count") != 0)
        fatal("a command that is not known: %s", line);
    printf("{\"listening\":%u,\"streams\":%u,\"requests\":%u,\"failures\":%u}\n", listening, streams, requests, failures);
    fflush(stdout);
}

void run_server(const struct settings *settings)
{
    (void)settings;
    int port = listen_on_loopback(take_connection);
    printf("{\"ready\":true,\"port\":%d}\n", port);
    fflush(stdout);
    loop_read_commands(answer_count);
    for (;;)
        loop_turn(-1);
}
