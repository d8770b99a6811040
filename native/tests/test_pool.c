#include "rc_pool.h"
#include "rc_test.h"

static void check_bounds(void) {
    struct rc_pool pool;

    rc_test_case = "bounds";
    CHECK_INT(rc_pool_open(&pool, 0, 100), RC_EINVAL);
    CHECK_INT(rc_pool_open(&pool, 1, 0), RC_EINVAL);
    CHECK_INT(rc_pool_open(&pool, RC_POOL_BUFFERS_MAX + 1, 1), RC_EINVAL);
    CHECK_INT(rc_pool_open(&pool, 1, RC_POOL_BUFFER_BYTES_MAX + 1), RC_EINVAL);
    CHECK(pool.mapping == NULL);
    rc_pool_close(&pool); /* of a pool that never opened: nothing */
}

static void check_life(void) {
    enum {
        BUFFERS = 5,
        BYTES = 1000
    };
    struct rc_pool pool;
    uint64_t leases[BUFFERS], lease;
    uint8_t *slabs[BUFFERS], *slab;

    rc_test_case = "life";
    CHECK_INT(rc_pool_open(&pool, BUFFERS, BYTES), RC_OK);
    CHECK(pool.slab_bytes >= RC_HEADROOM + BYTES && pool.slab_bytes % 64 == 0);
    for (int i = 0; i < BUFFERS; i++) {
        CHECK_INT(rc_pool_take(&pool, &leases[i], &slabs[i]), RC_OK);
        CHECK(slabs[i] == rc_pool_slab(&pool, rc_lease_number(leases[i])));
        memset(slabs[i], i, RC_HEADROOM + BYTES); /* the slabs are apart, or the next check finds out */
    }
    for (int i = 0; i < BUFFERS; i++)
        for (int k = 0; k < RC_HEADROOM + BYTES; k++)
            CHECK(slabs[i][k] == i);

    CHECK_INT(rc_pool_take(&pool, &lease, &slab), RC_ENOBUF);
    CHECK(lease == 0 && slab == NULL);
    CHECK_INT(pool.exhausted, 1);
    CHECK_INT(pool.peak, BUFFERS);

    CHECK_INT(rc_pool_give(&pool, leases[2]), RC_OK);
    CHECK_INT(rc_pool_give(&pool, leases[2]), RC_ESTALE); /* twice */
    CHECK_INT(pool.free_count, 1);
    CHECK_INT(rc_pool_take(&pool, &lease, &slab), RC_OK); /* the warm one again, under a new lease */
    CHECK(slab == slabs[2] && lease != leases[2]);
    CHECK_INT(rc_pool_give(&pool, leases[2]), RC_ESTALE); /* an earlier holder */
    CHECK_INT(rc_pool_give(&pool, lease), RC_OK);

    const uint64_t nonsense[] = {0, 1, BUFFERS, (1ull << 32) | BUFFERS, UINT64_MAX, 2ull << 32};
    for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++)
        CHECK_INT(rc_pool_give(&pool, nonsense[i]), RC_ESTALE);

    CHECK(rc_pool_slab(&pool, BUFFERS) == NULL);
    CHECK_INT(pool.peak, BUFFERS);
    rc_pool_close(&pool);
    CHECK(pool.mapping == NULL);
    rc_pool_close(&pool);
}

static void check_generations_wrap(void) {
    struct rc_pool pool;
    uint64_t lease;
    uint8_t *slab;

    rc_test_case = "generations wrap";
    CHECK_INT(rc_pool_open(&pool, 1, 1), RC_OK);
    pool.generations[0] = UINT32_MAX - 1;
    for (int i = 0; i < 4; i++) {
        CHECK_INT(rc_pool_take(&pool, &lease, &slab), RC_OK);
        CHECK_INT(rc_pool_give(&pool, lease), RC_OK);
        CHECK_INT(rc_pool_give(&pool, lease), RC_ESTALE);
    }
    rc_pool_close(&pool);
}

int main(void) {
    check_bounds();
    check_life();
    check_generations_wrap();
    return rc_test_done("test_pool");
}
