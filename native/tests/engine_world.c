#define _GNU_SOURCE
#include "engine_world.h"

#include "rc_mask.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const uint8_t SEED[RC_SESSION_SEED_BYTES] = "engine's session";

uint64_t rc_test_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void set_flags(int fd, int buffer_bytes, bool is_tcp) {
    int one = 1;

    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    if (buffer_bytes > 0) {
        CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes) == 0);
        CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes) == 0);
    }
    if (is_tcp)
        CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
}

static void connect_tcp(int fds[2], int buffer_bytes) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int segment = 1400; /* loopback's 64 KiB do not fit a small window, and would wait for the kernel's probes */

    CHECK(setsockopt(listener, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment) == 0);
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    if (buffer_bytes > 0)
        CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes) == 0);
    CHECK(listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(setsockopt(fds[0], IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment) == 0);
    CHECK(fds[0] >= 0 && connect(fds[0], (struct sockaddr *)&address, length) == 0);
    fds[1] = accept(listener, NULL, NULL);
    CHECK(fds[1] >= 0);
    close(listener);
}

void joint_be(struct joint *joint, unsigned sender, unsigned listener) {
    joint->kinds[0] = (uint8_t)sender;
    joint->kinds[1] = (uint8_t)listener;
    CHECK_INT(rc_session_init(&joint->session, sender, listener, SEED), RC_OK);
}

void joint_wire(struct joint *joint, enum transport transport, int buffer_bytes) {
    for (int leg = 0; leg < 2; leg++) {
        int fds[2];
        if (transport == BY_TCP)
            connect_tcp(fds, buffer_bytes);
        else
            CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
        for (int end = 0; end < 2; end++)
            set_flags(fds[end], buffer_bytes, transport == BY_TCP);
        joint->job.sockets[leg] = fds[0];
        joint->peers[leg].fd = fds[1];
    }
    joint->job.session = &joint->session;
    joint->job.close_ms = 20000;
}

void joint_submit(struct world *world, struct joint *joint) {
    joint->job.token = (uint64_t)(joint - world->joints);
    joint->is_running = true;
    joint->submitted_ms = rc_test_ms();
    rc_engine_submit(world->engine, &joint->job);
}

struct world *world_new(unsigned threads, uint32_t buffers, uint32_t buffer_bytes, size_t count) {
    struct world *world = calloc(1, sizeof *world);

    CHECK(world != NULL);
    world->joints = calloc(count, sizeof *world->joints);
    CHECK(world->joints != NULL);
    world->count = count;
    CHECK_INT(rc_engine_open(&world->engine, threads, buffers, buffer_bytes), RC_OK);
    for (size_t i = 0; i < count; i++) {
        struct joint *joint = &world->joints[i];
        joint_be(joint, (unsigned)(i % 3), (unsigned)(i / 3 % 3));
        for (int leg = 0; leg < 2; leg++)
            joint->peers[leg].fd = -1;
    }
    return world;
}

