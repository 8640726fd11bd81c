/* The shared file behind train/rendezvous_file.h. */
#include "train/rendezvous_file.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <net/if.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/file.h"

static const char header[] = "deepwell rendezvous 1\n";
static const double lock_seconds = 1.0;

static enum status no_rendezvous(const char *label, const char *why) {
    return status_set(STATUS_CONFIG, "%s is no rendezvous file of ours (%s): name a file that does "
                      "not exist yet, in a folder that all ranks share", label, why);
}

static enum status parse_line(const char *label, char *line, struct rendezvous_file *out) {
    if (out->count == RENDEZVOUS_ADDRESSES_MAX) return no_rendezvous(label, "too many addresses");
    if (wire_address_parse(line, &out->addresses[out->count]) != STATUS_OK) {
        return no_rendezvous(label, "a line that is no address");
    }
    out->count++;
    return STATUS_OK;
}

enum status rendezvous_file_parse(const char *label, const char *text, size_t bytes,
                                  struct rendezvous_file *out) {
    const size_t start = sizeof header - 1;
    char copy[RENDEZVOUS_FILE_BYTES_MAX + 1], *next = NULL;
    *out = (struct rendezvous_file){.count = 0};
    if (bytes > RENDEZVOUS_FILE_BYTES_MAX || bytes < start || memcmp(text, header, start) != 0) {
        return no_rendezvous(label, "its first line");
    }
    if (memchr(text, '\0', bytes) != NULL || text[bytes - 1] != '\n') {
        return no_rendezvous(label, "a zero byte, or cut off");
    }
    memcpy(copy, text + start, bytes - start);
    copy[bytes - start] = '\0';
    char *line = strtok_r(copy, "\n", &next);
    char *end = NULL;
    if (line == NULL || strncmp(line, "run ", 4) != 0 ||
        strspn(line + 4, "0123456789abcdef") != 16 || line[20] != '\0') {
        return no_rendezvous(label, "its second line");
    }
    out->run = strtoull(line + 4, &end, 16);
    while ((line = strtok_r(NULL, "\n", &next)) != NULL) TRY(parse_line(label, line, out));
    return out->count > 0 ? STATUS_OK : no_rendezvous(label, "no address");
}

enum status rendezvous_file_read(const char *path, struct rendezvous_file *out) {
    char *text = NULL;
    size_t bytes = 0;
    if (access(path, F_OK) != 0) {
        return status_set(STATUS_RANKS, "the file is not there: %s", strerror(errno));
    }
    TRY(file_read(path, RENDEZVOUS_FILE_BYTES_MAX, &text, &bytes));
    const enum status status = rendezvous_file_parse(path, text, bytes, out);
    free(text);
    return status;
}

/* All addresses of this host that can be used elsewhere, then the loopback's. */
static size_t list_addresses(char *text, size_t room, int port) {
    struct ifaddrs *list = NULL;
    char host[NI_MAXHOST];
    size_t used = 0, count = 0;
    if (getifaddrs(&list) != 0) list = NULL;
    for (const struct ifaddrs *at = list; at != NULL; at = at->ifa_next) {
        if (at->ifa_addr == NULL || (at->ifa_flags & IFF_UP) == 0 ||
            (at->ifa_flags & IFF_LOOPBACK) != 0 || at->ifa_addr->sa_family != AF_INET ||
            count + 1 >= RENDEZVOUS_ADDRESSES_MAX ||
            getnameinfo(at->ifa_addr, sizeof(struct sockaddr_in), host, sizeof host, NULL, 0,
                        NI_NUMERICHOST) != 0) {
            continue;
        }
        used += (size_t)snprintf(text + used, room - used, "%s:%d\n", host, port);
        count++;
    }
    if (list != NULL) freeifaddrs(list);
    return used + (size_t)snprintf(text + used, room - used, "127.0.0.1:%d\n", port);
}

static enum status lock_path(char out[PATH_BYTES], const char *path) {
    const int length = snprintf(out, PATH_BYTES, "%s.lock", path);
    if (length > 0 && length < PATH_BYTES) return STATUS_OK;
    return status_set(STATUS_CONFIG, "the path %.100s... is too long", path);
}

static enum status write_file(const char *path, int port, uint64_t *run) {
    char text[RENDEZVOUS_FILE_BYTES_MAX];
    struct rendezvous_file old;
    const enum status found = rendezvous_file_read(path, &old);
    if (found != STATUS_OK && found != STATUS_RANKS) return found;
    if (getrandom(run, sizeof *run, 0) != (ssize_t)sizeof *run) {
        return status_set(STATUS_INTERNAL, "no random number: %s", strerror(errno));
    }
    size_t used = (size_t)snprintf(text, sizeof text, "%srun %016" PRIx64 "\n", header, *run);
    used += list_addresses(text + used, sizeof text - used, port);
    return file_write_durable(path, text, used);
}

enum status rendezvous_file_publish(const char *path, int port, uint64_t *run, int *lock) {
    char locked[PATH_BYTES];
    *lock = -1;
    TRY(lock_path(locked, path));
    if (file_lock(locked, lock_seconds, lock) != STATUS_OK) {
        return status_context(STATUS_CONFIG, "another run starts through %s: give each a file of "
                              "its own", path);
    }
    const enum status status = write_file(path, port, run);
    if (status != STATUS_OK) {
        file_unlock(*lock);
        *lock = -1;
    }
    return status;
}

void rendezvous_file_withdraw(const char *path, int lock) {
    if (lock < 0) return;
    unlink(path);
    file_unlock(lock);
}
