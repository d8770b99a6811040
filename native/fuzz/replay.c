/* Runs a fuzz entry point over files, for compilers without libFuzzer: each argument is a file of one input. */
#include "rc_base.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv) {
    enum {
        INPUT_MAX = 1 << 20
    };
    static uint8_t room[INPUT_MAX];

    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) {
            perror(argv[i]);
            return 2;
        }
        size_t size = fread(room, 1, sizeof room, file);
        fclose(file);
        uint8_t *data = malloc(size > 0 ? size : 1); /* exact, so that ASan sees the first byte too far */
        RC_ASSERT(data != NULL);
        for (size_t k = 0; k < size; k++)
            data[k] = room[k];
        LLVMFuzzerTestOneInput(data, size);
        free(data);
    }
    printf("%d inputs replayed\n", argc - 1);
    return 0;
}
