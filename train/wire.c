/* Sockets behind train/wire.h. */
#include "train/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

enum { BACKLOG = 4096 };

enum status wire_address_parse(const char *text, struct wire_address *address) {
    const char *colon = strrchr(text, ':');
    size_t length = colon == NULL ? 0 : (size_t)(colon - text);
    struct wire_address found = {.port = 0};
    const bool bracketed = length > 2 && text[0] == '[' && text[length - 1] == ']';
    if (bracketed) {
        text++;
        length -= 2;
    }
    if (length == 0 || length >= sizeof found.host ||
        (!bracketed && strcspn(text, ":[]") < length)) {
        return status_set(STATUS_CONFIG, "expected HOST:PORT, found \"%.100s\"", text);
    }
    memcpy(found.host, text, length);
    TRY(rank_number("the port", colon + 1, 1, 65535, &found.port));
    *address = found;
    return STATUS_OK;
}

int wire_milliseconds(double until) {
    const double left = until - clock_seconds();
    return left <= 0.0 ? 0 : left > 1e6 ? 1000000000 : (int)(left * 1e3) + 1;
}

/* Waits for the events; false with ETIMEDOUT. */
static bool ready(int connection, short events, double until) {
    for (;;) {
        struct pollfd file = {.fd = connection, .events = events};
        const int count = poll(&file, 1, wire_milliseconds(until));
        if (count > 0) return true;
        if (count == 0 && clock_seconds() >= until) {
            errno = ETIMEDOUT;
            return false;
        }
        if (count < 0 && errno != EINTR) return false;
    }
}

static bool is_loopback(const char *host) {
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "localhost") == 0 ||
           strcmp(host, "::1") == 0;
}

static int listen_at(const struct sockaddr *address, socklen_t length) {
    const int yes = 1, no = 0;
    const int s = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s < 0) return -1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes); /* a restart finds its port free */
    if (address->sa_family == AF_INET6) {
        setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    }
    if (bind(s, address, length) == 0 && listen(s, BACKLOG) == 0) return s;
    const int error = errno;
    close(s);
    errno = error;
    return -1;
}

int wire_listen(const char *host, int *port) {
    const struct sockaddr_in6 any6 = {.sin6_family = AF_INET6,
                                      .sin6_port = htons((uint16_t)*port)};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
    struct sockaddr_storage bound;
    socklen_t length = sizeof bound;
    int listener = -1;
    errno = EAFNOSUPPORT;
    if (strcmp(host, "::1") == 0) {
        struct sockaddr_in6 loopback6 = any6;
        loopback6.sin6_addr = in6addr_loopback;
        listener = listen_at((const struct sockaddr *)&loopback6, sizeof loopback6);
    } else if (is_loopback(host)) {
        v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        listener = listen_at((const struct sockaddr *)&v4, sizeof v4);
    } else {
        listener = listen_at((const struct sockaddr *)&any6, sizeof any6);
        if (listener < 0 && errno != EADDRINUSE) { /* a kernel without IPv6 */
            listener = listen_at((const struct sockaddr *)&v4, sizeof v4);
        }
    }
    if (listener < 0) return -1;
    if (getsockname(listener, (struct sockaddr *)&bound, &length) == 0) {
        *port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                  : ((struct sockaddr_in *)&bound)->sin_port);
    }
    return listener;
}

static void configure(int connection) {
    const int yes = 1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(connection, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
}

int wire_accept(int listener) {
    const int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (connection >= 0) configure(connection);
    return connection;
}

/* -1 with errno. */
static int connect_to(const struct addrinfo *at, double until) {
    int error = 0;
    socklen_t length = sizeof error;
    const int s = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s < 0) return -1;
    if (connect(s, at->ai_addr, at->ai_addrlen) != 0) {
        error = errno;
        if (error == EINPROGRESS && !ready(s, POLLOUT, until)) error = errno;
        if (error == EINPROGRESS) getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &length);
    }
    if (error == 0) {
        configure(s);
        return s;
    }
    close(s);
    errno = error;
    return -1;
}

int wire_connect(const struct wire_address *address, double until, char reason[WIRE_REASON_BYTES]) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char port[8];
    int connection = -1;
    snprintf(port, sizeof port, "%d", address->port);
    const int failed = getaddrinfo(address->host, port, &hints, &list);
    if (failed != 0) {
        snprintf(reason, WIRE_REASON_BYTES, "the host name does not resolve (%s)",
                 failed == EAI_SYSTEM ? strerror(errno) : gai_strerror(failed));
        return -1;
    }
    for (const struct addrinfo *at = list; at != NULL && connection < 0; at = at->ai_next) {
        connection = connect_to(at, until);
    }
    if (connection < 0) snprintf(reason, WIRE_REASON_BYTES, "%s", strerror(errno));
    freeaddrinfo(list);
    return connection;
}

bool wire_send(int connection, const void *message, size_t bytes, double until) {
    const char *from = message;
    while (bytes > 0) {
        const ssize_t sent = send(connection, from, bytes, MSG_NOSIGNAL);
        if (sent >= 0) {
            from += sent;
            bytes -= (size_t)sent;
        } else if (errno == EAGAIN) {
            if (!ready(connection, POLLOUT, until)) return false;
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

bool wire_receive(int connection, void *message, size_t bytes, double until) {
    char *to = message;
    while (bytes > 0) {
        const ssize_t got = recv(connection, to, bytes, 0);
        if (got > 0) {
            to += got;
            bytes -= (size_t)got;
        } else if (got == 0) {
            errno = ECONNRESET;
            return false;
        } else if (errno == EAGAIN) {
            if (!ready(connection, POLLIN, until)) return false;
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}
