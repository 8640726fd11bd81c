/* The watch behind train/watchdog.h: one thread a rank; rank 0's also hears the others and judges.
 * */
#include "train/watchdog.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "train/wire.h"

enum { MESSAGE_BYTES = 640 };
static const double
    send_seconds = 1.0,
    gather_beats = 3.0,      /* rank 0 lets this many beats come in before it names who is late */
    silent_beats = 10.0,     /* beyond the timeout: who waits for the silent rank is heard first */
    orphan_seconds = 5.0;    /* that an overdue rank waits for rank 0's word */

enum frame_kind { FRAME_BEAT = 1, FRAME_FAILED, FRAME_BYE };

struct frame {
    uint32_t kind, overdue;
    uint64_t entered, left; /* struct watchdog_progress */
    int64_t step;
    char what[WATCHDOG_WHAT_BYTES];
    char message[MESSAGE_BYTES]; /* FRAME_FAILED: why the run ends */
};
_Static_assert(sizeof(struct frame) == 32 + WATCHDOG_WHAT_BYTES + MESSAGE_BYTES,
               "no padding travels");

/* The other end of a connection. */
struct peer {
    struct frame coming, last; /* the one half read; the newest whole one */
    size_t got;
    double heard_seconds;
    bool gone; /* said goodbye */
};

struct watchdog {
    struct watchdog_options options;
    int rank, world, peer_count;
    struct peer *peers; /* (peer_count), as meeting.connections */
    struct pollfd *files; /* (1 + peer_count) */
    struct watchdog_progress seen; /* at the beat when it last moved */
    double moved_seconds;
    pthread_t thread;
    int wake;           /* eventfd: look up */
    double overdue_since; /* of anybody, as rank 0 heard it; 0: nobody */
    /* the rest is guarded by the lock */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct watchdog_progress host; /* as entered and left */
    int64_t step;
    double allowed_seconds; /* options.timeout_seconds, or as watchdog_allow() said */
    bool closing, failed;
    char message[MESSAGE_BYTES];
};

/* ---- what the rank says ---- */

static void wake(struct watchdog *w) {
    const uint64_t one = 1;
    if (write(w->wake, &one, sizeof one) < 0) return; /* full: it is awake already */
}

void watchdog_at_step(struct watchdog *w, int64_t step) {
    pthread_mutex_lock(&w->lock);
    w->step = step;
    pthread_mutex_unlock(&w->lock);
}

void watchdog_allow(struct watchdog *w, double seconds) {
    pthread_mutex_lock(&w->lock);
    w->allowed_seconds = seconds;
    pthread_mutex_unlock(&w->lock);
}

static double allowed_seconds(struct watchdog *w) {
    pthread_mutex_lock(&w->lock);
    const double seconds = w->allowed_seconds;
    pthread_mutex_unlock(&w->lock);
    return seconds;
}

void watchdog_enter(struct watchdog *w, const char *what) {
    pthread_mutex_lock(&w->lock);
    snprintf(w->host.what, sizeof w->host.what, "%s", what);
    w->host.entered++;
    pthread_mutex_unlock(&w->lock);
}

void watchdog_leave(struct watchdog *w) {
    pthread_mutex_lock(&w->lock);
    w->host.left = w->host.entered;
    pthread_mutex_unlock(&w->lock);
}

enum status watchdog_check(struct watchdog *w) {
    pthread_mutex_lock(&w->lock);
    const enum status status = w->failed ? status_set(STATUS_RANKS, "%s", w->message) : STATUS_OK;
    pthread_mutex_unlock(&w->lock);
    return status;
}

/* How far this rank is; overdue when it has waited in one place for longer than is allowed. */
static struct frame own_frame(struct watchdog *w) {
    struct frame f = {.kind = FRAME_BEAT};
    struct watchdog_progress now;
    pthread_mutex_lock(&w->lock);
    now = w->host;
    f.step = w->step;
    pthread_mutex_unlock(&w->lock);
    if (w->options.progress != NULL) w->options.progress(w->options.context, &now);
    if (now.entered != w->seen.entered || now.left != w->seen.left) {
        w->moved_seconds = clock_seconds();
    }
    w->seen = now;
    f.entered = now.entered;
    f.left = now.left;
    memcpy(f.what, now.what, sizeof f.what);
    f.overdue = now.entered > now.left &&
                clock_seconds() - w->moved_seconds > allowed_seconds(w);
    return f;
}

