/* Plays a session from a script of bytes and checks everything that came out against everything that went in.
 *
 * The fuzzer hands in its input as a script, the tests theirs. A script is:
 *
 *     byte 0   kinds: sender = byte % 3, listener = byte / 3 % 3 (RC_LEG_*)
 *     byte 1   bit 0: out of place; bits 1-3: room or window size, see ROOMS in session_story.c
 *     then any number of acts, one byte each, bit 7 the direction, low bits:
 *       0  n bytes   the source sends the next n bytes of the script (n is the next byte)
 *       1  n k       the source sends a well-formed data frame of (n % 128) * 1024 + k / 2 bytes: text if bit 7 of n is set,
 *                    else binary, or a continuation where its message is open; FIN from bit 0 of k; shorter with a small window
 *       2            the source's stream ends
 *       3            ask for what is owed to the direction's destination
 *       4            the relay closes with 1001
 *       5  n         the source sends a Ping of n % 126 bytes
 *       6            the source sends Close 1000 "bye"
 *       7  n         of the next frame that the source sends by 1, 5 or 6, all but n bytes wait until it sends again
 *
 * Both ends are then decoded by rc_decode(), which shares with rc_session only the reading of headers, and compared; a breach
 * aborts with a message. The oracle that shares nothing is in tests/_native/, in Python.
 */
#ifndef SESSION_STORY_H
#define SESSION_STORY_H

#include "rc_session.h"

struct story_result {
    struct rc_session session;
    uint8_t *output[2]; /* what each direction's destination got; free with story_free() */
    size_t output_bytes[2];
    uint32_t events[2]; /* all that were seen */
};

void story_play(const uint8_t *script, size_t length, struct story_result *result);
void story_free(struct story_result *result);

#endif
