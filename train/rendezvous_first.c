/*
 * Rank 0's side of train/rendezvous.h: it takes connections and greetings until all ranks are in, a
 * greeting cannot be right, or the time is over, and then gives every rank that came the same
 * verdict.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "train/rendezvous_file.h"
#include "train/rendezvous_parts.h"

enum { STRANGERS_MAX = 64 }; /* connections that have not said who they are, at one time */
static const double port_seconds = 5.0; /* for the port of a run just ended to become free */

/* A connection that may be a rank. */
struct stranger {
    int connection; /* -1: none */
    size_t got;
    double until;
    struct greeting greeting;
};

struct meeting {
    const struct rendezvous_options *options;
    struct rendezvous *r;
    uint64_t run;
    int listener, came;
    size_t turned_away;
    struct greeting *greetings; /* (world) */
    struct pollfd *files;       /* (1 + STRANGERS_MAX + world) */
    struct stranger strangers[STRANGERS_MAX];
};

/* ---- rank 0: who may come in ---- */

static void close_stranger(struct meeting *m, struct stranger *s) {
    close(s->connection);
    s->connection = -1;
    m->turned_away++;
}

/* What every protocol begins with: a rank of this run, or nobody. */
static enum status check_frozen(struct meeting *m, struct stranger *s) {
    struct greeting *g = &s->greeting;
    if (g->magic != greeting_magic || g->run != m->run) {
        close_stranger(m, s);
        return STATUS_OK;
    }
    rendezvous_printable(g->host, sizeof g->host);
    if (g->protocol == RENDEZVOUS_PROTOCOL) return STATUS_OK;
    return rendezvous_other_build(g->rank, g->host, m->greetings[0].host);
}

/* A greeting in full, of this run. Refuses what no waiting can mend. */
static enum status admit(struct meeting *m, struct stranger *s) {
    const struct rendezvous_options *o = m->options;
    struct greeting *g = &s->greeting;
    rendezvous_printable(g->device, sizeof g->device);
    if (g->program != o->program) {
        return rendezvous_other_build(g->rank, g->host, m->greetings[0].host);
    }
    if (g->world != o->world) {
        return status_set(STATUS_CONFIG, "rank %d on %s says that the world has %d ranks, rank 0 "
                          "says %d: start all with the same number", g->rank, g->host, g->world,
                          o->world);
    }
    if (g->rank < 0 || g->rank >= o->world) {
        return status_set(STATUS_CONFIG, "a process on %s says it is rank %d of %d", g->host,
                          g->rank, g->world);
    }
    if (g->rank == 0 || m->r->connections[g->rank] >= 0) {
        return status_set(STATUS_CONFIG, "rank %d came twice, from %s and from %s: give every "
                          "process a rank of its own", g->rank, m->greetings[g->rank].host,
                          g->host);
    }
    m->r->connections[g->rank] = s->connection;
    m->greetings[g->rank] = *g;
    m->came++;
    s->connection = -1;
    return STATUS_OK;
}

static enum status hear(struct meeting *m, struct stranger *s) {
    char *to = (char *)&s->greeting;
    const ssize_t got = read(s->connection, to + s->got, sizeof s->greeting - s->got);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return STATUS_OK;
    if (got <= 0) {
        close_stranger(m, s);
        return STATUS_OK;
    }
    s->got += (size_t)got;
    /* rubbish shows by its first bytes, and need not be waited for to its end */
    if (s->got >= sizeof s->greeting.magic && s->greeting.magic != greeting_magic) {
        close_stranger(m, s);
        return STATUS_OK;
    }
    if (s->got >= GREETING_FROZEN_BYTES) TRY(check_frozen(m, s));
    return s->connection >= 0 && s->got == sizeof s->greeting ? admit(m, s) : STATUS_OK;
}

/* A place for a new connection: a free one, or that of who has been silent for longest. */
static struct stranger *place_for_stranger(struct meeting *m) {
    struct stranger *oldest = &m->strangers[0];
    for (size_t i = 0; i < STRANGERS_MAX; i++) {
        if (m->strangers[i].connection < 0) return &m->strangers[i];
        if (m->strangers[i].until < oldest->until) oldest = &m->strangers[i];
    }
    close_stranger(m, oldest);
    return oldest;
}

static void take_connections(struct meeting *m) {
    int connection;
    while ((connection = wire_accept(m->listener)) >= 0) {
        struct stranger *s = place_for_stranger(m);
        *s = (struct stranger){.connection = connection,
                               .until = clock_seconds() + greeting_seconds};
    }
}

