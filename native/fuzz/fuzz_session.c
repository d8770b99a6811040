/* The brain, played from a script: see tests/session_story.h for the form and the oracle. */
#include "session_story.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct story_result result;

    if (size > 600) /* long scripts find nothing that short ones do not, and are slow */
        return 0;
    story_play(data, size, &result);
    story_free(&result);
    return 0;
}
