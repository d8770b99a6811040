/* The least that joins a sender and a listener: one thread, no tokens, no checks, one entity. It shows what the load side can do
 * against a relay that costs next to nothing, above all how many sessions a second it could join; it is no relay to use.
 *
 * A listener's upgrade is answered at once. A sender waits while its address goes out on the newest control channel; whoever dials that
 * address is joined to it, and both get their 101. From there frames go across one by one, unmasked on the way.
 */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAITING 65536
#define QUEUE_BYTES ((size_t)256 << 10)

struct leg {
    struct conn c;
    enum { IN_HEAD, CONTROLS, WAITS, JOINED } part;
    char head[HEAD_BYTES], key[80];
    size_t head_len;
    unsigned id;
    bool in_message;
    struct leg *other;
};

static struct leg *waiting[WAITING], *control;
static unsigned next_id;
static int port;

static void answer_upgrade(struct leg *leg)
{
    char accept[ACCEPT_CHARS + 1], answer[200];
    accept_for_key(leg->key, strlen(leg->key), accept);
    int len = snprintf(answer, sizeof answer,
                       "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       "Sec-WebSocket-Accept: %s\r\n\r\n",
                       accept);
    conn_queue(&leg->c, answer, (size_t)len);
    conn_flush(&leg->c);
}

static void invite(struct leg *sender)
{
    char text[256];
    uint8_t head[14];
    if (control == NULL)
        fatal("a sender before any listener");
    sender->id = next_id++;
    if (waiting[sender->id % WAITING] != NULL)
        fatal("too many senders wait");
    waiting[sender->id % WAITING] = sender;
    sender->part = WAITS;
    int len = snprintf(text, sizeof text,
                       "{\"accept\":{\"address\":\"ws://127.0.0.1:%d/$hc/bench?sb-hc-action=accept&sb-hc-id=%u\",\"id\":\"%u\","
                       "\"connectHeaders\":{}}}",
                       port, sender->id, sender->id);
    conn_queue(&control->c, head, frame_header(head, OP_TEXT, true, (uint64_t)len, NULL));
    conn_queue(&control->c, text, (size_t)len);
    conn_flush(&control->c);
}

static void join(struct leg *listener, unsigned id)
{
    struct leg *sender = waiting[id % WAITING];
    if (sender == NULL || sender->id != id)
        fatal("nobody waits at address %u", id);
    waiting[id % WAITING] = NULL;
    sender->other = listener;
    listener->other = sender;
    sender->part = listener->part = JOINED;
    answer_upgrade(listener);
    answer_upgrade(sender);
}

/* Returns how much of data belongs to the head. */
static size_t take_head(struct leg *leg, const uint8_t *data, size_t len)
{
    size_t had = leg->head_len, take = HEAD_BYTES - 1 - had < len ? HEAD_BYTES - 1 - had : len;
    memcpy(leg->head + had, data, take);
    leg->head_len += take;
    leg->head[leg->head_len] = '\0';
    char *blank = strstr(leg->head, "\r\n\r\n"), *action = strstr(leg->head, "sb-hc-action="), *id = strstr(leg->head, "sb-hc-id=");
    if (blank == NULL)
        return take;
    if (action == NULL || !find_header(leg->head, "Sec-WebSocket-Key", leg->key, sizeof leg->key))
        fatal("a request that is no upgrade of a relay");
    action += strlen("sb-hc-action=");
    if (strncmp(action, "listen", 6) == 0) {
        control = leg;
        leg->part = CONTROLS;
        answer_upgrade(leg);
    } else if (strncmp(action, "connect", 7) == 0) {
        invite(leg);
    } else if (id != NULL) {
        join(leg, (unsigned)strtoul(id + strlen("sb-hc-id="), NULL, 10));
    }
    return (size_t)(blank + 4 - leg->head) - had;
}

static void pass(struct leg *leg, const struct piece *piece)
{
    struct conn *to = &leg->other->c;
    if (piece->starts_frame) {
        uint8_t head[14];
        bool data = piece->opcode < OP_CLOSE;
        uint8_t opcode = data && leg->in_message ? OP_CONTINUATION : piece->opcode;
        conn_queue(to, head, frame_header(head, opcode, piece->fin, piece->frame_length, NULL));
        if (data)
            leg->in_message = !piece->fin;
    }
    xor_key(conn_reserve(to, piece->len), piece->data, piece->len, piece->key);
}

static void leg_data(struct conn *c, uint8_t *data, size_t len)
{
    struct leg *leg = (struct leg *)c;
    struct piece piece;
    if (leg->part == IN_HEAD) {
        size_t used = take_head(leg, data, len);
        data += used;
        len -= used;
    }
    if (leg->part != JOINED)
        return; /* control channels only answer pings, and nobody pings them here */
    uint8_t *end = data + len;
    while (frame_next(&c->in, &data, end, &piece) > 0)
        pass(leg, &piece);
    struct conn *to = &leg->other->c;
    if (to->out.end > to->out.start && conn_flush(to) && to->out.end - to->out.start > QUEUE_BYTES) {
        c->paused = true;
        conn_update_interest(c);
        to->wants_out = true; /* writable lets the other leg read again */
        conn_update_interest(to);
    }
}

static void leg_writable(struct conn *c)
{
    struct leg *other = ((struct leg *)c)->other;
    c->wants_out = false;
    if (other != NULL) {
        other->c.paused = false;
        conn_update_interest(&other->c);
    }
}

static void leg_lost(struct conn *c, const char *why)
{
    struct leg *leg = (struct leg *)c;
    (void)why;
    if (control == leg)
        control = NULL;
    if (leg->part == WAITS)
        waiting[leg->id % WAITING] = NULL;
    if (leg->other != NULL) {
        leg->other->other = NULL;
        leg->other->part = CONTROLS; /* whatever it still says goes nowhere */
        conn_drop(&leg->other->c);
    }
    conn_drop(c);
}

static void nothing(struct conn *c)
{
    (void)c;
}

static const struct conn_ops leg_ops = {nothing, leg_data, leg_writable, leg_lost};

static void take_connection(int fd)
{
    struct leg *leg = calloc(1, sizeof *leg);
    if (leg == NULL)
        fatal("out of memory");
    leg->c.free_when_dropped = true;
    conn_accept_plain(&leg->c, &leg_ops, fd);
}

void run_floor(const struct settings *settings)
{
    (void)settings;
    port = listen_on_loopback(take_connection);
    printf("{\"ready\":true,\"port\":%d}\n", port);
    fflush(stdout);
    loop_read_commands(answer_count);
    for (;;)
        loop_turn(-1);
}
