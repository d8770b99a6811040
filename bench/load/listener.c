/* A relay listener: control channels, the streams that it is invited to, and the requests that it answers.
 *
 * A request is answered where it came: on the control channel, or on the rendezvous whose address came in its place. The answer is 200
 * and as many bytes as the body had, or 422 when the body was not the pattern.
 */
#include "load.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One end where requests arrive: a text message, and behind it a binary one if the text says so. */
struct intake {
    char *text;
    size_t text_len;
    struct json_request request;
    bool awaits_body, wrong;
    uint64_t received;
};

struct control {
    struct conn c;
    const struct listen_line *line;
    struct intake in;
};

struct rendezvous {
    struct conn c;
    struct intake in;
    struct outgoing out;
    uint8_t head[512], last[16];
    bool answers;
};

static unsigned dialling;
static bool is_ready;

/* ---- what arrives ------------------------------------------------------------------------------------------------ */

/* True when a text message is whole; it then stands in in->text. */
static bool take_text(struct intake *in, struct piece *piece)
{
    if (in->text == NULL && (in->text = malloc(CONTROL_MESSAGE_BYTES + 1)) == NULL)
        fatal("out of memory");
    if (in->text_len + piece->len > CONTROL_MESSAGE_BYTES)
        fatal("a control message of more than %d bytes", CONTROL_MESSAGE_BYTES);
    if (piece->masked)
        fatal("a masked frame from the relay");
    memcpy(in->text + in->text_len, piece->data, piece->len);
    in->text_len += piece->len;
    in->text[in->text_len] = '\0';
    return piece->ends_frame && piece->fin;
}

static void forget_text(struct intake *in)
{
    free(in->text);
    in->text = NULL;
    in->text_len = 0;
}

/* True when the body is whole. */
static bool take_body(struct intake *in, struct piece *piece)
{
    if (!in->awaits_body)
        fatal("a binary message behind no request");
    in->wrong = in->wrong || piece->masked || in->received + piece->len > MAX_MESSAGE_BYTES ||
                memcmp(piece->data, pattern + in->received, piece->len) != 0;
    in->received += piece->len;
    in->awaits_body = !piece->ends_frame || !piece->fin;
    return !in->awaits_body;
}

static void begin_request(struct intake *in)
{
    in->awaits_body = in->request.has_body;
    in->wrong = false;
    in->received = 0;
}

/* ---- what is answered -------------------------------------------------------------------------------------------- */

/* A masked frame with the response message. Returns its length. */
static size_t response_head(const struct intake *in, uint8_t *out, size_t out_len)
{
    char text[400];
    bool has_body = !in->wrong && in->received > 0;
    int len = snprintf(text, sizeof text,
                       "{\"response\":{\"requestId\":\"%s\",\"statusCode\":%s,\"responseHeaders\":{\"" REQUEST_ID_HEADER
                       "\":\"%s\"%s},\"body\":%s}}",
                       in->request.id, in->wrong ? "422,\"statusDescription\":\"Changed on the way\"" : "200",
                       in->request.bench_id, has_body ? ",\"Content-Type\":\"application/octet-stream\"" : "",
                       has_body ? "true" : "false");
    if (len < 0 || (size_t)len >= sizeof text || (size_t)len + 14 > out_len)
        fatal("a response that is too long");
    size_t head = frame_header(out, OP_TEXT, true, (size_t)len, mask_key);
    xor_key(out + head, (const uint8_t *)text, (size_t)len, mask_key);
    return head + (size_t)len;
}

static const struct block *response_body(const struct intake *in)
{
    return in->wrong || in->received == 0 ? NULL : masked_message_of((size_t)in->received);
}

static void answer_on_control(struct control *control)
{
    uint8_t head[512];
    size_t len = response_head(&control->in, head, sizeof head);
    const struct block *body = response_body(&control->in);
    requests++;
    conn_queue(&control->c, head, len);
    if (body != NULL)
        conn_queue(&control->c, body->data, body->len);
}