/* One that came has nothing to say before the verdict: what can be read is its end. */
static enum status check_still_there(struct meeting *m, int rank) {
    char byte;
    const ssize_t got = read(m->r->connections[rank], &byte, 1);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return STATUS_OK;
    return status_set(STATUS_RANKS, "rank %d on %s ended while it waited for the others", rank,
                      m->greetings[rank].host);
}

static enum status look_around(struct meeting *m, double until) {
    size_t count = 0;
    const int world = m->options->world;
    m->files[count++] = (struct pollfd){.fd = m->listener, .events = POLLIN};
    for (size_t i = 0; i < STRANGERS_MAX; i++) {
        struct stranger *s = &m->strangers[i];
        if (s->connection >= 0 && clock_seconds() > s->until) close_stranger(m, s);
        m->files[count++] = (struct pollfd){.fd = s->connection, .events = POLLIN};
    }
    for (int r = 0; r < world; r++) {
        m->files[count++] = (struct pollfd){.fd = m->r->connections[r], .events = POLLIN};
    }
    const double soon = clock_seconds() + 1.0; /* silent strangers go in time */
    if (poll(m->files, count, wire_milliseconds(soon < until ? soon : until)) <= 0) {
        return STATUS_OK;
    }
    for (int r = 1; r < world; r++) {
        if (m->files[1 + STRANGERS_MAX + r].revents != 0) TRY(check_still_there(m, r));
    }
    for (size_t i = 0; i < STRANGERS_MAX; i++) {
        if (m->files[1 + i].revents != 0) TRY(hear(m, &m->strangers[i]));
    }
    take_connections(m);
    return STATUS_OK;
}

/* ---- rank 0: whether they belong together ---- */

static enum status missing_ranks(const struct meeting *m) {
    const int world = m->options->world;
    char text[RANKS_TEXT_BYTES], strangers[128] = "";
    bool *named = calloc((size_t)world, sizeof *named);
    if (named == NULL) return status_set(STATUS_RANKS, "not all ranks came, and memory is out");
    for (int r = 1; r < world; r++) named[r] = m->r->connections[r] < 0;
    if (m->turned_away > 0) {
        snprintf(strangers, sizeof strangers, "; %zu connections were of no rank of this run",
                 m->turned_away);
    }
    ranks_text(text, named, world);
    free(named);
    return status_set(STATUS_RANKS, "%s of %d did not come to rank 0 on %s (%s) within %.0f "
                      "seconds%s: see what they say, or raise comm.start_timeout", text, world,
                      m->greetings[0].host, m->options->place, m->options->timeout_seconds,
                      strangers);
}

static int compare_places(const void *a, const void *b, void *greetings) {
    const struct greeting *x = (const struct greeting *)greetings + *(const int *)a;
    const struct greeting *y = (const struct greeting *)greetings + *(const int *)b;
    const int host = strcmp(x->host, y->host);
    const int device = host != 0 ? host : strcmp(x->device, y->device);
    return device != 0 ? device : x->rank - y->rank;
}

/* Two ranks on one device would each wait for the other's kernels. */
static enum status check_devices(const struct meeting *m) {
    const int world = m->options->world;
    int *order = calloc((size_t)world, sizeof *order);
    enum status status = STATUS_OK;
    if (order == NULL) return status_set(STATUS_MEMORY, "out of memory");
    for (int r = 0; r < world; r++) order[r] = r;
    qsort_r(order, (size_t)world, sizeof *order, compare_places, m->greetings);
    for (int i = 1; i < world && status == STATUS_OK; i++) {
        const struct greeting *a = &m->greetings[order[i - 1]], *b = &m->greetings[order[i]];
        if (a->device[0] != '\0' && strcmp(a->host, b->host) == 0 &&
            strcmp(a->device, b->device) == 0) {
            status = status_set(STATUS_DEVICE, "ranks %d and %d on %s have the same device (%s): "
                                "start no more ranks than devices, and see that LOCAL_RANK differs",
                                a->rank, b->rank, a->host, a->device);
        }
    }
    free(order);
    return status;
}

static enum status gather(struct meeting *m, double until) {
    while (m->came < m->options->world - 1) {
        if (clock_seconds() >= until) return missing_ranks(m);
        TRY(look_around(m, until));
    }
    return check_devices(m);
}

/* One that was refused on the threshold, in the words of every build. What it said is read first:
 * unread it would make of close() a reset, which may overtake the verdict. */