/* CHECK() counts, and is for one thread. */
static void *watch(void *argument) {
    struct world *world = argument;

    while (!__atomic_load_n(&world->watcher_stops, __ATOMIC_RELAXED)) {
        struct rc_engine_statistics statistics;

        rc_engine_statistics(world->engine, &statistics);
        RC_ASSERT(statistics.jobs <= world->count && statistics.completed <= world->count);
        RC_ASSERT(statistics.starved <= 2 * world->count);
        RC_ASSERT(statistics.sleeps <= statistics.waits + 64);
        for (size_t i = 0; i < world->count; i++)
            for (unsigned d = 0; d < 2; d++) {
                struct rc_direction_counters counters;
                uint16_t close_code;
                rc_session_counters(&world->joints[i].session, d, &counters, &close_code);
                world->watched += counters.bytes_in != 0;
            }
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return NULL;
}

void world_watch(struct world *world) {
    world->is_watched = true;
    CHECK(pthread_create(&world->watcher, NULL, watch, world) == 0);
}

static void hang_up(struct peer *peer) {
    if (peer->fd >= 0)
        close(peer->fd);
    peer->fd = -1;
}

void world_free(struct world *world) {
    struct rc_engine_statistics statistics;

    if (world->is_watched) {
        __atomic_store_n(&world->watcher_stops, true, __ATOMIC_RELAXED);
        pthread_join(world->watcher, NULL);
    }
    rc_engine_statistics(world->engine, &statistics);
    CHECK_INT(statistics.jobs, 0);
    rc_engine_shut(world->engine);
    rc_engine_statistics(world->engine, &statistics);
    CHECK_INT(statistics.buffers_in_use, 0);
    CHECK_INT(statistics.starved, 0);
    CHECK_INT(rc_engine_completions(world->engine, (uint64_t[1]){0}, 1), 0);
    rc_engine_free(world->engine);
    for (size_t i = 0; i < world->count; i++) {
        for (int leg = 0; leg < 2; leg++) {
            struct joint *joint = &world->joints[i];
            CHECK(!joint->is_running || joint->is_done);
            hang_up(&joint->peers[leg]);
            free(joint->peers[leg].got.data);
            free(joint->peers[leg].to_send.data);
        }
    }
    free(world->joints);
    free(world);
}

static bool wants_to_send(const struct peer *peer) {
    return peer->sent < peer->to_send.length || (peer->ends && !peer->has_ended);
}

static bool wants_to_read(const struct peer *peer) {
    return !peer->is_deaf && !peer->heard_end;
}

static void peer_send(struct peer *peer) {
    while (peer->sent < peer->to_send.length) {
        size_t length = peer->to_send.length - peer->sent;
        if (peer->send_most > 0 && length > peer->send_most)
            length = peer->send_most;
        ssize_t count = send(peer->fd, peer->to_send.data + peer->sent, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count < 0) {
            if (errno == EAGAIN || errno == EINTR)
                return;
            CHECK(errno == EPIPE || errno == ECONNRESET);
            peer->sent = peer->to_send.length; /* it has nobody to say it to */
            break;
        }
        peer->sent += (size_t)count;
        if (peer->send_most > 0)
            break;
    }
    if (peer->ends && peer->sent == peer->to_send.length && !peer->has_ended) {
        peer->has_ended = true;
        shutdown(peer->fd, SHUT_WR);
    }
}

static void peer_read(struct peer *peer) {
    static uint8_t buffer[1 << 18];
    size_t most = peer->read_most > 0 ? peer->read_most : sizeof buffer;
    ssize_t count = recv(peer->fd, buffer, most, MSG_DONTWAIT);

    if (count > 0) {
        bytes_append(&peer->got, buffer, (size_t)count);
    } else if (count == 0) {
        peer->heard_end = true;
    } else if (errno == ECONNRESET) {
        peer->heard_end = peer->heard_reset = true;
    } else {
        CHECK(errno == EAGAIN || errno == EINTR);
    }
    if (peer->heard_end && peer->is_vocal)
        peer->ends = true;
}

static void take_completions(struct world *world) {
    uint64_t tokens[7];
    size_t count;

    do {
        count = rc_engine_completions(world->engine, tokens, 7);
        for (size_t i = 0; i < count; i++) {
            CHECK(tokens[i] < world->count);
            struct joint *joint = &world->joints[tokens[i]];
            CHECK(joint->is_running && !joint->is_done);
            CHECK(joint->job.end != RC_END_NONE);
            joint->is_done = true;
            joint->done_ms = rc_test_ms();
            world->done++;
            close(joint->job.sockets[0]);
            close(joint->job.sockets[1]);
        }
    } while (count == 7);
}

static bool move(struct world *world, int timeout) {
    static struct pollfd polled[4096];
    static struct peer *who[4096];
    nfds_t count = 1;

    polled[0] = (struct pollfd){.fd = rc_engine_fd(world->engine), .events = POLLIN};
    for (size_t i = 0; i < world->count; i++) {
        for (int leg = 0; leg < 2; leg++) {
            struct peer *peer = &world->joints[i].peers[leg];
            short events = (short)((wants_to_send(peer) ? POLLOUT : 0) | (wants_to_read(peer) ? POLLIN : 0));
            if (peer->fd < 0 || events == 0)
                continue;
            CHECK(count < sizeof polled / sizeof *polled);
            who[count] = peer;
            polled[count++] = (struct pollfd){.fd = peer->fd, .events = events};
        }
    }
    int ready = poll(polled, count, timeout);
    CHECK(ready >= 0 || errno == EINTR);
    for (nfds_t i = 1; i < count; i++) {
        if (polled[i].revents & (POLLOUT | POLLERR | POLLHUP) && wants_to_send(who[i]))
            peer_send(who[i]);
        if (polled[i].revents & (POLLIN | POLLERR | POLLHUP) && wants_to_read(who[i]))
            peer_read(who[i]);
    }
    if (polled[0].revents)
        take_completions(world);
    return ready > 0;
}

bool world_move(struct world *world) {
    return move(world, 100);
}

void world_glance(struct world *world) {
    move(world, 0);
}

bool world_is_over(const struct world *world) {
    for (size_t i = 0; i < world->count; i++)
        for (int leg = 0; leg < 2; leg++)
            if (world->joints[i].peers[leg].fd >= 0 && !world->joints[i].peers[leg].heard_end)
                return false;
    return world->done == world->count;
}

static uint64_t deeds_of(const struct world *world) {
    struct rc_engine_statistics now;

    rc_engine_statistics(world->engine, &now);
    return now.turns + now.bytes_in + now.bytes_out + now.commands + now.completed;
}

void world_settle(struct world *world) {
    uint64_t before, after = deeds_of(world);
    int quiet = 0;

    for (int i = 0; i < 1000 && quiet < 2; i++) {
        bool moved = move(world, 20);
        before = after;
        after = deeds_of(world);
        quiet = moved || before != after ? 0 : quiet + 1;
    }
    CHECK(quiet == 2);
}

void world_print(const struct world *world) {
    struct rc_engine_statistics now;

    rc_engine_statistics(world->engine, &now);
    fprintf(stderr, "jobs %llu, buffers %llu, starved %llu, turns %llu, in %llu, out %llu, waits %llu\n",
            (unsigned long long)now.jobs, (unsigned long long)now.buffers_in_use, (unsigned long long)now.starved,
            (unsigned long long)now.turns, (unsigned long long)now.bytes_in, (unsigned long long)now.bytes_out,
            (unsigned long long)now.waits);
    for (size_t i = 0; i < world->count; i++) {
        const struct joint *joint = &world->joints[i];
        if (!joint->is_running || joint->is_done)
            continue;
        fprintf(stderr, "joint %zu: kinds %d %d, end %d by %d\n", i, joint->kinds[0], joint->kinds[1], joint->job.end,
                joint->job.by);
        for (int leg = 0; leg < 2; leg++) {
            const struct peer *peer = &joint->peers[leg];
            fprintf(stderr, "  leg %d: sent %zu of %zu, got %zu%s%s%s\n", leg, peer->sent, peer->to_send.length,
                    peer->got.length, peer->has_ended ? ", ended" : "", peer->heard_end ? ", heard the end" : "",
                    peer->is_deaf ? ", deaf" : "");
        }
    }
}

void peer_say(struct peer *peer, const void *data, size_t length) {
    bytes_append(&peer->to_send, data, length);
}

void joint_say(struct joint *joint, unsigned leg, uint8_t opcode, bool fin, const void *data, size_t length) {
    struct rc_frame frame = {.payload_bytes = length, .opcode = opcode, .fin = fin, .key = {0x5A, 0x01, 0xFE, 0x33}};
    struct bytes *to_send = &joint->peers[leg].to_send;
    uint8_t header[RC_HEADER_MAX];

    if (joint->kinds[leg] != RC_LEG_RAW) {
        frame.masked = joint->kinds[leg] == RC_LEG_WS_SERVER;
        int header_bytes = rc_frame_build(header, sizeof header, &frame);
        CHECK(header_bytes > 0);
        bytes_append(to_send, header, (size_t)header_bytes);
    }
    bytes_append(to_send, data, length);
    if (frame.masked && length > 0) {
        uint8_t *payload = to_send->data + to_send->length - length;
        rc_mask(payload, payload, length, rc_mask_load(frame.key));
    }
}

void peer_reset(struct peer *peer) {
    struct linger linger = {.l_onoff = 1, .l_linger = 0};

    CHECK(setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    hang_up(peer);
}

bool joint_hear(struct joint *joint, unsigned leg, size_t *at, struct heard *heard) {
    struct bytes *got = &joint->peers[leg].got;
    struct rc_frame frame;

    if (joint->kinds[leg] == RC_LEG_RAW) {
        if (got->length == *at)
            return false;
        *heard =
            (struct heard){.opcode = RC_OP_BINARY, .fin = true, .data = got->data + *at, .length = got->length - *at};
        *at = got->length;
        return true;
    }
    bool masked = joint->kinds[leg] == RC_LEG_WS_CLIENT;
    int header_bytes = *at < got->length ? rc_frame_parse(&frame, got->data + *at, got->length - *at, masked) : -1;
    if (header_bytes < 0 || frame.payload_bytes > got->length - *at - (size_t)header_bytes)
        return false;
    uint8_t *payload = got->data + *at + header_bytes;
    *heard = (struct heard){frame.opcode, frame.fin, payload, (size_t)frame.payload_bytes};
    if (masked) { /* once: the key is taken away behind it */
        rc_mask(payload, payload, heard->length, rc_mask_load(frame.key));
        memset(payload - 4, 0, 4);
    }
    *at += (size_t)header_bytes + heard->length;
    return true;
}

bool joint_heard_close(struct joint *joint, unsigned leg, unsigned code) {
    struct heard heard;
    size_t at = 0;

    if (joint->kinds[leg] == RC_LEG_RAW)
        return joint->peers[leg].heard_end;
    while (joint_hear(joint, leg, &at, &heard))
        if (heard.opcode == RC_OP_CLOSE)
            return heard.length >= 2 && (unsigned)(heard.data[0] << 8 | heard.data[1]) == code;
    return false;
}

size_t joint_heard_bytes(struct joint *joint, unsigned leg, struct bytes *all) {
    struct heard heard;
    size_t at = 0, count = 0;

    while (joint_hear(joint, leg, &at, &heard)) {
        if (rc_opcode_is_control(heard.opcode))
            continue;
        count += heard.length;
        if (all != NULL)
            bytes_append(all, heard.data, heard.length);
    }
    return count;
}
