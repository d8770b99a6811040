#include "rc_python.h"

#include <limits.h>

void rc_python_mask(uint8_t *target, const uint8_t *source, size_t length, const uint8_t *key, unsigned phase) {
    rc_mask(target, source, length, rc_mask_rotate(rc_mask_load(key), phase));
}

int rc_python_mask_with(size_t twin, uint8_t *target, const uint8_t *source, size_t length, const uint8_t *key) {
    size_t count;
    const struct rc_mask_twin *twins = rc_mask_twins(&count);

    if (twin >= count)
        return RC_EINVAL;
    twins[twin].function(target, source, length, rc_mask_load(key));
    return RC_OK;
}

int rc_python_encode(uint8_t *out, size_t room, unsigned opcode, bool fin, const uint8_t *payload, size_t length,
                     const uint8_t *key) {
    struct rc_frame frame = {.payload_bytes = length, .fin = fin, .masked = key != NULL};

    if (opcode > RC_OP_PONG || length > INT_MAX - RC_HEADER_MAX)
        return RC_EINVAL;
    frame.opcode = (uint8_t)opcode;
    if (key != NULL)
        memcpy(frame.key, key, 4);
    int header_bytes = rc_frame_build(out, room, &frame);
    if (header_bytes < 0 || room - (size_t)header_bytes < length)
        return RC_EINVAL;
    rc_mask(out + header_bytes, payload, length, rc_mask_load(frame.key));
    return header_bytes + (int)length;
}
