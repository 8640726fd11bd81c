/* Starting, relaying and ending the ranks of one host: behind train/launch.h. */
#include "train/launch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

enum { LINE_BYTES = 1 << 16, STREAMS = 2, DRAIN_READS = 64, NOTE_BYTES = 160 };

/* One stream of one rank: what came since the last newline. */
struct stream_relay {
    int from; /* our end of the pipe; -1: ended */
    int to;
    size_t used;
    char line[LINE_BYTES];
};

struct rank_process {
    pid_t pid;   /* 0: ended and reaped */
    int how;     /* as waitpid() says */
    int ended_by_us; /* the last signal that it was sent because another failed; 0: none */
    struct stream_relay *streams; /* (STREAMS) */
};

struct launcher {
    const struct launch *launch;
    struct rank_process *ranks; /* (launch.ranks) */
    int running;
    int signals;          /* signalfd */
    int culprit;          /* rank that failed first; -1: none */
    int asked;            /* signals that were passed on; the last of them */
    int asked_by;
    double urged_seconds; /* clock when that was last sent */
    bool ending, killed;  /* SIGTERM, SIGKILL were sent because of it */
    bool output_gone;     /* our own output takes no more */
    double ending_since;
};

static const double urge_seconds = 0.1;
static const int passed_on[] = {SIGINT, SIGTERM, SIGHUP};
enum { PASSED_ON = sizeof passed_on / sizeof passed_on[0] };

/* ---- starting ---- */

/* A port of the loopback address that nothing uses at this moment. */
static enum status free_port(int *port) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool found = listener >= 0 &&
                       bind(listener, (struct sockaddr *)&address, sizeof address) == 0 &&
                       getsockname(listener, (struct sockaddr *)&address, &length) == 0;
    const int error = errno;
    if (listener >= 0) close(listener);
    if (!found) {
        return status_set(STATUS_INTERNAL, "no free port on 127.0.0.1 for the ranks to meet: %s",
                          strerror(error));
    }
    *port = ntohs(address.sin_port);
    return STATUS_OK;
}

static void set_number(const char *name, long long value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", value);
    setenv(name, text, 1);
}

