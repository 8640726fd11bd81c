/* Gathering and broadcasting over the connections of a rendezvous: behind train/star.h. */
#include "train/star.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "train/wire.h"

static enum status lost(const struct rendezvous *talk, int rank) {
    const bool late = errno == ETIMEDOUT;
    const char *host = talk->hosts[talk->rank == 0 ? rank : 0];
    return status_set(STATUS_RANKS, "rank %d on %s %s", rank, host,
                      late ? "did not come in time to what all ranks exchange"
                           : "was lost: its connection ended");
}

static enum status give_and_take(const struct rendezvous *talk, void *out, const void *in,
                                 size_t bytes, size_t part, double until) {
    const size_t all = (size_t)talk->world * bytes;
    char byte = 0;
    if (!wire_send(talk->connections[0], bytes > 0 ? in : &byte, part, until) ||
        !wire_receive(talk->connections[0], bytes > 0 ? out : &byte, bytes > 0 ? all : 1, until)) {
        return lost(talk, 0);
    }
    return STATUS_OK;
}

enum status star_gather(const struct rendezvous *talk, void *out, const void *in, size_t bytes,
                        double timeout_seconds) {
    const double until = clock_seconds() + timeout_seconds;
    const size_t part = bytes > 0 ? bytes : 1; /* a barrier: a byte from each, one back */
    char byte = 0;
    if (talk->world > 1 && talk->rank > 0) {
        return give_and_take(talk, out, in, bytes, part, until);
    }
    if (bytes > 0) memmove((char *)out, in, bytes);
    for (int r = 1; r < talk->world; r++) {
        char *to = bytes > 0 ? (char *)out + (size_t)r * bytes : &byte;
        if (!wire_receive(talk->connections[r], to, part, until)) return lost(talk, r);
    }
    for (int r = 1; r < talk->world; r++) {
        const size_t all = bytes > 0 ? (size_t)talk->world * bytes : 1;
        if (!wire_send(talk->connections[r], bytes > 0 ? out : &byte, all, until)) {
            return lost(talk, r);
        }
    }
    return STATUS_OK;
}

enum status star_broadcast(const struct rendezvous *talk, void *data, size_t bytes, int root,
                           double timeout_seconds) {
    const double until = clock_seconds() + timeout_seconds;
    if (talk->rank > 0) {
        const bool there = talk->rank == root
                               ? wire_send(talk->connections[0], data, bytes, until)
                               : wire_receive(talk->connections[0], data, bytes, until);
        return there ? STATUS_OK : lost(talk, 0);
    }
    if (root > 0 && !wire_receive(talk->connections[root], data, bytes, until)) {
        return lost(talk, root);
    }
    for (int r = 1; r < talk->world; r++) {
        if (r == root) continue;
        if (!wire_send(talk->connections[r], data, bytes, until)) return lost(talk, r);
    }
    return STATUS_OK;
}

void star_break_off(const struct rendezvous *talk) {
    const int count = talk->connections == NULL ? 0 : talk->rank == 0 ? talk->world : 1;
    for (int i = 0; i < count; i++) {
        if (talk->connections[i] >= 0) shutdown(talk->connections[i], SHUT_RDWR);
    }
}
