/* rcload: the load side of the benchmarks. One program, five roles:
 *
 *   client     dials an address many times and runs jobs over the connections: WebSocket streams, or HTTP requests
 *   server     a plain WebSocket server: the far end of the direct and proxied topologies
 *   origin     a plain HTTP server: the same for requests
 *   listener   a relay listener: holds control channels, dials each rendezvous address it is given, answers requests
 *   floor      the least that joins senders and a listener: what the load side can do at most (floor.c)
 *
 * Server and listener do the same work for a stream (peer.c), origin and listener for a request, so that topologies differ only
 * in what stands between.
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
#include <sys/uio.h>

#define MAX_MESSAGE_BYTES ((size_t)4 << 20)
#define READ_BYTES ((size_t)256 << 10)
#define HEAD_BYTES 8192
#define FRAME_BYTES ((size_t)65536)
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
/* One masked binary message in frames of at most 64 KiB, the last one final. Made once per size and kept. */
const struct block *masked_message_of(size_t message);

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

/* What is to be sent next, straight from the memory that its parts name. */
struct outgoing {
    struct iovec parts[3];
    unsigned at, count;
};

enum conn_state { CONN_CLOSED, CONN_DIALING, CONN_AWAITS_101, CONN_AWAITS_REQUEST, CONN_OPEN };