/* ---- how it ends ---- */

/* The first failure stays. */
static void fail(struct watchdog *w, const char *message) {
    pthread_mutex_lock(&w->lock);
    if (!w->failed) snprintf(w->message, sizeof w->message, "%s", message);
    w->failed = true;
    pthread_mutex_unlock(&w->lock);
}

static void send_to(struct watchdog *w, int peer, const struct frame *f) {
    if (w->options.meeting->connections == NULL || w->peers[peer].gone) return;
    if (w->options.meeting->connections[peer] < 0) return;
    wire_send(w->options.meeting->connections[peer], f, sizeof *f, clock_seconds() + send_seconds);
}

static void send_all(struct watchdog *w, const struct frame *f) {
    for (int i = 0; i < w->peer_count; i++) send_to(w, i, f);
}

/* Rank 0: the whole run fails by this. */
static void fail_all(struct watchdog *w, const char *message) {
    struct frame f = own_frame(w);
    f.kind = FRAME_FAILED;
    snprintf(f.message, sizeof f.message, "%s", message);
    fail(w, message);
    send_all(w, &f);
}

/* Waits for the rank to leave by itself; ends it if it does not. */
static void see_it_leave(struct watchdog *w) {
    struct timespec until;
    int waited = 0;
    if (w->options.abort != NULL) w->options.abort(w->options.context);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)w->options.grace_seconds;
    until.tv_nsec += (long)(1e9 * (w->options.grace_seconds - (double)(time_t)
                                   w->options.grace_seconds));
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&w->lock);
    while (!w->closing && waited == 0) {
        waited = pthread_cond_timedwait(&w->changed, &w->lock, &until);
    }
    const bool left = w->closing;
    pthread_mutex_unlock(&w->lock);
    if (left) return;
    dprintf(STDERR_FILENO, "deepwell: %s\n", w->message);
    _exit(STATUS_RANKS); /* the rank's own thread is stuck: nobody else can */
}

/* ---- rank 0: who is late ---- */

static const char *host_of(const struct watchdog *w, int rank) {
    return w->options.meeting->hosts == NULL ? "this host" : w->options.meeting->hosts[rank];
}

enum { STEP_TEXT_BYTES = 48 };
static const char *step_text(char text[STEP_TEXT_BYTES], int64_t step) {
    if (step < 0) snprintf(text, STEP_TEXT_BYTES, "before the first step");
    if (step >= 0) snprintf(text, STEP_TEXT_BYTES, "step %" PRId64, step);
    return text;
}

static void describe_late(char *text, size_t room, const struct watchdog *w, uint64_t number,
                          const struct frame *own) {
    char ranks[RANKS_TEXT_BYTES], more[192] = "", step[STEP_TEXT_BYTES];
    int first = -1;
    bool *late = calloc((size_t)w->world, sizeof *late);
    if (late == NULL) return;
    for (int r = 0; r < w->world; r++) {
        late[r] = (r == 0 ? own->entered : w->peers[r].last.entered) <= number;
        if (late[r] && first < 0) first = r;
    }
    ranks_text(ranks, late, w->world);
    free(late);
    if (first < 0) {
        snprintf(text, room, "all ranks arrived: the network or a device hangs");
        return;
    }
    const struct frame *last = first == 0 ? own : &w->peers[first].last;
    const double silent = first == 0 ? 0.0 : clock_seconds() - w->peers[first].heard_seconds;
    if (first > 0 && w->peers[first].gone) {
        snprintf(more, sizeof more, "it has left the run");
    } else if (silent > gather_beats * w->options.beat_seconds) {
        snprintf(more, sizeof more, "silent for %.0f seconds, last seen at %s, %s", silent,
                 step_text(step, last->step), last->entered == 0 ? "in none yet" : last->what);
    } else if (last->entered == 0) {
        snprintf(more, sizeof more, "it has come to none yet");
    } else {
        snprintf(more, sizeof more, "last seen at %s, %s", step_text(step, last->step), last->what);
    }
    snprintf(text, room, "%s did not arrive (rank %d on %s: %s)", ranks, first, host_of(w, first),
             more);
}

