/* A fixed set of receive buffers, all from one mapping made at start.
 *
 *      slab:  [ RC_HEADROOM ][ buffer_bytes, what recv() is given ][ up to the next cache line ]
 *
 * Bound: `buffers` slabs. At the bound rc_pool_take() says RC_ENOBUF, and the answer is to stop reading, not to wait in C.
 *
 * A lease is the number of the slab and how often it has been given out. Giving it back twice, or a lease of an earlier
 * holder, is RC_ESTALE and changes nothing. The struct belongs to one thread at a time; there is no lock in it.
 */
#ifndef RC_POOL_H
#define RC_POOL_H

#include "rc_base.h"

enum {
    RC_HEADROOM = 192, /* rc_session.h says why; three cache lines, so that received data begins on one */
    RC_POOL_BUFFERS_MAX = 1 << 20,
    RC_POOL_BUFFER_BYTES_MAX = 1 << 24
};

struct rc_pool {
    uint8_t *mapping; /* slabs, then free_stack, then generations */
    size_t mapping_bytes;
    size_t slab_bytes;
    uint32_t buffer_bytes;
    uint32_t buffers;
    uint32_t *free_stack;  /* numbers of the free slabs; the last one given back is the next one taken, being warm */
    uint32_t *generations; /* per slab; odd while it is out */
    uint32_t free_count;
    uint32_t peak;      /* most slabs out at one time */
    uint64_t exhausted; /* takes that found none */
};

/* Maps the slabs. Pages cost memory only once they are touched.
 *
 * Returns RC_OK; RC_EINVAL for counts that are 0 or above the limits; RC_ENOMEM. The pool is zeroed on failure. */
int rc_pool_open(struct rc_pool *pool, uint32_t buffers, uint32_t buffer_bytes);

/* Unmaps everything; slabs still out become invalid, so the caller keeps the pool until the last one is back. Zeroes the
 * struct; calling it again does nothing. */
void rc_pool_close(struct rc_pool *pool);

/* Returns RC_OK with `*lease` and `*slab` set, or RC_ENOBUF. O(1). */
int rc_pool_take(struct rc_pool *pool, uint64_t *lease, uint8_t **slab);

/* Returns RC_OK or RC_ESTALE. O(1). */
int rc_pool_give(struct rc_pool *pool, uint64_t lease);

/* Where a slab begins, by its number (0 .. buffers - 1); NULL for another number. */
uint8_t *rc_pool_slab(const struct rc_pool *pool, uint32_t number);

static inline uint32_t rc_lease_number(uint64_t lease) {
    return (uint32_t)lease;
}

#endif
