/* The far end of every stream: plain server or relay listener outside, the same obedient stream inside.
 *
 * Text messages are orders from the client, binary messages are data:
 *
 *   echo            send each data frame back as it comes
 *   sink            only count (the start)
 *   check 0|1       compare what arrives with the pattern, from the next message on
 *   report          answer "report BYTES MESSAGES WRONG" since the last report, and count from zero
 *   source SIZE     send messages of SIZE without end ...
 *   stop            ... up to here; answered like report, with what was sent
 */
#include "load.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ECHO_QUEUE_BYTES ((size_t)256 << 10)

struct peer {
    struct conn c;
    bool echoes, checks, in_message, stopping;
    uint64_t bytes, messages, wrong, message_offset;
    const struct block *source;
    uint64_t position;
    char command[COMMAND_BYTES + 1];
    size_t command_len;
};

static unsigned streams, failures;

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

/* ---- server ------------------------------------------------------------------------------------------------------ */

static void take_connection(int fd)
{
    conn_accept(&new_peer()->c, &peer_ops, fd);
}

static void answer_count(char *line);

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

/* ---- listener ---------------------------------------------------------------------------------------------------- */

struct control {
    struct conn c;
    const struct listen_line *line;
    char *message;
    size_t message_len;
};

static unsigned dialling, listening;
static bool is_ready;

static void answer_count(char *line)
{
    if (strcmp(line, "count") != 0)
        fatal("a command that is not known: %s", line);
    printf("{\"listening\":%u,\"streams\":%u,\"failures\":%u}\n", listening, streams, failures);
    fflush(stdout);
}

/* Four hexadecimal digits; above 0xffff when they are none. */
static unsigned hex4(const char *text)
{
    static const char digits[] = "0123456789abcdef";
    unsigned value = 0;
    for (int i = 0; i < 4; i++) {
        const char *digit = text[i] != '\0' ? strchr(digits, text[i] | 0x20) : NULL;
        if (digit == NULL)
            return 0x10000;
        value = value << 4 | (unsigned)(digit - digits);
    }
    return value;
}

/* Unescapes the JSON string that starts behind its quote; ASCII only, which an address always is. */
static bool read_json_string(const char *at, char *out, size_t out_len)
{
    size_t len = 0;
    for (; *at != '"'; at++) {
        unsigned c = (unsigned char)*at;
        if (c == '\\') {
            c = (unsigned char)*++at;
            if (c == 'u') {
                c = hex4(at + 1);
                at += 4;
            } else if (c != '/' && c != '"' && c != '\\') {
                return false;
            }
        }
        if (c < 0x20 || c > 0x7e || len + 1 >= out_len)
            return false;
        out[len++] = (char)c;
    }
    out[len] = '\0';
    return true;
}

/* The rendezvous address of an accept message. remoteEndpoint has an "address" too: the one wanted starts with ws. */
static bool find_address(const char *message, char *out, size_t out_len)
{
    static const char member[] = "\"address\"";
    for (const char *at = strstr(message, member); at != NULL; at = strstr(at, member)) {
        at += sizeof member - 1;
        at += strspn(at, " \t\r\n");
        if (*at++ != ':')
            continue;
        at += strspn(at, " \t\r\n");
        if (*at++ == '"' && read_json_string(at, out, out_len) && strncmp(out, "ws", 2) == 0)
            return true;
    }
    return false;
}

static void dial_rendezvous(char *address)
{
    struct in_addr host;
    if (strncmp(address, "ws://", 5) != 0)
        fatal("a rendezvous address that is not plain ws");
    char *target = strchr(address + 5, '/'), *colon = strchr(address + 5, ':');
    if (target == NULL || colon == NULL || colon > target)
        fatal("a rendezvous address without port or path");
    *colon = '\0';
    if (inet_aton(strcmp(address + 5, "localhost") == 0 ? "127.0.0.1" : address + 5, &host) == 0)
        fatal("a rendezvous address whose host is no IPv4 literal");
    conn_dial(&new_peer()->c, &peer_ops, host, (uint16_t)atoi(colon + 1), target, "");
}

static void control_message(struct control *control)
{
    char address[4096];
    control->message[control->message_len] = '\0';
    if (strstr(control->message, "\"accept\"") == NULL)
        return;
    if (!find_address(control->message, address, sizeof address))
        fatal("an accept message without a usable address");
    dial_rendezvous(address);
}

static void control_data(struct conn *c, uint8_t *data, size_t len)
{
    struct control *control = (struct control *)c;
    struct piece piece;
    uint8_t *end = data + len;
    int result;
    while ((result = frame_next(&c->in, &data, end, &piece)) > 0) {
        if (piece.opcode >= OP_CLOSE) {
            conn_control(c, &piece);
        } else if (piece.opcode == OP_TEXT) {
            if (control->message == NULL && (control->message = malloc(CONTROL_MESSAGE_BYTES + 1)) == NULL)
                fatal("out of memory");
            if (control->message_len + piece.len > CONTROL_MESSAGE_BYTES)
                fatal("a control message of more than %d bytes", CONTROL_MESSAGE_BYTES);
            memcpy(control->message + control->message_len, piece.data, piece.len);
            control->message_len += piece.len;
            if (piece.ends_frame && piece.fin) {
                control_message(control);
                free(control->message);
                control->message = NULL;
                control->message_len = 0;
            }
        }
    }
    if (result < 0)
        fatal("a control channel with broken framing");
}

static void control_opened(struct conn *c)
{
    (void)c;
    dialling--;
    listening++;
}

static void control_lost(struct conn *c, const char *why)
{
    if (!is_ready)
        fatal("control channel %s: %s", ((struct control *)c)->line->target, why);
    listening--;
    conn_drop(c);
}

static void control_writable(struct conn *c)
{
    (void)c;
}

static const struct conn_ops control_ops = {control_opened, control_data, control_writable, control_lost};

void run_listener(const struct settings *settings)
{
    unsigned total = 0;
    loop_read_commands(answer_count);
    for (unsigned i = 0; i < settings->listen_count; i++) {
        const struct listen_line *line = &settings->listens[i];
        for (unsigned k = 0; k < line->count; k++, total++) {
            struct control *control = calloc(1, sizeof *control);
            if (control == NULL)
                fatal("out of memory");
            control->line = line;
            dialling++;
            conn_dial(&control->c, &control_ops, line->host, line->port, line->target, settings->headers);
            while (dialling >= settings->parallel)
                loop_turn(-1);
        }
    }
    while (listening < total)
        loop_turn(-1);
    is_ready = true;
    printf("{\"ready\":true,\"listening\":%u}\n", listening);
    fflush(stdout);
    for (;;)
        loop_turn(-1);
}
