/* rcload ROLE, with these lines on standard input:
 *
 *   address HOST PORT TARGET [COUNT]   client: what to dial; listener: one entity and its number of control channels (repeats)
 *   header NAME: VALUE                 more head lines for what is dialled (not for rendezvous)
 *   job COUNT KIND SIZE [RATE]         client: COUNT streams of sink, source, echo, ping, idle, join, stall or unread with messages of
 *                                      SIZE bytes,
 *                                      or COUNT connections of http with request and response bodies of SIZE;
 *                                      RATE pings of each stream in a second, where they are not to follow one another at once
 *   wrap                               client: what is dialled is a WebSocket gateway to TCP; each stream stands inside one more WebSocket
 *   watch PID                          client: a process whose CPU time is measured with the jobs
 *   warm SECONDS / seconds SECONDS     client: lengths of the phases
 *   lead SECONDS                       client: how much earlier stalled streams begin (default 0.5)
 *   hold                               client: print "ready" with all streams open and wait for the line "finish"
 *   parallel COUNT                     handshakes at the same time
 *   limit SECONDS                      the program ends itself after that
 *   go                                 end of settings
 */
#include "load.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static void out_of_time(int number)
{
    (void)number;
    static const char text[] = "{\"error\":\"time limit reached\"}\n";
    if (write(STDOUT_FILENO, text, sizeof text - 1) < 0)
        _exit(4);
    _exit(3);
}

static char *copy(const char *text)
{
    char *kept = strdup(text);
    if (kept == NULL)
        fatal("out of memory");
    return kept;
}

static void read_setting(struct settings *s, char *line)
{
    char host[64], target[3072], kind[16];
    unsigned port, count = 1, rate = 0;
    size_t size;
    int pid;
    if (sscanf(line, "address %63s %u %3071s %u", host, &port, target, &count) >= 3) {
        struct listen_line *l = &s->listens[s->listen_count];
        if (s->listen_count++ == MAX_LISTEN_LINES || port > 65535 || inet_aton(host, &l->host) == 0)
            fatal("an address that cannot be used");
        l->port = (uint16_t)port;
        l->target = copy(target);
        l->count = count;
    } else if (strncmp(line, "header ", 7) == 0) {
        size_t had = strlen(s->headers);
        s->headers = realloc(s->headers, had + strlen(line) + 3);
        if (s->headers == NULL)
            fatal("out of memory");
        sprintf(s->headers + had, "%s\r\n", line + 7);
    } else if (sscanf(line, "job %u %15s %zu %u", &count, kind, &size, &rate) >= 3) {
        struct job_line *j = &s->jobs[s->job_count];
        if (s->job_count++ == MAX_JOBS || count == 0 || size > MAX_MESSAGE_BYTES || (size == 0 && strcmp(kind, "http") != 0) ||
            (rate > 0 && strcmp(kind, "ping") != 0) || (uint64_t)rate * count > MOST_PACED)
            fatal("a job that cannot be run");
        j->count = count;
        j->size = size;
        j->rate = rate;
        strcpy(j->kind, kind);
    } else if (sscanf(line, "watch %d", &pid) == 1) {
        if (s->watched_count == MAX_WATCHED)
            fatal("too many processes to watch");
        s->watched[s->watched_count++] = pid;
    } else if (strcmp(line, "hold") == 0) {
        s->holds = true;
    } else if (strcmp(line, "wrap") == 0) {
        wraps_streams = true;
    } else if (sscanf(line, "warm %lf", &s->warm_s) != 1 && sscanf(line, "seconds %lf", &s->measured_s) != 1 &&
               sscanf(line, "lead %lf", &s->lead_s) != 1 && sscanf(line, "parallel %u", &s->parallel) != 1 && sscanf(line, "limit %u", &s->limit_s) != 1) {
        fatal("a setting that is not known: %.20s", line); /* never whole: a mistyped header may be a token */
    }
}

/* One line without its end; unbuffered, so that lines after "go" stay in the pipe for the commands. */
static bool read_line(char *line, size_t size)
{
    size_t len = 0;
    char c;
    while (read(STDIN_FILENO, &c, 1) == 1) {
        if (c == '\n') {
            line[len] = '\0';
            return true;
        }
        if (len + 1 == size)
            fatal("a setting that is too long");
        line[len++] = c;
    }
    return false;
}

int main(int argc, char **argv)
{
    static struct settings settings = {.measured_s = 1, .lead_s = 0.5, .limit_s = 60, .parallel = 64};
    char line[4096];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    settings.headers = copy("");
    frames_init();
    loop_init();
    for (;;) {
        if (!read_line(line, sizeof line))
            fatal("settings without \"go\"");
        if (strcmp(line, "go") == 0)
            break;
        read_setting(&settings, line);
    }
    signal(SIGALRM, out_of_time);
    alarm(settings.limit_s);
    if (argc == 2 && strcmp(argv[1], "client") == 0)
        run_client(&settings);
    else if (argc == 2 && strcmp(argv[1], "server") == 0)
        run_server(&settings);
    else if (argc == 2 && strcmp(argv[1], "origin") == 0)
        run_origin(&settings);
    else if (argc == 2 && strcmp(argv[1], "listener") == 0)
        run_listener(&settings);
    else if (argc == 2 && strcmp(argv[1], "floor") == 0)
        run_floor(&settings);
    else
        fatal("usage: rcload client|server|origin|listener|floor, settings on standard input");
    return 0;
}