/* The oldest collective that somebody waits for too long. */
static void judge_overdue(struct watchdog *w) {
    const struct frame own = own_frame(w);
    const struct frame *oldest = own.overdue ? &own : NULL;
    char late[448] = "", step[STEP_TEXT_BYTES], message[MESSAGE_BYTES];
    for (int r = 1; r < w->peer_count; r++) {
        const struct frame *f = &w->peers[r].last;
        if (f->overdue && (oldest == NULL || f->left < oldest->left)) oldest = f;
    }
    if (oldest == NULL) {
        w->overdue_since = 0.0;
        return;
    }
    if (w->overdue_since == 0.0) w->overdue_since = clock_seconds();
    if (clock_seconds() - w->overdue_since < gather_beats * w->options.beat_seconds) return;
    describe_late(late, sizeof late, w, oldest->left, &own);
    snprintf(message, sizeof message, "%s (%s) did not finish within %.0f seconds: %s",
             oldest->what, step_text(step, oldest->step), allowed_seconds(w), late);
    fail_all(w, message);
}

static void judge_silent(struct watchdog *w) {
    char message[MESSAGE_BYTES];
    for (int r = 1; r < w->peer_count; r++) {
        const struct peer *p = &w->peers[r];
        const double silent = clock_seconds() - p->heard_seconds;
        const double most = w->options.timeout_seconds + silent_beats * w->options.beat_seconds;
        if (p->gone || silent <= most) continue;
        snprintf(message, sizeof message, "rank %d on %s has been silent for %.0f seconds: its "
                 "host or the network is down", r, host_of(w, r), silent);
        fail_all(w, message);
        return;
    }
}

/* ---- hearing ---- */

static bool has_failed(struct watchdog *w) { return watchdog_check(w) != STATUS_OK; }

/* A whole frame from peer i. */
static void take_frame(struct watchdog *w, int i) {
    struct peer *p = &w->peers[i];
    char message[MESSAGE_BYTES + 128];
    p->coming.what[WATCHDOG_WHAT_BYTES - 1] = p->coming.message[MESSAGE_BYTES - 1] = '\0';
    p->heard_seconds = clock_seconds();
    p->got = 0;
    if (p->coming.kind == FRAME_BYE) {
        p->gone = true;
    } else if (p->coming.kind == FRAME_FAILED && w->rank == 0) {
        p->gone = true;
        snprintf(message, sizeof message, "rank %d on %s failed: %s", i, host_of(w, i),
                 p->coming.message);
        message[MESSAGE_BYTES - 1] = '\0';
        fail_all(w, message);
    } else if (p->coming.kind == FRAME_FAILED) {
        p->gone = true;
        fail(w, p->coming.message);
    } else {
        p->last = p->coming;
    }
}

static void lost(struct watchdog *w, int i) {
    char message[MESSAGE_BYTES];
    const bool goodbye = w->peers[i].gone;
    w->peers[i].gone = true;
    if (goodbye) return;
    snprintf(message, sizeof message, "rank %d on %s was lost: its process or its host ended",
             i, host_of(w, i));
    if (w->rank == 0) {
        fail_all(w, message);
    } else {
        fail(w, message);
    }
}

static void hear(struct watchdog *w, int i) {
    struct peer *p = &w->peers[i];
    const int connection = w->options.meeting->connections[i];
    for (;;) {
        const ssize_t got = read(connection, (char *)&p->coming + p->got,
                                 sizeof p->coming - p->got);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) {
            lost(w, i);
            return;
        }
        p->got += (size_t)got;
        if (p->got == sizeof p->coming) take_frame(w, i);
    }
}

static void listen_for(struct watchdog *w, double until) {
    uint64_t woken = 0;
    w->files[0] = (struct pollfd){.fd = w->wake, .events = POLLIN};
    for (int i = 0; i < w->peer_count; i++) {
        const int connection = w->peers[i].gone ? -1 : w->options.meeting->connections[i];
        w->files[1 + i] = (struct pollfd){.fd = connection, .events = POLLIN};
    }
    if (poll(w->files, 1 + (nfds_t)w->peer_count, wire_milliseconds(until)) <= 0) return;
    if (w->files[0].revents != 0 && read(w->wake, &woken, sizeof woken) < 0) return;
    for (int i = 0; i < w->peer_count; i++) {
        if (w->files[1 + i].revents != 0) hear(w, i);
    }
}