/* In the child, between fork and exec. */
static void become_rank(const struct launch *launch, int rank, int port, const sigset_t *mask,
                        pid_t parent, const int ends[STREAMS]) {
    const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    setpgid(0, 0); /* a terminal's Ctrl-C reaches the launcher alone, which passes it on once */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(128 + SIGTERM); /* it ended before that */
    if (null >= 0) dup2(null, STDIN_FILENO);
    dup2(ends[0], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    sigprocmask(SIG_SETMASK, mask, NULL);
    set_number("RANK", rank);
    set_number("LOCAL_RANK", rank);
    set_number("WORLD_SIZE", launch->ranks);
    set_number("LOCAL_WORLD_SIZE", launch->ranks);
    set_number("MASTER_PORT", port);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    unsetenv("TORCHELASTIC_USE_AGENT_STORE"); /* another launcher's, about another port */
    execvp(launch->program, launch->arguments);
    fprintf(stderr, "deepwell: cannot start %s: %s\n", launch->program, strerror(errno));
    _exit(127);
}

static enum status start_rank(struct launcher *l, int rank, int port, const sigset_t *mask) {
    int pipes[STREAMS][2] = {{-1, -1}, {-1, -1}};
    struct rank_process *process = &l->ranks[rank];
    const pid_t parent = getpid();
    bool right = true;
    for (size_t i = 0; i < STREAMS && right; i++) right = pipe2(pipes[i], O_CLOEXEC) == 0;
    const int ends[STREAMS] = {pipes[0][1], pipes[1][1]};
    const pid_t pid = right ? fork() : -1;
    const int error = errno;
    if (pid == 0) become_rank(l->launch, rank, port, mask, parent, ends);
    for (size_t i = 0; i < STREAMS; i++) {
        if (pipes[i][1] >= 0) close(pipes[i][1]);
        process->streams[i].from = pipes[i][0];
        process->streams[i].to = i == 0 ? l->launch->out : l->launch->err;
        if (pid > 0) fcntl(pipes[i][0], F_SETFL, O_NONBLOCK);
    }
    if (pid < 0) {
        return status_set(STATUS_INTERNAL, "cannot start the process of rank %d of %d: %s", rank,
                          l->launch->ranks, strerror(error));
    }
    process->pid = pid;
    l->running++;
    return STATUS_OK;
}

static void signal_all(struct launcher *l, int number) {
    for (int r = 0; r < l->launch->ranks; r++) {
        if (l->ranks[r].pid <= 0) continue;
        /* its group, once it made one: what it started goes too */
        if (kill(-l->ranks[r].pid, number) != 0) kill(l->ranks[r].pid, number);
    }
}

/* ---- output ---- */

static void write_out(struct launcher *l, int to, const char *text, size_t bytes) {
    while (bytes > 0) {
        const ssize_t written = write(to, text, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0 && errno == EAGAIN) {
            struct pollfd room = {.fd = to, .events = POLLOUT};
            poll(&room, 1, -1);
            continue;
        }
        if (written < 0) {
            l->output_gone = l->output_gone || to == l->launch->out;
            return;
        }
        text += written;
        bytes -= (size_t)written;
    }
}

/* The line that is there, complete or not, with its rank in front. */
static void write_line(struct launcher *l, int rank, struct stream_relay *s, size_t bytes) {
    char prefix[16];
    const int length = snprintf(prefix, sizeof prefix, "[%d] ", rank);
    if (rank > 0) write_out(l, s->to, prefix, (size_t)length);
    write_out(l, s->to, s->line, bytes);
    if (s->line[bytes - 1] != '\n') write_out(l, s->to, "\n", 1);
    memmove(s->line, s->line + bytes, s->used - bytes);
    s->used -= bytes;
}

static void end_stream(struct launcher *l, int rank, struct stream_relay *s) {
    if (s->used > 0) write_line(l, rank, s, s->used);
    if (s->from >= 0) close(s->from);
    s->from = -1;
}

/* Takes what is there, once; false when there is nothing, now or ever. */
static bool read_stream(struct launcher *l, int rank, struct stream_relay *s) {
    const ssize_t got = read(s->from, s->line + s->used, LINE_BYTES - s->used);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return false;
    if (got <= 0) {
        end_stream(l, rank, s);
        return false;
    }
    s->used += (size_t)got;
    const char *newline;
    while (s->used > 0 && (newline = memchr(s->line, '\n', s->used)) != NULL) {
        write_line(l, rank, s, (size_t)(newline - s->line) + 1);
    }
    if (s->used == LINE_BYTES) write_line(l, rank, s, s->used); /* longer than any line of ours */
    return true;
}

/* What an ended rank had still written. Something that it started may hold the pipe open for ever:
 * only what is there is taken. */
static void drain(struct launcher *l, int rank) {
    for (size_t i = 0; i < STREAMS; i++) {
        struct stream_relay *s = &l->ranks[rank].streams[i];
        for (int reads = 0; s->from >= 0 && reads < DRAIN_READS; reads++) {
            if (!read_stream(l, rank, s)) break;
        }
        end_stream(l, rank, s);
    }
}

/* ---- fate ---- */

static int code_of(const struct rank_process *process) {
    return WIFSIGNALED(process->how) ? 128 + WTERMSIG(process->how) : WEXITSTATUS(process->how);
}

static const char *cause(char text[NOTE_BYTES], const struct launcher *l, int rank) {
    const struct rank_process *process = &l->ranks[rank];
    if (WIFSIGNALED(process->how)) {
        const int number = WTERMSIG(process->how);
        snprintf(text, NOTE_BYTES, "rank %d of %d was ended by signal %d (%s)", rank,
                 l->launch->ranks, number, strsignal(number));
    } else {
        snprintf(text, NOTE_BYTES, "rank %d of %d ended with exit code %d", rank, l->launch->ranks,
                 WEXITSTATUS(process->how));
    }
    return text;
}

/* Whether a signal that it was sent because another failed ended it, and not one of its own. */
static bool ended_by_ours(const struct rank_process *process) {
    if (process->ended_by_us == 0 || !WIFSIGNALED(process->how)) return false;
    const int number = WTERMSIG(process->how);
    return number == SIGTERM || number == process->ended_by_us;
}

/* How much a rank's end says of what went wrong. One that left because it was asked to (or because
 * all leave) ends nobody; one that failed because another did makes room for that other. */
static int weight(const struct rank_process *process) {
    const int code = code_of(process);
    if (code == 0 || ended_by_ours(process)) return 0;
    if (code == STATUS_INTERRUPTED) return process->ended_by_us != 0 ? 0 : 1;
    return code == STATUS_RANKS ? 2 : 3;
}

/* Those that still run are to end, because of another. */
static void end_all(struct launcher *l, int number) {
    for (int r = 0; r < l->launch->ranks; r++) {
        if (l->ranks[r].pid > 0) l->ranks[r].ended_by_us = number;
    }
    signal_all(l, number);
}

/* The first failure ends all. */
static void judge(struct launcher *l, int rank) {
    char text[NOTE_BYTES], line[2 * NOTE_BYTES];
    const int now = weight(&l->ranks[rank]);
    if (now > (l->culprit < 0 ? 0 : weight(&l->ranks[l->culprit]))) l->culprit = rank;
    if (l->ending || now <= 1) return;
    l->ending = true;
    l->ending_since = clock_seconds();
    if (l->running > 0) {
        snprintf(line, sizeof line, "deepwell: %s: ending the others\n", cause(text, l, rank));
        write_out(l, l->launch->err, line, strlen(line));
    }
    end_all(l, SIGTERM);
}

static void reap(struct launcher *l) {
    int how = 0;
    pid_t pid;
    while ((pid = waitpid(-1, &how, WNOHANG)) > 0) {
        for (int r = 0; r < l->launch->ranks; r++) {
            if (l->ranks[r].pid != pid) continue;
            l->ranks[r].pid = 0;
            l->ranks[r].how = how;
            l->running--;
            drain(l, r);
            judge(l, r);
        }
    }
}

static void pass_on(struct launcher *l, int number) {
    const char *note = l->launch->note;
    if (l->asked == 0 && !l->ending) {
        write_out(l, l->launch->err, "\n", 1); /* behind what the terminal shows of Ctrl-C */
        write_out(l, l->launch->err, note, strlen(note));
    }
    l->asked++;
    l->asked_by = number;
    l->urged_seconds = clock_seconds();
    signal_all(l, number);
}

/* Asked twice, they are to leave at once. A signal that a rank had from elsewhere in the same
 * moment may have swallowed one of ours, for the kernel keeps one of a kind: it is sent until all
 * have gone. */
static void urge(struct launcher *l) {
    if (l->asked < 2 || clock_seconds() - l->urged_seconds < urge_seconds) return;
    l->urged_seconds = clock_seconds();
    signal_all(l, l->asked_by);
}

static void take_signals(struct launcher *l) {
    struct signalfd_siginfo info;
    while (read(l->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo != SIGCHLD) pass_on(l, (int)info.ssi_signo);
    }
    reap(l);
}

/* Milliseconds until SIGKILL is due, or the next signal to those that are to leave at once; -1:
 * neither is. */
static int wait_ms(struct launcher *l) {
    const int urged = l->asked < 2 ? -1 : (int)(urge_seconds * 1e3);
    if (!l->ending || l->killed) return urged;
    const double left = l->ending_since + l->launch->grace_seconds - clock_seconds();
    if (left > 0.0) return urged >= 0 ? urged : (int)(left * 1e3) + 1;
    l->killed = true;
    end_all(l, SIGKILL);
    return urged;
}

/* Until all have ended. */
static void watch(struct launcher *l) {
    struct pollfd files[1 + STREAMS * LAUNCH_RANKS_MAX];
    bool told = false;
    while (l->running > 0) {
        const int until_ms = wait_ms(l);
        size_t count = 0;
        files[count++] = (struct pollfd){.fd = l->signals, .events = POLLIN};
        for (int r = 0; r < l->launch->ranks; r++) {
            for (size_t i = 0; i < STREAMS; i++) {
                files[count++] = (struct pollfd){.fd = l->ranks[r].streams[i].from,
                                                 .events = POLLIN};
            }
        }
        if (poll(files, count, until_ms) < 0) continue;
        for (size_t f = 1; f < count; f++) {
            const int rank = (int)((f - 1) / STREAMS);
            if (files[f].revents == 0) continue;
            read_stream(l, rank, &l->ranks[rank].streams[(f - 1) % STREAMS]);
        }
        take_signals(l);
        urge(l);
        if (l->output_gone && !told) { /* the reader has gone: as SIGPIPE asks a lone process */
            told = true;
            signal_all(l, SIGTERM);
        }
    }
}

/* ---- the whole ---- */

static enum status start_all(struct launcher *l, const sigset_t *mask) {
    uint64_t run = 0;
    int port = 0;
    TRY(free_port(&port));
    if (getrandom(&run, sizeof run, 0) != (ssize_t)sizeof run) run = (uint64_t)getpid();
    set_number("DEEPWELL_RUN", (long long)(run >> 1));
    for (int r = 0; r < l->launch->ranks; r++) TRY(start_rank(l, r, port, mask));
    return STATUS_OK;
}

static enum status allocate(struct launcher *l) {
    const size_t ranks = (size_t)l->launch->ranks;
    struct stream_relay *streams = calloc(STREAMS * ranks, sizeof *streams);
    l->ranks = calloc(ranks, sizeof *l->ranks);
    if (streams == NULL || l->ranks == NULL) {
        free(streams);
        return status_set(STATUS_MEMORY, "out of memory for the output of %zu ranks", ranks);
    }
    for (size_t i = 0; i < STREAMS * ranks; i++) streams[i].from = -1;
    for (size_t r = 0; r < ranks; r++) l->ranks[r].streams = streams + STREAMS * r;
    return STATUS_OK;
}

static enum status run(struct launcher *l, const sigset_t *mask, const sigset_t *wanted) {
    char text[NOTE_BYTES];
    TRY(allocate(l));
    l->signals = signalfd(-1, wanted, SFD_CLOEXEC | SFD_NONBLOCK);
    if (l->signals < 0) {
        return status_set(STATUS_INTERNAL, "cannot wait for signals: %s", strerror(errno));
    }
    const enum status started = start_all(l, mask);
    if (started != STATUS_OK) {
        l->ending = l->killed = true;
        end_all(l, SIGKILL);
    }
    watch(l);
    if (started != STATUS_OK) return started;
    if (l->culprit < 0) {
        return l->output_gone ? status_set(STATUS_IO, "cannot write to the standard output")
                              : STATUS_OK;
    }
    const int code = code_of(&l->ranks[l->culprit]);
    return status_set((enum status)code, "%s%s", cause(text, l, l->culprit),
                      code < 128 ? " (its own message stands above)" : "");
}

enum status launch_processes(const struct launch *launch) {
    struct launcher l = {.launch = launch, .signals = -1, .culprit = -1};
    sigset_t wanted, before;
    if (launch->ranks < 1 || launch->ranks > LAUNCH_RANKS_MAX) {
        return status_set(STATUS_CONFIG, "expected 1 to %d processes on one host, found %d",
                          LAUNCH_RANKS_MAX, launch->ranks);
    }
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigaddset(&wanted, SIGPIPE); /* a reader that has gone shows as a failed write */
    for (size_t i = 0; i < PASSED_ON; i++) sigaddset(&wanted, passed_on[i]);
    sigprocmask(SIG_BLOCK, &wanted, &before);
    sigdelset(&wanted, SIGPIPE);
    const enum status status = run(&l, &before, &wanted);
    if (l.signals >= 0) close(l.signals);
    if (l.ranks != NULL) free(l.ranks[0].streams);
    free(l.ranks);
    unsetenv("DEEPWELL_RUN");
    const struct timespec none = {0};
    sigset_t broken_pipe;
    sigemptyset(&broken_pipe);
    sigaddset(&broken_pipe, SIGPIPE);
    while (sigtimedwait(&broken_pipe, NULL, &none) > 0) {} /* none is left to strike later */
    sigprocmask(SIG_SETMASK, &before, NULL);
    return status;
}
