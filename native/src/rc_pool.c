#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "rc_pool.h"

#include <string.h>
#include <sys/mman.h>

enum {
    CACHE_LINE = 64
};

int rc_pool_open(struct rc_pool *pool, uint32_t buffers, uint32_t buffer_bytes) {
    memset(pool, 0, sizeof *pool);
    if (buffers == 0 || buffers > RC_POOL_BUFFERS_MAX || buffer_bytes == 0 || buffer_bytes > RC_POOL_BUFFER_BYTES_MAX)
        return RC_EINVAL;

    /* 2^20 slabs of 2^24 bytes are 2^44: no overflow where size_t has 64 bits, and checked where it has not. */
    size_t slab_bytes = ((size_t)RC_HEADROOM + buffer_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    size_t books_bytes = (size_t)buffers * 2 * sizeof(uint32_t);
    if (slab_bytes > (SIZE_MAX - books_bytes) / buffers)
        return RC_ENOMEM;
    size_t mapping_bytes = slab_bytes * buffers + books_bytes;

    void *mapping = mmap(NULL, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
        return RC_ENOMEM;

    pool->mapping = mapping;
    pool->mapping_bytes = mapping_bytes;
    pool->slab_bytes = slab_bytes;
    pool->buffer_bytes = buffer_bytes;
    pool->buffers = buffers;
    pool->free_stack = (uint32_t *)(void *)(pool->mapping + slab_bytes * buffers); /* aligned: slabs are whole lines */
    pool->generations = pool->free_stack + buffers;
    for (uint32_t i = 0; i < buffers; i++)
        pool->free_stack[i] = buffers - 1 - i;
    pool->free_count = buffers;
    return RC_OK;
}

void rc_pool_close(struct rc_pool *pool) {
    if (pool->mapping != NULL)
        munmap(pool->mapping, pool->mapping_bytes);
    memset(pool, 0, sizeof *pool);
}

int rc_pool_take(struct rc_pool *pool, uint64_t *lease, uint8_t **slab) {
    *lease = 0;
    *slab = NULL;
    if (pool->free_count == 0) {
        pool->exhausted++;
        return RC_ENOBUF;
    }
    uint32_t number = pool->free_stack[--pool->free_count];
    uint32_t in_use = pool->buffers - pool->free_count;

    if (in_use > pool->peak)
        pool->peak = in_use;
    pool->generations[number]++;
    RC_ASSERT(pool->generations[number] & 1);
    *lease = (uint64_t)pool->generations[number] << 32 | number;
    *slab = rc_pool_slab(pool, number);
    return RC_OK;
}

int rc_pool_give(struct rc_pool *pool, uint64_t lease) {
    uint32_t number = rc_lease_number(lease);
    uint32_t generation = (uint32_t)(lease >> 32);

    if (number >= pool->buffers || !(generation & 1) || pool->generations[number] != generation)
        return RC_ESTALE;
    RC_ASSERT(pool->free_count < pool->buffers);
    pool->generations[number]++;
    pool->free_stack[pool->free_count++] = number;
    return RC_OK;
}

uint8_t *rc_pool_slab(const struct rc_pool *pool, uint32_t number) {
    return number < pool->buffers ? pool->mapping + (size_t)number * pool->slab_bytes : NULL;
}