struct conn {
    const struct conn_ops *ops;
    int fd;
    enum conn_state state;
    uint32_t interest;
    bool is_client; /* dialled: masks what it sends */
    bool is_plain;  /* no WebSocket: open as soon as it stands, opened() is called, then data() with every byte */
    bool wants_out, paused, free_when_dropped;
    bool mid_frame; /* conn_pump or conn_send_parts stopped inside a frame: nothing else may be queued */
    struct queue out;
    struct frame_reader in;
    struct frame_reader outer; /* of the WebSocket around the stream */
    bool outer_open;
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

/* Set before the first dial: every stream that is dialled stands inside a WebSocket of its own, each of its frames the payload of a
 * binary one. What is dialled then is a gateway that takes the outer WebSocket off and speaks plain TCP to the far end. Blocks for
 * dialled streams come wrapped. */
extern bool wraps_streams;

void loop_init(void);
/* Waits at most timeout_ms (-1: for ever) and serves what is ready. */
void loop_turn(int timeout_ms);
/* tick is called once, in the turn behind the moment at_ns of now_ns(), before anything else in it. Another moment takes the place of
 * the last; UINT64_MAX: not any more. Exact to the kernel's timers, where a timeout of epoll_wait has 50 microseconds of slack. */
void loop_tick_at(uint64_t at_ns, void (*tick)(void));
/* line is called for each line on standard input after "go". End of input exits. */
void loop_read_commands(void (*line)(char *line));

/* Listens on 127.0.0.1 and a free port, which is returned; incoming gets each accepted socket. */
int listen_on_loopback(void (*incoming)(int fd));
/* Starts dialling; headers are complete lines with CRLF. Loss is reported through ops->lost. Target NULL: a plain connection. */
void conn_dial(struct conn *c, const struct conn_ops *ops, struct in_addr host, uint16_t port, const char *target,
               const char *headers);
void conn_accept(struct conn *c, const struct conn_ops *ops, int fd);
/* The same for a plain connection; opened() is not called. */
void conn_accept_plain(struct conn *c, const struct conn_ops *ops, int fd);
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
/* Sends on what is left of out, behind what is queued, and asks for writable() while there is more. Returns true when all is gone. */
bool conn_send_parts(struct conn *c, struct outgoing *out);
/* Takes a piece of a control frame. A whole ping or Close is answered in kind, except inside a frame that conn_pump has half
 * sent: there it is left unanswered. */
void conn_control(struct conn *c, struct piece *piece);
void conn_update_interest(struct conn *c);
/* Closes the socket now. Frees c at the end of the turn if free_when_dropped. */
void conn_drop(struct conn *c);

/* Value of a header in a head that ends in CRLF CRLF, copied up to its first blank; false when it is not there. */
bool find_header(const char *head, const char *name, char *out, size_t out_len);

/* ---- http.c: HTTP/1.1 with keep-alive, one request at a time ------------------------------------------------------ */

#define REQUEST_ID_CHARS 16
#define REQUEST_ID_HEADER "Bench-Id"

enum http_event { HTTP_BROKEN, HTTP_MORE, HTTP_HEAD, HTTP_BODY, HTTP_END };

struct http_reader {
    bool reads_answers;
    enum { HTTP_IN_HEAD, HTTP_IN_SIZED, HTTP_IN_SIZE, HTTP_IN_CHUNK, HTTP_BEHIND_CHUNK, HTTP_AT_END } part;
    char head[HEAD_BYTES];
    size_t head_len;
    unsigned digits;
    bool last_chunk, behind_cr;
    uint64_t left;
};

/* Takes the next event off *at, which moves on. HTTP_HEAD: reader->head is whole and ends in NUL, until the next call behind
 * HTTP_END. HTTP_BODY: *data and *len are a part of the body, never empty. Bodies are sized or chunked; an answer with neither is
 * broken, since no connection here ends with its answer. */
enum http_event http_next(struct http_reader *reader, uint8_t **at, uint8_t *end, uint8_t **data, size_t *len);

/* ---- json.c: a look into one control message ---------------------------------------------------------------------- */

struct json_request {
    char address[4096];
    char id[128];
    char bench_id[REQUEST_ID_CHARS + 1];
    bool has_method, has_body;
};

/* The rendezvous address of an accept message; false for anything else. */
bool read_accept(const char *text, char *address, size_t address_len);
/* A request message, in full or with its address only (then has_method is false); false for anything else. */
bool read_request(const char *text, struct json_request *out);

/* ---- peer.c ------------------------------------------------------------------------------------------------------- */

/* Dials a rendezvous address of an accept message; the new stream is obedient like those of the server. */
void peer_dial(struct in_addr host, uint16_t port, const char *target);
/* What run_server and run_listener answer to "count". */
void answer_count(char *line);
extern unsigned listening, requests, failures;

/* ---- usage.c: what processes have used, from /proc ---------------------------------------------------------------- */

#define MAX_WATCHED 8
struct settings;

/* This process first, then the watched ones. Of all threads of a process: CPU time, time spent ready to run without a core, and
 * voluntary context switches. CPU time counts threads that have ended too, the others only those that live. */
struct usage {
    uint64_t cpu_ns[1 + MAX_WATCHED], waited_ns[1 + MAX_WATCHED], switches[1 + MAX_WATCHED];
};
void usage_take(const struct settings *settings, struct usage *out);
/* Prints the differences as members of a JSON object, each behind a comma. */
void usage_print(const struct settings *settings, const struct usage *before, const struct usage *after);
/* Resident private memory of the watched processes in bytes; 0 where the kernel does not say. Takes a millisecond and more. */
void memory_take(const struct settings *settings, uint64_t out[MAX_WATCHED]);
void memory_print(const struct settings *settings, const char *name, const uint64_t bytes[MAX_WATCHED]);

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
    unsigned count, rate; /* rate: of each stream, in a second; 0: the next one when the last is back */
};

#define MAX_LISTEN_LINES 256
#define MAX_JOBS 8
#define MOST_PACED 1000000u /* pings of all streams of a job in a second */

struct settings {
    struct listen_line listens[MAX_LISTEN_LINES]; /* listener: control channels; client: the one address it dials */
    unsigned listen_count;
    struct job_line jobs[MAX_JOBS];
    unsigned job_count;
    int watched[MAX_WATCHED];
    unsigned watched_count;
    char *headers;
    double warm_s, measured_s, lead_s;
    unsigned limit_s, parallel;
    bool holds;
};

void run_client(const struct settings *settings);
void run_server(const struct settings *settings);
void run_origin(const struct settings *settings);
void run_listener(const struct settings *settings);
void run_floor(const struct settings *settings);

#endif
