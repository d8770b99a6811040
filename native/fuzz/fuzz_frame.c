/* Headers and close payloads. Oracle: whatever parses, builds back to the same bytes, and only documented codes come out. */
#include "rc_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    for (int masked = 0; masked < 2; masked++) {
        struct rc_frame frame;
        uint8_t built[RC_HEADER_MAX];
        int result = rc_frame_parse(&frame, data, size, masked != 0);

        if (result < 0) {
            RC_ASSERT(result == RC_NEED_MORE ? size < RC_HEADER_MAX : RC_IS_PROTOCOL_ERROR(result));
            continue;
        }
        RC_ASSERT(result >= 2 && result <= RC_HEADER_MAX && (size_t)result <= size);
        RC_ASSERT(rc_frame_build(built, sizeof built, &frame) == result);
        for (int i = 0; i < result; i++)
            RC_ASSERT(built[i] == data[i]);
        for (int cut = 0; cut < result; cut++) {
            struct rc_frame shorter;
            RC_ASSERT(rc_frame_parse(&shorter, data, (size_t)cut, masked != 0) == RC_NEED_MORE);
        }
    }
    uint16_t code;
    int result = rc_close_check(data, size, &code);
    RC_ASSERT(result == RC_OK ? code == 0 || rc_close_code_is_valid(code) : RC_IS_PROTOCOL_ERROR(result) && code == 0);
    return 0;
}
