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
#include "rc_test.h"

struct story_result {
    struct rc_session session;
    uint8_t *output[2]; /* what each direction's destination got; free with story_free() */
    size_t output_bytes[2];
    uint32_t events[2]; /* all that were seen */
};

void story_play(const uint8_t *script, size_t length, struct story_result *result);
void story_free(struct story_result *result);

/* What the two sources said, and what the two destinations got; index: the direction. */
struct story_streams {
    uint8_t kinds[2]; /* of the source: RC_LEG_* */
    struct bytes in[2], out[2];
    bool ended[2]; /* a stream says nothing behind its end */
    bool closed_by_relay;
};

/* Where a script is played. `ask` may be NULL. */
struct story_stage {
    void *context;
    void (*send)(void *context, unsigned direction, const uint8_t *data, size_t length);
    void (*end)(void *context, unsigned direction);
    void (*ask)(void *context, unsigned direction);
    void (*close)(void *context);
};

/* Plays acts (a script without its first two bytes), and keeps in `streams` what was said; frames of act 1 have at most
 * `frame_max` bytes. */
void story_act(const uint8_t *acts, size_t length, size_t frame_max, const struct story_stage *stage,
               struct story_streams *streams);

/* Compares both ends, for a session that will say no more. `out` may fall short of what the session gave only when it was cut
 * short. */
void story_compare(const struct rc_session *session, const struct story_streams *streams);

#endif
