/* The meeting of the ranks behind train/rendezvous.h: what all do, and the side of those that are
 * not rank 0. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "train/rendezvous_file.h"
#include "train/rendezvous_parts.h"

enum { RANKS_NAMED_MAX = 8 }; /* by number in a message */

const char *ranks_text(char text[RANKS_TEXT_BYTES], const bool *named, int world) {
    int count = 0, shown = 0;
    size_t used = 0;
    for (int i = 0; i < world; i++) count += named[i];
    used += (size_t)snprintf(text, RANKS_TEXT_BYTES, "rank%s", count == 1 ? "" : "s");
    for (int i = 0; i < world && shown < RANKS_NAMED_MAX; i++) {
        if (!named[i]) continue;
        const char *between = shown == 0 ? " " : shown + 1 == count ? " and " : ", ";
        used += (size_t)snprintf(text + used, RANKS_TEXT_BYTES - used, "%s%d", between, i);
        shown++;
    }
    if (shown < count) {
        snprintf(text + used, RANKS_TEXT_BYTES - used, " and %d more", count - shown);
    }
    return text;
}

void rendezvous_printable(char *text, size_t room) {
    text[room - 1] = '\0';
    for (char *c = text; *c != '\0'; c++) {
        if (!isprint((unsigned char)*c)) *c = '?';
    }
}

void rendezvous_own_host(char host[RENDEZVOUS_NAME_BYTES]) {
    memset(host, 0, RENDEZVOUS_NAME_BYTES);
    if (gethostname(host, RENDEZVOUS_NAME_BYTES - 1) != 0) snprintf(host, 8, "?");
}

enum status rendezvous_other_build(int rank, const char *host, const char *first_host) {
    return status_set(STATUS_CONFIG,
                      "rank %d on %s runs another build of the program than rank 0 "
                      "on %s: start all ranks with the same one",
                      rank, host, first_host);
}

struct greeting rendezvous_greeting(const struct rendezvous_options *o, uint64_t run) {
    struct greeting g = {
        .magic = greeting_magic,
        .run = run,
        .protocol = RENDEZVOUS_PROTOCOL,
        .rank = o->rank,
        .world = o->world,
        .program = o->program,
    };
    rendezvous_own_host(g.host);
    snprintf(g.device, sizeof g.device, "%s", o->device == NULL ? "" : o->device);
    return g;
}

void rendezvous_pause(void) {
    const struct timespec pause = {.tv_nsec = (long)(retry_seconds * 1e9)};
    nanosleep(&pause, NULL);
}

const char *rendezvous_file_of(const char *place) {
    return strncmp(place, "file:", 5) == 0 ? place + 5 : NULL;
}

/* ---- the others ---- */

/* Rank 0's answer: of a refusal only what every build says alike. */
static bool hear_verdict(int connection, struct verdict *v, double until) {
    if (!wire_receive(connection, v, VERDICT_FROZEN_BYTES, until)) return false;
    if (v->magic != verdict_magic || v->blob_bytes > sizeof v->blob) return false;
    return v->status != STATUS_OK || wire_receive(connection, v->blob, sizeof v->blob, until);
}

/* One try at one address: true with the verdict, or a reason. */
static bool ask(const struct rendezvous_options *o, const struct wire_address *address,
                uint64_t run, double until, struct verdict *v, int *connection,
                char reason[WIRE_REASON_BYTES]) {
    const struct greeting g = rendezvous_greeting(o, run);
    const double patience = clock_seconds() + o->timeout_seconds + verdict_seconds;
    const int s = wire_connect(address, until, reason);
    if (s < 0) return false;
    if (wire_send(s, &g, sizeof g, patience) && hear_verdict(s, v, patience)) {
        *connection = s;
        return true;
    }
    snprintf(reason, WIRE_REASON_BYTES, "who listens there is no rank 0 of this run, or has ended");
    close(s);
    return false;
}

/* One round of tries. */
static enum status seek(const struct rendezvous_options *o, double until, struct verdict *v,
                        int *connection, char reason[WIRE_REASON_BYTES]) {
    const char *path = rendezvous_file_of(o->place);
    struct rendezvous_file file = {.run = o->run, .count = 1};
    if (path == NULL) {
        TRY(wire_address_parse(o->place, &file.addresses[0]));
    } else {
        const enum status status = rendezvous_file_read(path, &file);
        if (status == STATUS_CONFIG) return status;
        if (status != STATUS_OK) {
            snprintf(reason, WIRE_REASON_BYTES, "%.*s", WIRE_REASON_BYTES - 1, status_message());
            return STATUS_OK;
        }
    }
    for (size_t i = 0; i < file.count && *connection < 0; i++) {
        const double soon = clock_seconds() + (file.count > 1 ? 1.0 : greeting_seconds);
        ask(o, &file.addresses[i], file.run, soon < until ? soon : until, v, connection, reason);
    }
    return STATUS_OK;
}

