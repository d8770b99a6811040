/* Calls shaped for the border: several C calls that Python would otherwise have to make one by one, each crossing costing
 * more than the work (about 0.4 us). Nothing here knows Python; it is left out of the C tests only because it adds nothing. */
#ifndef RC_PYTHON_H
#define RC_PYTHON_H

#include "rc_frame.h"
#include "rc_mask.h"

/* rc_mask() with a key that is rotated by `phase` first. */
void rc_python_mask(uint8_t *target, const uint8_t *source, size_t length, const uint8_t *key, unsigned phase);

/* One named twin, by its index in rc_mask_twins(); RC_EINVAL for another index. For tests and measurements. */
int rc_python_mask_with(size_t twin, uint8_t *target, const uint8_t *source, size_t length, const uint8_t *key);

/* A whole frame: header and, with a `key`, masked payload; `key` NULL sends it plain. `out` must not overlap `payload`.
 * Returns the bytes of the frame, or RC_EINVAL as rc_frame_build() does or when `room` is too small. */
int rc_python_encode(uint8_t *out, size_t room, unsigned opcode, bool fin, const uint8_t *payload, size_t length,
                     const uint8_t *key);

#endif
