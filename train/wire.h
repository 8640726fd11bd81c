/*
 * TCP between the ranks of a run, for rendezvous.c and watchdog.c: small messages of fixed size,
 * every wait with an end. Sockets do not block and do not survive an exec. What goes wrong is the
 * other side's doing as a rule, so these return a reason instead of a status; the callers know what
 * it means.
 */
#ifndef DEEPWELL_TRAIN_WIRE_H_
#define DEEPWELL_TRAIN_WIRE_H_

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "train/rank_environment.h"

enum { WIRE_REASON_BYTES = 160 };

struct wire_address {
    char host[HOST_BYTES];
    int port;
};

/* "HOST:PORT", "[::1]:PORT". STATUS_CONFIG for anything else. */
enum status wire_address_parse(const char *text, struct wire_address *address);

/* A socket that listens at the port, 0: any free one, which *port becomes; on the loopback address
 * alone where `host` is that, else on all. -1 with errno. */
int wire_listen(const char *host, int *port);

/* A connection to the address, tried once, up to `until` (clock_seconds()). -1 with a reason. */
int wire_connect(const struct wire_address *address, double until, char reason[WIRE_REASON_BYTES]);

/* The next connection, if there is one; -1: none. */
int wire_accept(int listener);

/* The whole message before `until`. False with a reason in errno; ECONNRESET also for an end. */
bool wire_send(int connection, const void *message, size_t bytes, double until);
bool wire_receive(int connection, void *message, size_t bytes, double until);

/* Milliseconds for poll() until then: 0 when it has passed. */
int wire_milliseconds(double until);

#endif