static enum status open_other(struct rendezvous *r, const struct rendezvous_options *o,
                              void *blob, size_t blob_bytes) {
    const double until = clock_seconds() + o->timeout_seconds;
    char reason[WIRE_REASON_BYTES] = "";
    struct verdict v = {.magic = 0};
    r->connections = malloc(sizeof *r->connections);
    r->hosts = calloc(1, sizeof *r->hosts);
    if (r->connections == NULL || r->hosts == NULL) {
        return status_set(STATUS_MEMORY, "out of memory for a connection");
    }
    r->connections[0] = -1;
    for (;;) {
        TRY(seek(o, until, &v, &r->connections[0], reason));
        if (r->connections[0] >= 0) break;
        if (clock_seconds() + retry_seconds >= until) {
            return status_set(STATUS_RANKS, "rank %d of %d found no rank 0 at %s within %.0f "
                              "seconds: %s: see what rank 0 says, and that MASTER_ADDR and "
                              "MASTER_PORT or comm.rendezvous name it", o->rank, o->world, o->place,
                              o->timeout_seconds, reason);
        }
        rendezvous_pause();
    }
    rendezvous_printable(v.message, sizeof v.message);
    rendezvous_printable(v.host, sizeof v.host);
    memcpy(r->hosts[0], v.host, sizeof v.host);
    if (v.status != STATUS_OK) {
        const bool known = v.status == STATUS_CONFIG || v.status == STATUS_DEVICE;
        return status_set(known ? (enum status)v.status : STATUS_RANKS, "%s", v.message);
    }
    if (v.blob_bytes != blob_bytes) {
        return status_set(STATUS_RANKS, "rank 0 sent %u bytes where %zu were expected",
                          v.blob_bytes, blob_bytes);
    }
    memcpy(blob, v.blob, blob_bytes);
    return STATUS_OK;
}

/* ---- both ---- */

enum status rendezvous_open(struct rendezvous *r, const struct rendezvous_options *o, void *blob,
                            size_t blob_bytes) {
    *r = (struct rendezvous){.rank = o->rank, .world = o->world};
    if (o->world < 1 || o->world > WORLD_MAX || o->rank < 0 || o->rank >= o->world ||
        blob_bytes > RENDEZVOUS_BLOB_BYTES) {
        return status_set(STATUS_INTERNAL, "rendezvous of rank %d of %d, %zu bytes", o->rank,
                          o->world, blob_bytes);
    }
    if (o->world == 1) return STATUS_OK;
    const enum status status = o->rank == 0 ? rendezvous_open_first(r, o, blob, blob_bytes)
                                            : open_other(r, o, blob, blob_bytes);
    if (status != STATUS_OK) rendezvous_close(r);
    return status;
}

void rendezvous_close(struct rendezvous *r) {
    const int count = r->rank == 0 ? r->world : 1;
    for (int i = 0; r->connections != NULL && i < count; i++) {
        if (r->connections[i] >= 0) close(r->connections[i]);
    }
    free(r->connections);
    free(r->hosts);
    *r = (struct rendezvous){.rank = r->rank, .world = r->world};
}

enum status rendezvous_place(char place[PATH_BYTES], const char *configured,
                             const struct rank_environment *environment) {
    const char *host = environment->host;
    const bool v6 = strchr(host, ':') != NULL;
    if (configured[0] != '\0') {
        struct wire_address address;
        if (rendezvous_file_of(configured) == NULL &&
            wire_address_parse(configured, &address) != STATUS_OK) {
            return status_context(STATUS_CONFIG, "comm.rendezvous (HOST:PORT or file:PATH)");
        }
        snprintf(place, PATH_BYTES, "%s", configured);
        return STATUS_OK;
    }
    if (host[0] == '\0' || environment->port == 0) {
        return status_set(STATUS_CONFIG, "%s says that this is rank %d of %d, but not where rank 0 "
                          "is: set MASTER_ADDR and MASTER_PORT, or comm.rendezvous",
                          environment->source, environment->rank, environment->world);
    }
    snprintf(place, PATH_BYTES, "%s%s%s:%d", v6 ? "[" : "", host, v6 ? "]" : "",
             environment->port);
    return STATUS_OK;
}
