/* Just enough JSON for control messages: members of an object by name, everything else skipped. The text ends in NUL, and
 * nothing here goes past it: a NUL is neither quote nor bracket nor blank, so every step stops there. A text that breaks off or makes
 * no sense gives fewer members, never wrong memory. */
#include "load.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

/* Four hexadecimal digits; above 0xffff when they are none. */
static unsigned hex4(const char *text)
{
    static const char digits[] = "0123456789abcdef";
    unsigned value = 0;
    for (int i = 0; i < 4; i++) {
        const char *digit = text[i] != '\0' ? strchr(digits, text[i] | 0x20) : NULL;
        if (digit == NULL)
            return 0x10000;
        value = value << 4 | (unsigned)(digit - digits);
    }
    return value;
}

static const char *blanks(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

/* Behind the string whose opening quote at stands on; NULL when it does not end. */
static const char *skip_string(const char *at)
{
    for (at++; *at != '"'; at++) {
        if (*at == '\\')
            at++;
        if (*at == '\0')
            return NULL;
    }
    return at + 1;
}

/* Behind the value that begins at at; NULL when it does not end. */
static const char *skip_value(const char *at)
{
    unsigned depth = 0;
    do {
        at += strcspn(at, "\"{}[],");
        if (*at == '\0')
            return NULL;
        if (*at == '"') {
            at = skip_string(at);
            if (at == NULL)
                return NULL;
            continue;
        }
        if (depth == 0 && (*at == ',' || *at == '}' || *at == ']'))
            return at;
        if (*at == '{' || *at == '[')
            depth++;
        else if (*at != ',')
            depth--;
        at++;
    } while (depth > 0 || strchr(",}]", *blanks(at)) == NULL);
    return blanks(at);
}

/* Unescapes the string whose opening quote at stands on; false when it is longer than out or not ASCII. */
static bool read_string(const char *at, char *out, size_t out_len)
{
    size_t len = 0;
    if (*at++ != '"')
        return false;
    for (; *at != '"'; at++) {
        unsigned c = (unsigned char)*at;
        if (c == '\\') {
            c = (unsigned char)*++at;
            if (c == 'u') {
                c = hex4(at + 1);
                if (c > 0x7e)
                    return false;
                at += 4;
            } else if (c != '/' && c != '"' && c != '\\') {
                return false;
            }
        }
        if (c < 0x20 || c > 0x7e || len + 1 >= out_len)
            return false;
        out[len++] = (char)c;
    }
    out[len] = '\0';
    return true;
}

/* The value of the first member of that name in the object that begins at at; NULL when there is none. */
static const char *member(const char *at, const char *name, bool any_case)
{
    char found[128];
    if (at == NULL || *(at = blanks(at)) != '{')
        return NULL;
    do {
        at = blanks(at + 1);
        if (*at != '"')
            return NULL;
        bool readable = read_string(at, found, sizeof found);
        at = skip_string(at);
        if (at == NULL || *(at = blanks(at)) != ':')
            return NULL;
        at = blanks(at + 1);
        if (readable && (any_case ? strcasecmp(found, name) : strcmp(found, name)) == 0)
            return at;
        at = skip_value(at);
    } while (at != NULL && *at == ',');
    return NULL;
}

bool read_accept(const char *text, char *address, size_t address_len)
{
    const char *at = member(member(text, "accept", false), "address", false);
    return at != NULL && read_string(at, address, address_len);
}

bool read_request(const char *text, struct json_request *out)
{
    const char *request = member(text, "request", false), *address = member(request, "address", false);
    const char *id = member(request, "id", false), *body = member(request, "body", false);
    const char *bench_id = member(member(request, "requestHeaders", false), REQUEST_ID_HEADER, true);
    if (address == NULL || id == NULL || !read_string(address, out->address, sizeof out->address) ||
        !read_string(id, out->id, sizeof out->id) || strpbrk(out->id, "\"\\") != NULL)
        return false;
    out->has_method = member(request, "method", false) != NULL;
    out->has_body = body != NULL && strncmp(body, "true", 4) == 0;
    if (bench_id == NULL || !read_string(bench_id, out->bench_id, sizeof out->bench_id) ||
        strspn(out->bench_id, "0123456789abcdef") != strlen(out->bench_id))
        out->bench_id[0] = '\0';
    return true;
}
