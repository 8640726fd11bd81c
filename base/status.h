/*
 * What every function that can fail returns, and the message that goes with it.
 *
 * The message is set where the failure happened, by status_set(): what was expected, what was
 * found, what to do. Callers pass the code up with TRY (or TRY_GOTO where something must be
 * released) and may put context in front of the message. Only train/main.c prints it, and the code
 * is the exit code of the process. Messages are per thread; a thread hands its own over by copying
 * the text.
 */
#ifndef DEEPWELL_BASE_STATUS_H_
#define DEEPWELL_BASE_STATUS_H_

#ifdef __cplusplus
extern "C" {
#endif

/* The values are the process's exit codes (docs/exit_codes.md). */
enum status {
    STATUS_OK = 0,
    STATUS_INTERNAL = 1,    /* a broken promise inside the program: a defect */
    STATUS_CONFIG = 2,      /* the command line or a configuration file */
    STATUS_DATA = 3,        /* token shards, text, tokenizers */
    STATUS_CHECKPOINT = 4,  /* a checkpoint that is missing, torn, altered or of another model */
    STATUS_IO = 5,          /* the file system: full, read-only, not there, not allowed */
    STATUS_NUMERICS = 6,    /* a loss, gradient or weight that is not finite */
    STATUS_MEMORY = 7,      /* more memory wanted than there is */
    STATUS_DEVICE = 8,      /* an accelerator or its library is missing or failed */
    STATUS_INTERRUPTED = 9, /* a signal asked to leave; the run was saved */
    STATUS_RANKS = 10,      /* another rank failed, was lost or did not arrive in time */
};

/* Records the message for this thread and returns `code`, so that `return status_set(...)` reads
 * well. */
enum status status_set(enum status code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Puts "context: " in front of the present message. Returns `code`. */
enum status status_context(enum status code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* This thread's last message; never NULL. */
const char *status_message(void);

#define TRY(expression)                          \
    do {                                         \
        const enum status try_ = (expression);   \
        if (try_ != STATUS_OK) return try_;      \
    } while (0)

/* Stores the code in the local variable `status` and jumps to the one cleanup label. */
#define TRY_GOTO(expression, label)              \
    do {                                         \
        status = (expression);                   \
        if (status != STATUS_OK) goto label;     \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
