/* rcload: the load side of the benchmarks. One program, three roles:
 *
 *   client     dials a WebSocket address many times and runs jobs over the connections
 *   server     a plain WebSocket server: the far end of the direct and proxied topologies
 *   listener   a relay listener: holds control channels, dials each rendezvous address it is given
 *
 * Server and listener do the same work for a stream (peer.c), so that topologies differ only in what stands between.
 *
 * Everything is one thread over one level-triggered epoll, one system call per stream and turn. The role is the only
 * argument; the rest, tokens included, comes as lines on standard input up to the line "go" (main.c lists them). Answers are
 * lines of JSON on standard output. End of input ends the program, so it never outlives the one who started it.
 */
#ifndef RELAYCORE_BENCH_LOAD_H
#define RELAYCORE_BENCH_LOAD_H

#define _GNU_SOURCE

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_MESSAGE_BYTES ((size_t)4 << 20)
#define READ_BYTES ((size_t)256 << 10)
#define HEAD_BYTES 8192
#define COMMAND_BYTES 125
#define CONTROL_MESSAGE_BYTES 65536

/* ---- digest.c: what a WebSocket handshake needs ------------------------------------------------------------------ */

#define ACCEPT_CHARS 28
/* Sec-WebSocket-Accept for a key; out holds ACCEPT_CHARS characters and a NUL. */
void accept_for_key(const char *key, size_t key_len, char out[ACCEPT_CHARS + 1]);
/* A fresh Sec-WebSocket-Key: 24 characters and a NUL. */
void fresh_key(char out[25]);

/* ---- frames.c: RFC 6455 frames ----------------------------------------------------------------------------------- */

enum { OP_CONTINUATION = 0, OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };

struct frame_reader {
    uint8_t head[14];
    unsigned have;
    bool in_payload, fin, masked;
    uint8_t opcode;         /* of this frame, continuation resolved to its message's opcode */
    uint8_t message_opcode; /* of the data message under way; 0 outside one */
    uint8_t key[4];
    uint64_t length, done;
};

/* Part of one frame, as much of it as has arrived. data points into the input and is still masked when masked is set;
 * key is rotated so that key[0] belongs to data[0]. */
struct piece {
    uint8_t opcode;
    bool fin, starts_frame, ends_frame, masked;
    uint8_t key[4];
    uint64_t frame_length;
    uint8_t *data;
    size_t len;
};

/* Takes the next piece off *at, which moves on. Returns 1 with a piece, 0 when the input is used up, -1 when the peer
 * broke the framing. */
int frame_next(struct frame_reader *reader, uint8_t **at, uint8_t *end, struct piece *piece);
/* Writes a header of at most 14 bytes; key NULL for an unmasked frame. Returns its length. */
size_t frame_header(uint8_t *out, uint8_t opcode, bool fin, uint64_t length, const uint8_t *key);
/* dst[i] = src[i] ^ key[i % 4]; dst may be src. */
void xor_key(uint8_t *dst, const uint8_t *src, size_t len, const uint8_t key[4]);

/* The key of every frame that this process masks: never zero, one per process, so that frames can be made once. */
extern uint8_t mask_key[4];
/* Content of every message, from its first byte: no period shorter than the largest message. */
extern uint8_t pattern[MAX_MESSAGE_BYTES];
void frames_init(void);

/* Ready-made binary frames of one message size, sent again and again. Made once per size and role and kept. */
struct block {
    size_t message, frame, len;
    bool masked;
    uint8_t *data;
    struct block *next;
};
const struct block *block_of(size_t message, bool masked);

/* ---- net.c: connections ------------------------------------------------------------------------------------------ */

struct queue {
    uint8_t *data;
    size_t start, end, capacity;
};

struct conn;
struct conn_ops {
    void (*opened)(struct conn *c);
    /* data is writable memory, good until the call returns. */
    void (*data)(struct conn *c, uint8_t *data, size_t len);
    /* The socket takes bytes, the queue is empty and wants_out is set. */
    void (*writable)(struct conn *c);
    /* The connection is over: refused, reset or ended. Called once; c is freed by its owner or by conn_drop. */
    void (*lost)(struct conn *c, const char *why);
};