static void answer_on_rendezvous(struct rendezvous *r)
{
    static const uint8_t normal[2] = {0x03, 0xe8};
    size_t head_len = response_head(&r->in, r->head, sizeof r->head);
    size_t last_len = frame_header(r->last, OP_CLOSE, true, sizeof normal, mask_key);
    const struct block *body = response_body(&r->in);
    xor_key(r->last + last_len, normal, sizeof normal, mask_key);
    r->out = (struct outgoing){{{r->head, head_len}, {NULL, 0}, {r->last, last_len + sizeof normal}}, 0, 3};
    if (body != NULL)
        r->out.parts[1] = (struct iovec){body->data, body->len};
    r->answers = true;
    requests++;
    conn_send_parts(&r->c, &r->out);
}

/* ---- rendezvous of a request ------------------------------------------------------------------------------------- */

static void rendezvous_data(struct conn *c, uint8_t *data, size_t len)
{
    struct rendezvous *r = (struct rendezvous *)c;
    struct piece piece;
    uint8_t *end = data + len;
    int result = 0;
    while (c->state == CONN_OPEN && (result = frame_next(&c->in, &data, end, &piece)) > 0) {
        if (piece.opcode == OP_CLOSE) {
            if (!r->answers)
                failures++;
            forget_text(&r->in);
            conn_drop(c); /* our own Close stands behind the answer, or nobody wants it any more */
            return;
        }
        if (piece.opcode > OP_CLOSE) {
            conn_control(c, &piece);
        } else if (r->answers) {
            fatal("a rendezvous that went on behind its answer");
        } else if (piece.opcode == OP_TEXT) {
            if (!take_text(&r->in, &piece))
                continue;
            if (!read_request(r->in.text, &r->in.request) || !r->in.request.has_method)
                fatal("a rendezvous whose first message is no request");
            forget_text(&r->in);
            begin_request(&r->in);
            if (!r->in.awaits_body)
                answer_on_rendezvous(r);
        } else if (take_body(&r->in, &piece)) {
            answer_on_rendezvous(r);
        }
    }
    if (result < 0)
        fatal("a rendezvous with broken framing");
}

static void rendezvous_writable(struct conn *c)
{
    conn_send_parts(c, &((struct rendezvous *)c)->out);
}

static void rendezvous_lost(struct conn *c, const char *why)
{
    (void)why;
    failures++; /* the relay answers a Close before it goes */
    forget_text(&((struct rendezvous *)c)->in);
    conn_drop(c);
}

static void nothing(struct conn *c)
{
    (void)c;
}

static const struct conn_ops rendezvous_ops = {nothing, rendezvous_data, rendezvous_writable, rendezvous_lost};

/* ---- control channels -------------------------------------------------------------------------------------------- */

static void dial(char *address, bool for_request)
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
    uint16_t port = (uint16_t)atoi(colon + 1);
    if (!for_request) {
        peer_dial(host, port, target);
        return;
    }
    struct rendezvous *r = calloc(1, sizeof *r);
    if (r == NULL)
        fatal("out of memory");
    r->c.free_when_dropped = true;
    conn_dial(&r->c, &rendezvous_ops, host, port, target, "");
}

static void control_message(struct control *control)
{
    struct json_request *request = &control->in.request;
    char address[sizeof request->address];
    if (read_accept(control->in.text, address, sizeof address)) {
        dial(address, false);
    } else if (!read_request(control->in.text, request)) {
        fatal("a control message that is neither accept nor request");
    } else if (!request->has_method) {
        dial(request->address, true);
    } else {
        begin_request(&control->in);
        if (!control->in.awaits_body)
            answer_on_control(control);
    }
    forget_text(&control->in);
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
            if (control->in.awaits_body)
                fatal("a text message where a request's body belongs");
            if (take_text(&control->in, &piece))
                control_message(control);
        } else if (take_body(&control->in, &piece)) {
            answer_on_control(control);
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
    forget_text(&((struct control *)c)->in);
    conn_drop(c);
}

static const struct conn_ops control_ops = {control_opened, control_data, nothing, control_lost};

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
