/* Result codes and assertions shared by every rc_* file.
 *
 * A function that returns `int` answers `>= 0` (bytes or a count, as its comment says) or one of the negatives below.
 * They come in families, so that a caller can tell whose move it is without knowing each one:
 *
 *    -1 .. -9     come back: nothing is wrong, there is not enough of something yet
 *   -10 .. -29    the peer broke a rule; RC_IS_PROTOCOL_ERROR() is true and rc_close_code() says what to close it with
 *   -30 .. -39    the caller broke a rule: our bug
 */
#ifndef RC_BASE_H
#define RC_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RC_OK = 0,

    RC_NEED_MORE = -1, /* the input ends too early; call again with more of it */
    RC_ENOBUF = -2,    /* no buffer is free; stop reading until one is given back */

    RC_EPROTO_RSV = -10,            /* RFC 6455 5.2: RSV1-3 must be 0, no extension was agreed */
    RC_EPROTO_OPCODE = -11,         /* RFC 6455 5.2: opcode 3-7 or 11-15 */
    RC_EPROTO_FRAGMENTED = -12,     /* RFC 6455 5.5: control frame without FIN */
    RC_EPROTO_CONTROL_LENGTH = -13, /* RFC 6455 5.5: control payload above 125 bytes */
    RC_EPROTO_UNMASKED = -14,       /* RFC 6455 5.1: a client must mask */
    RC_EPROTO_MASKED = -15,         /* RFC 6455 5.1: a server must not mask */
    RC_EPROTO_LENGTH = -16,         /* RFC 6455 5.2: length not in its shortest form, or its top bit set */
    RC_EPROTO_CONTINUATION = -17,   /* RFC 6455 5.4: continuation, and no message is open */
    RC_EPROTO_INTERLEAVED = -18,    /* RFC 6455 5.4: new message inside an open one */
    RC_EPROTO_CLOSE_LENGTH = -19,   /* RFC 6455 5.5.1: close payload of one byte */
    RC_EPROTO_CLOSE_CODE = -20,     /* RFC 6455 7.4: a code that may not stand in a frame */
    RC_EPROTO_CLOSE_UTF8 = -21,     /* RFC 6455 5.5.1, 8.1: close reason is not UTF-8 */

    RC_EINVAL = -30, /* an argument is out of its documented range */
    RC_ESTALE = -31, /* a lease that was given back already */
    RC_ENOMEM = -32  /* the system refused memory, at start only */
};

#define RC_IS_PROTOCOL_ERROR(result) ((result) <= RC_EPROTO_RSV && (result) >= RC_EPROTO_CLOSE_UTF8)

/* WebSocket close code for a protocol error: 1007 for text that is not UTF-8, else 1002. */
static inline uint16_t rc_close_code(int result) {
    return result == RC_EPROTO_CLOSE_UTF8 ? 1007 : 1002;
}

/* Python builds extensions with NDEBUG, so that a plain assert() vanishes from the very object that ships.
 * RC_ASSERT stays in every build: it costs a compare and a branch never taken, and it stands where going on would write
 * outside a buffer. RC_CHECK is for tests, fuzzing and sanitizers (RC_CHECKED). */
#define RC_ASSERT(condition) ((condition) ? (void)0 : rc_assert_failed(#condition, __FILE__, __LINE__))

#ifdef RC_CHECKED
#define RC_CHECK(condition) RC_ASSERT(condition)
#else
#define RC_CHECK(condition) ((void)0)
#endif

/* Adds to a counter that one thread writes and any thread may read, without a lock: readers see each of its values whole,
 * and no order between two counters. */
static inline void rc_count(uint64_t *counter, uint64_t more) {
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + more, __ATOMIC_RELAXED);
}

/* Reads such a counter, in any thread. */
static inline uint64_t rc_counted(const uint64_t *counter) {
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

/* Prints one line to stderr and aborts. */
_Noreturn void rc_assert_failed(const char *condition, const char *file, int line);

#endif
