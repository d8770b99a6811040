#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "rc_test.h"

#include <sys/mman.h>
#include <unistd.h>

const char *rc_test_case = "";
long rc_test_checks;

struct rc_guarded rc_guarded_new(size_t room) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t inner = (room + page - 1) / page * page;
    uint8_t *mapping = mmap(NULL, inner + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (mapping == MAP_FAILED || mprotect(mapping, page, PROT_NONE) != 0 ||
        mprotect(mapping + page + inner, page, PROT_NONE) != 0) {
        perror("guard pages");
        exit(2);
    }
    return (struct rc_guarded){.pages = mapping + page, .room = inner};
}

void rc_guarded_free(struct rc_guarded *area) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(area->pages - page, area->room + 2 * page);
}

uint8_t *rc_guarded_at_end(struct rc_guarded *area, const void *bytes, size_t length) {
    RC_ASSERT(length <= area->room);
    uint8_t *at = area->pages + area->room - length;
    if (length > 0)
        memcpy(at, bytes, length);
    return at;
}

uint8_t *rc_guarded_at_start(struct rc_guarded *area, const void *bytes, size_t length) {
    RC_ASSERT(length <= area->room);
    if (length > 0)
        memcpy(area->pages, bytes, length);
    return area->pages;
}

void bytes_append(struct bytes *bytes, const void *data, size_t length) {
    if (length == 0)
        return;
    if (bytes->room - bytes->length < length) {
        bytes->room = (bytes->length + length) * 2 + 64;
        bytes->data = realloc(bytes->data, bytes->room);
        CHECK(bytes->data != NULL);
    }
    memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
}

uint64_t rc_test_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Du;
}
