/* What the C tests share: checks that name their line, and memory whose neighbours cannot be touched. */
#ifndef RC_TEST_H
#define RC_TEST_H

#include "rc_base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const char *rc_test_case; /* named in failures */
extern long rc_test_checks;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        rc_test_checks++;                                                                                              \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: [%s] failed: %s\n", __FILE__, __LINE__, rc_test_case, #condition);                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CHECK_INT(found, wanted)                                                                                       \
    do {                                                                                                               \
        long long rc_found = (long long)(found), rc_wanted = (long long)(wanted);                                      \
        rc_test_checks++;                                                                                              \
        if (rc_found != rc_wanted) {                                                                                   \
            fprintf(stderr, "%s:%d: [%s] %s is %lld, not %lld\n", __FILE__, __LINE__, rc_test_case, #found, rc_found,  \
                    rc_wanted);                                                                                        \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CHECK_BYTES(found, wanted, length) CHECK((length) == 0 || memcmp((found), (wanted), (length)) == 0)

/* An area between two unreadable pages. One byte too far in either direction is a fault at the very instruction, with or
 * without a sanitizer. */
struct rc_guarded {
    uint8_t *pages; /* room bytes, page aligned, unreadable in front and behind */
    size_t room;
};

struct rc_guarded rc_guarded_new(size_t room);
void rc_guarded_free(struct rc_guarded *area);

/* A copy of the bytes that ends at the unreadable page behind, or begins at the one in front. */
uint8_t *rc_guarded_at_end(struct rc_guarded *area, const void *bytes, size_t length);
uint8_t *rc_guarded_at_start(struct rc_guarded *area, const void *bytes, size_t length);

/* Bytes that grow. Zeroed, it is empty; free `data`. */
struct bytes {
    uint8_t *data;
    size_t length, room;
};

void bytes_append(struct bytes *bytes, const void *data, size_t length);

/* xorshift64*: the same numbers on every machine. */
uint64_t rc_test_random(uint64_t *state);

static inline int rc_test_done(const char *name) {
    printf("%-14s %ld checks\n", name, rc_test_checks);
    return 0;
}

#endif
