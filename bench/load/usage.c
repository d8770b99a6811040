/* What processes have used so far, from /proc and the kernel's clocks. */
#include "load.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* All threads, those that have ended too; 0 when the process is gone. */
static uint64_t cpu_ns(int pid)
{
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) != 0)
        return 0;
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void add_thread(int pid, const char *thread, uint64_t *waited_ns, uint64_t *switches)
{
    char path[300], line[256];
    unsigned long long ran, waited, voluntary;
    snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", pid, thread);
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        if (fscanf(file, "%llu %llu", &ran, &waited) == 2)
            *waited_ns += waited;
        fclose(file);
    }
    snprintf(path, sizeof path, "/proc/%d/task/%.20s/status", pid, thread);
    file = fopen(path, "r");
    if (file == NULL)
        return;
    while (fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "voluntary_ctxt_switches: %llu", &voluntary) == 1)
            *switches += voluntary;
    fclose(file);
}

void usage_take(const struct settings *settings, struct usage *out)
{
    *out = (struct usage){0};
    for (unsigned i = 0; i <= settings->watched_count; i++) {
        int pid = i == 0 ? getpid() : settings->watched[i - 1];
        char path[64];
        out->cpu_ns[i] = cpu_ns(pid);
        snprintf(path, sizeof path, "/proc/%d/task", pid);
        DIR *threads = opendir(path);
        if (threads == NULL)
            continue;
        for (struct dirent *entry; (entry = readdir(threads)) != NULL;)
            if (entry->d_name[0] != '.')
                add_thread(pid, entry->d_name, &out->waited_ns[i], &out->switches[i]);
        closedir(threads);
    }
}

static void print_seconds(const struct settings *settings, const char *name, const uint64_t *before, const uint64_t *after)
{
    printf(",\"%s\":[", name);
    for (unsigned i = 1; i <= settings->watched_count; i++)
        printf("%s%.9f", i > 1 ? "," : "", (double)(after[i] - before[i]) / 1e9);
    printf("]");
}

void usage_print(const struct settings *settings, const struct usage *before, const struct usage *after)
{
    printf(",\"own_cpu_seconds\":%.9f", (double)(after->cpu_ns[0] - before->cpu_ns[0]) / 1e9);
    print_seconds(settings, "watched_cpu_seconds", before->cpu_ns, after->cpu_ns);
    print_seconds(settings, "watched_waited_seconds", before->waited_ns, after->waited_ns);
    printf(",\"watched_switches\":[");
    for (unsigned i = 1; i <= settings->watched_count; i++) {
        long long switches = (long long)(after->switches[i] - before->switches[i]);
        printf("%s%lld", i > 1 ? "," : "", switches > 0 ? switches : 0); /* a thread that ended took its count along */
    }
    printf("]");
}

void memory_take(const struct settings *settings, uint64_t out[MAX_WATCHED])
{
    for (unsigned i = 0; i < settings->watched_count; i++) {
        char path[64], line[256];
        unsigned long long kib;
        out[i] = 0;
        snprintf(path, sizeof path, "/proc/%d/smaps_rollup", settings->watched[i]);
        FILE *file = fopen(path, "r");
        if (file == NULL)
            continue;
        while (fgets(line, sizeof line, file) != NULL)
            if (sscanf(line, "Private_Clean: %llu", &kib) == 1 || sscanf(line, "Private_Dirty: %llu", &kib) == 1)
                out[i] += kib * 1024;
        fclose(file);
    }
}

void memory_print(const struct settings *settings, const char *name, const uint64_t bytes[MAX_WATCHED])
{
    printf(",\"%s\":[", name);
    for (unsigned i = 0; i < settings->watched_count; i++)
        printf("%s%llu", i > 0 ? "," : "", (unsigned long long)bytes[i]);
    printf("]");
}
