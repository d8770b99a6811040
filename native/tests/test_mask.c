/* Every twin against single bytes: all alignments of both sides, all lengths around the vector widths, all phases, and the
 * forward overlap that in-place translation needs. */
#include "rc_mask.h"
#include "rc_test.h"

enum {
    LENGTHS = 300,
    ALIGNMENTS = 64,
    ROOM = LENGTHS + 2 * ALIGNMENTS
};

static const uint8_t key_bytes[4] = {0x80, 0x01, 0xFE, 0x37};

static void expect(uint8_t *wanted, const uint8_t *source, size_t length, size_t phase) {
    for (size_t i = 0; i < length; i++)
        wanted[i] = source[i] ^ key_bytes[(i + phase) & 3];
}

static void check_apart(const struct rc_mask_twin *twin, const uint8_t *noise) {
    struct rc_guarded in = rc_guarded_new(ROOM), out = rc_guarded_new(ROOM);
    uint8_t wanted[LENGTHS];

    for (size_t length = 0; length < LENGTHS; length++) {
        for (size_t phase = 0; phase < 4; phase++) {
            uint32_t key = rc_mask_rotate(rc_mask_load(key_bytes), phase);
            uint8_t *source = rc_guarded_at_end(&in, noise, length);
            uint8_t *target = rc_guarded_at_end(&out, noise + 7, length);

            expect(wanted, noise, length, phase);
            twin->function(target, source, length, key);
            CHECK_BYTES(target, wanted, length);
            CHECK_BYTES(source, noise, length);

            source = rc_guarded_at_start(&in, noise, length);
            target = rc_guarded_at_start(&out, noise + 7, length);
            twin->function(target, source, length, key);
            CHECK_BYTES(target, wanted, length);
        }
    }
    rc_guarded_free(&in);
    rc_guarded_free(&out);
}

static void check_alignments(const struct rc_mask_twin *twin, const uint8_t *noise) {
    static _Alignas(64) uint8_t in[ROOM], out[ROOM];
    uint8_t wanted[LENGTHS];
    const size_t lengths[] = {1, 8, 17, 33, 64, 131, 257};

    for (size_t from = 0; from < ALIGNMENTS; from++) {
        for (size_t to = 0; to < ALIGNMENTS; to++) {
            size_t length = lengths[(from + to) % (sizeof lengths / sizeof *lengths)];

            memcpy(in + from, noise, length);
            memset(out, 0xA5, sizeof out);
            expect(wanted, noise, length, 0);
            twin->function(out + to, in + from, length, rc_mask_load(key_bytes));
            CHECK_BYTES(out + to, wanted, length);
            for (size_t i = 0; i < sizeof out; i++)
                CHECK((i >= to && i < to + length) || out[i] == 0xA5);
        }
    }
}

/* target <= source, from the same place to so far down that they no longer meet. */
static void check_overlap(const struct rc_mask_twin *twin, const uint8_t *noise) {
    static uint8_t area[3 * ROOM];
    uint8_t wanted[LENGTHS];

    for (size_t down = 0; down <= 160; down++) {
        for (size_t length = 0; length < LENGTHS; length += 1 + length / 16) {
            memset(area, 0xA5, sizeof area);
            memcpy(area + ROOM, noise, length);
            expect(wanted, noise, length, 0);
            twin->function(area + ROOM - down, area + ROOM, length, rc_mask_load(key_bytes));
            CHECK_BYTES(area + ROOM - down, wanted, length);
            CHECK(area[ROOM - down - 1] == 0xA5);
        }
    }
}

static void check_chosen(const uint8_t *noise) {
    uint8_t area[ROOM], wanted[LENGTHS];

    rc_test_case = "rc_mask";
    expect(wanted, noise, LENGTHS, 0);
    rc_mask(area, noise, LENGTHS, rc_mask_load(key_bytes));
    CHECK_BYTES(area, wanted, LENGTHS);

    /* RFC 6455 5.3: a payload may be masked in pieces, each with the key rotated by what went before. */
    for (size_t cut = 0; cut <= LENGTHS; cut++) {
        memcpy(area, noise, LENGTHS);
        rc_mask(area, area, cut, rc_mask_load(key_bytes));
        rc_mask(area + cut, area + cut, LENGTHS - cut, rc_mask_rotate(rc_mask_load(key_bytes), cut));
        CHECK_BYTES(area, wanted, LENGTHS);
    }

    rc_test_case = "key 0 moves";
    memcpy(area + 5, noise, LENGTHS);
    rc_mask(area, area + 5, LENGTHS, 0);
    CHECK_BYTES(area, noise, LENGTHS);
    rc_mask(area, area, LENGTHS, 0);
    CHECK_BYTES(area, noise, LENGTHS);
}

int main(void) {
    uint8_t noise[ROOM];
    uint64_t state = 1;
    size_t count;
    const struct rc_mask_twin *twins = rc_mask_twins(&count);

    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)(rc_test_random(&state) >> 32);
    CHECK(count >= 1 && strcmp(twins[0].name, "portable") == 0);
    CHECK(strcmp(twins[count - 1].name, rc_mask_implementation()) == 0);
    for (size_t i = 0; i < count; i++) {
        rc_test_case = twins[i].name;
        check_apart(&twins[i], noise);
        check_alignments(&twins[i], noise);
        check_overlap(&twins[i], noise);
    }
    check_chosen(noise);
    return rc_test_done("test_mask");
}