static void send_away(const struct stranger *s, const struct verdict *v, double until) {
    char rest[1024];
    if (v->status != STATUS_OK && s->got >= GREETING_FROZEN_BYTES) {
        const ssize_t unread = read(s->connection, rest, sizeof rest);
        if (unread != 0) wire_send(s->connection, v, sizeof *v, until);
    }
    close(s->connection);
}

static void tell_all(struct meeting *m, enum status status, const void *blob, size_t blob_bytes) {
    struct verdict v = {.magic = verdict_magic, .status = (uint32_t)status,
                        .blob_bytes = (uint32_t)blob_bytes};
    snprintf(v.message, sizeof v.message, "%s", status == STATUS_OK ? "" : status_message());
    memcpy(v.host, m->greetings[0].host, sizeof v.host);
    if (blob_bytes > 0) memcpy(v.blob, blob, blob_bytes);
    const double until = clock_seconds() + verdict_seconds;
    for (int r = 1; r < m->options->world; r++) {
        if (m->r->connections[r] >= 0) wire_send(m->r->connections[r], &v, sizeof v, until);
    }
    for (size_t i = 0; i < STRANGERS_MAX; i++) {
        if (m->strangers[i].connection >= 0) send_away(&m->strangers[i], &v, until);
    }
}

/* ---- rank 0: the whole ---- */

/* Sockets of all ranks at once: thousands are more than the usual limit of open files. */
static void raise_file_limit(int world) {
    struct rlimit limit;
    const rlim_t wanted = (rlim_t)world + 1024;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static enum status listen_somewhere(const struct wire_address *address, double until,
                                    int *listener, int *port) {
    const double patience = clock_seconds() + port_seconds;
    *port = address->port;
    while ((*listener = wire_listen(address->host, port)) < 0) {
        if (errno == EADDRINUSE && clock_seconds() < (patience < until ? patience : until)) {
            rendezvous_pause();
            continue;
        }
        return status_set(STATUS_CONFIG, "rank 0 cannot listen at port %d: %s: set MASTER_PORT or "
                          "comm.rendezvous to a free one on all ranks", address->port,
                          strerror(errno));
    }
    return STATUS_OK;
}

static enum status meet(struct meeting *m, void *blob, size_t blob_bytes) {
    const struct rendezvous_options *o = m->options;
    const char *path = rendezvous_file_of(o->place);
    const double until = clock_seconds() + o->timeout_seconds;
    struct wire_address address = {.host = "", .port = 0};
    int port = 0, lock = -1;
    raise_file_limit(o->world);
    if (path == NULL) TRY(wire_address_parse(o->place, &address));
    m->listener = o->listener > 0 ? o->listener : -1;
    if (m->listener < 0) TRY(listen_somewhere(&address, until, &m->listener, &port));
    m->run = o->run;
    if (path != NULL) TRY(rendezvous_file_publish(path, port, &m->run, &lock));
    m->greetings[0] = rendezvous_greeting(o, m->run);
    const enum status status = gather(m, until);
    if (path != NULL) rendezvous_file_withdraw(path, lock);
    tell_all(m, status, blob, status == STATUS_OK ? blob_bytes : 0);
    return status;
}

enum status rendezvous_open_first(struct rendezvous *r, const struct rendezvous_options *o,
                              void *blob, size_t blob_bytes) {
    const size_t world = (size_t)o->world;
    struct meeting *m = calloc(1, sizeof *m);
    enum status status = STATUS_OK;
    r->connections = malloc(world * sizeof *r->connections);
    r->hosts = calloc(world, sizeof *r->hosts);
    if (m != NULL) m->greetings = calloc(world, sizeof *m->greetings);
    if (m != NULL) m->files = calloc(1 + STRANGERS_MAX + world, sizeof *m->files);
    if (r->connections == NULL || r->hosts == NULL || m == NULL || m->greetings == NULL ||
        m->files == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for the connections of %d ranks",
                            o->world);
        goto cleanup;
    }
    for (size_t i = 0; i < world; i++) r->connections[i] = -1;
    for (size_t i = 0; i < STRANGERS_MAX; i++) m->strangers[i].connection = -1;
    m->options = o;
    m->r = r;
    m->listener = -1;
    status = meet(m, blob, blob_bytes);
    for (size_t i = 0; i < world; i++) memcpy(r->hosts[i], m->greetings[i].host, sizeof *r->hosts);
    if (m->listener >= 0) close(m->listener);
cleanup:
    if (m != NULL) free(m->greetings);
    if (m != NULL) free(m->files);
    free(m);
    return status;
}