enum conn_state { CONN_CLOSED, CONN_DIALING, CONN_AWAITS_101, CONN_AWAITS_REQUEST, CONN_OPEN };

struct conn {
    const struct conn_ops *ops;
    int fd;
    enum conn_state state;
    uint32_t interest;
    bool is_client; /* dialled: masks what it sends */
    bool wants_out, paused, free_when_dropped;
    bool mid_frame; /* conn_pump stopped inside a frame: nothing else may be queued */
    struct queue out;
    struct frame_reader in;
    uint8_t control[COMMAND_BYTES]; /* payload of the ping or Close being read */
    size_t control_len;
    char *head;
    size_t head_len;
    char key[25];
};

uint64_t now_ns(void);
__attribute__((noreturn, format(printf, 1, 2))) void fatal(const char *format, ...);
/* Prints text as a JSON string. */
void print_json_string(const char *text);

void loop_init(void);
/* Waits at most timeout_ms (-1: for ever) and serves what is ready. */
void loop_turn(int timeout_ms);
/* line is called for each line on standard input after "go". End of input exits. */
void loop_read_commands(void (*line)(char *line));

/* Listens on 127.0.0.1 and a free port, which is returned; incoming gets each accepted socket. */
int listen_on_loopback(void (*incoming)(int fd));
/* Starts dialling; headers are complete lines with CRLF. Loss is reported through ops->lost. */
void conn_dial(struct conn *c, const struct conn_ops *ops, struct in_addr host, uint16_t port, const char *target,
               const char *headers);
void conn_accept(struct conn *c, const struct conn_ops *ops, int fd);
void conn_queue(struct conn *c, const void *data, size_t len);
/* Room for len bytes at the end of the queue, to be written at once. */
uint8_t *conn_reserve(struct conn *c, size_t len);
void conn_queue_frame(struct conn *c, uint8_t opcode, const void *payload, size_t len);
void conn_queue_text(struct conn *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Sends what is queued as far as it goes. Returns false when the connection was lost on the way. */
bool conn_flush(struct conn *c);
/* Sends straight from memory, only while the queue is empty. Returns bytes taken, 0 when full, -1 when lost. */
long conn_send(struct conn *c, const uint8_t *data, size_t len);
/* Sends the next part of an endless run of block; *position counts the bytes of it sent so far. One system call. With stopping
 * it goes no further than the end of the frame under way. Returns true when it stands there. */
bool conn_pump(struct conn *c, const struct block *block, uint64_t *position, bool stopping);
/* Takes a piece of a control frame. A whole ping or Close is answered in kind, except inside a frame that conn_pump has half
 * sent: there it is left unanswered. */
void conn_control(struct conn *c, struct piece *piece);
void conn_update_interest(struct conn *c);
/* Closes the socket now. Frees c at the end of the turn if free_when_dropped. */
void conn_drop(struct conn *c);

/* ---- the roles --------------------------------------------------------------------------------------------------- */

struct listen_line {
    struct in_addr host;
    uint16_t port;
    char *target;
    unsigned count;
};

struct job_line {
    char kind[16];
    size_t size;
    unsigned count;
};

#define MAX_LISTEN_LINES 256
#define MAX_JOBS 8
#define MAX_WATCHED 8

struct settings {
    struct listen_line listens[MAX_LISTEN_LINES]; /* listener: control channels; client: the one address it dials */
    unsigned listen_count;
    struct job_line jobs[MAX_JOBS];
    unsigned job_count;
    int watched[MAX_WATCHED];
    unsigned watched_count;
    char *headers;
    double warm_s, measured_s;
    unsigned limit_s, parallel;
    bool holds;
};

void run_client(const struct settings *settings);
void run_server(const struct settings *settings);
void run_listener(const struct settings *settings);

#endif