/* ---- the thread ---- */

/* Not rank 0: reports; judges by itself only where rank 0 says nothing. */
static void report(struct watchdog *w) {
    const struct frame own = own_frame(w);
    char step[STEP_TEXT_BYTES], message[MESSAGE_BYTES];
    send_to(w, 0, &own);
    if (!own.overdue) {
        w->overdue_since = 0.0;
        return;
    }
    if (w->overdue_since == 0.0) w->overdue_since = clock_seconds();
    if (clock_seconds() - w->overdue_since < orphan_seconds) return;
    snprintf(message, sizeof message, "%s (%s) did not finish within %.0f seconds, and rank 0 on "
             "%s does not say who is missing", own.what, step_text(step, own.step),
             w->options.timeout_seconds, host_of(w, 0));
    fail(w, message);
}

static void *watch(void *context) {
    struct watchdog *w = context;
    for (;;) {
        const double next = clock_seconds() + w->options.beat_seconds;
        do {
            listen_for(w, next);
            pthread_mutex_lock(&w->lock);
            const bool closing = w->closing;
            pthread_mutex_unlock(&w->lock);
            if (closing) return NULL;
        } while (clock_seconds() < next && !has_failed(w));
        if (!has_failed(w) && w->rank > 0) report(w);
        if (!has_failed(w) && w->rank == 0) judge_overdue(w);
        if (!has_failed(w) && w->rank == 0) judge_silent(w);
        if (has_failed(w)) break;
    }
    see_it_leave(w);
    return NULL;
}

/* ---- opening and closing ---- */

static void release(struct watchdog *w) {
    if (w->wake >= 0) close(w->wake);
    free(w->peers);
    free(w->files);
    free(w);
}

/* Signals are for the rank's own threads. */
static int start_thread(struct watchdog *w) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&w->thread, NULL, watch, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

enum status watchdog_open(struct watchdog **out, const struct watchdog_options *options) {
    const struct rendezvous *meeting = options->meeting;
    struct watchdog *w = calloc(1, sizeof *w);
    *out = NULL;
    if (w == NULL) return status_set(STATUS_MEMORY, "out of memory for the watchdog");
    w->options = *options;
    w->allowed_seconds = options->timeout_seconds;
    w->step = -1;
    w->moved_seconds = clock_seconds();
    w->rank = meeting->rank;
    w->world = meeting->world;
    w->peer_count = meeting->world == 1 ? 0 : meeting->rank == 0 ? meeting->world : 1;
    w->peers = calloc((size_t)w->peer_count + 1, sizeof *w->peers);
    w->files = calloc((size_t)w->peer_count + 1, sizeof *w->files);
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->peers == NULL || w->files == NULL || w->wake < 0) {
        release(w);
        return status_set(STATUS_MEMORY, "no memory or files for the watchdog");
    }
    for (int i = 0; i < w->peer_count; i++) {
        w->peers[i].heard_seconds = clock_seconds();
        w->peers[i].gone = meeting->connections[i] < 0;
    }
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    const int error = start_thread(w);
    if (error != 0) {
        release(w);
        return status_set(STATUS_INTERNAL, "cannot start the watchdog: %s", strerror(error));
    }
    *out = w;
    return STATUS_OK;
}

void watchdog_close(struct watchdog *w, enum status status) {
    if (w == NULL) return;
    const bool quiet = status == STATUS_OK || status == STATUS_INTERRUPTED;
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    const bool failed = w->failed;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    wake(w);
    pthread_join(w->thread, NULL);
    struct frame f = own_frame(w);
    f.kind = quiet || failed ? FRAME_BYE : FRAME_FAILED;
    snprintf(f.message, sizeof f.message, "%s%.*s", w->rank == 0 ? "rank 0 failed: " : "",
             MESSAGE_BYTES - 32, quiet ? "" : status_message());
    send_all(w, &f);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->changed);
    release(w);
}
