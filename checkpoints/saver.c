/*
 * The thread behind checkpoints/saver.h. `phase` says whose the buffers and the job are: the
 * caller's in SAVER_IDLE and SAVER_ENDED, the thread's in SAVER_TOUCHING and SAVER_WRITING.
 */
#include "checkpoints/saver.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"

enum { NICENESS = 10 }; /* the step's threads go first where cores are few */

enum saver_phase { SAVER_TOUCHING, SAVER_IDLE, SAVER_WRITING, SAVER_ENDED };

struct saver {
    char run_folder[PATH_BYTES];
    const struct param_table *params;
    float *buffers[SAVER_BUFFERS];
    struct checkpoint_content content;
    cJSON *state;
    struct checkpoint_retention retention;
    struct saver_result result;

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* either of the fields below */
    enum saver_phase phase;
    bool stopping;
};

bool saver_bytes(const struct param_table *params, size_t *bytes) {
    return size_mul(params->elements, SAVER_BUFFERS * sizeof(float), bytes);
}

/* Pages are touched here, before the first save, and not during its copy. */
static void touch(const struct saver *saver) {
    for (size_t i = 0; i < SAVER_BUFFERS; i++) {
        memset(saver->buffers[i], 0, saver->params->elements * sizeof(float));
    }
}

static void write_checkpoint(struct saver *saver) {
    struct saver_result *result = &saver->result;
    const double begun = clock_seconds();
    result->step = saver->content.step;
    result->status = checkpoint_save(saver->run_folder, &saver->content, &saver->retention);
    result->seconds = clock_seconds() - begun;
    snprintf(result->message, sizeof result->message, "%s",
             result->status == STATUS_OK ? "" : status_message());
    cJSON_Delete(saver->state);
    saver->state = NULL;
}

static void set_phase(struct saver *saver, enum saver_phase phase) {
    pthread_mutex_lock(&saver->lock);
    saver->phase = phase;
    pthread_cond_broadcast(&saver->changed);
    pthread_mutex_unlock(&saver->lock);
}

static void *run(void *argument) {
    struct saver *saver = argument;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICENESS); /* of this thread; only a wish */
    touch(saver);
    set_phase(saver, SAVER_IDLE);
    for (;;) {
        pthread_mutex_lock(&saver->lock);
        while (!saver->stopping && saver->phase != SAVER_WRITING) {
            pthread_cond_wait(&saver->changed, &saver->lock);
        }
        const bool writing = saver->phase == SAVER_WRITING;
        pthread_mutex_unlock(&saver->lock);
        if (!writing) return NULL;
        write_checkpoint(saver);
        set_phase(saver, SAVER_ENDED);
    }
}

/* With all signals blocked, so that they reach the trainer. */
static enum status start_thread(struct saver *saver) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&saver->thread, NULL, run, saver);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0) return STATUS_OK;
    return status_set(STATUS_MEMORY,
                      "cannot start the thread that saves: %s; allow this process more threads, or "
                      "set checkpoint.background = off",
                      strerror(error));
}

static void release(struct saver *saver) {
    for (size_t i = 0; i < SAVER_BUFFERS; i++) free(saver->buffers[i]);
    pthread_mutex_destroy(&saver->lock);
    pthread_cond_destroy(&saver->changed);
    free(saver);
}

enum status saver_open(struct saver **out, const char *run_folder,
                       const struct param_table *params) {
    enum status status = STATUS_OK;
    size_t bytes = 0;
    struct saver *saver = calloc(1, sizeof *saver);
    if (saver == NULL || !saver_bytes(params, &bytes)) {
        free(saver);
        return status_set(STATUS_MEMORY, "out of memory for saving in the background");
    }
    pthread_mutex_init(&saver->lock, NULL);
    pthread_cond_init(&saver->changed, NULL);
    saver->params = params;
    if (snprintf(saver->run_folder, PATH_BYTES, "%s", run_folder) >= PATH_BYTES) {
        status = status_set(STATUS_CONFIG, "the path %.100s... is too long", run_folder);
        goto fail;
    }
    for (size_t i = 0; i < SAVER_BUFFERS; i++) {
        saver->buffers[i] = malloc(size_max(params->elements, 1) * sizeof(float));
        if (saver->buffers[i] != NULL) continue;
        status = status_set(STATUS_MEMORY,
                            "out of memory for the %zu bytes that saving in the background copies: "
                            "set checkpoint.background = off",
                            bytes);
        goto fail;
    }
    TRY_GOTO(start_thread(saver), fail);
    *out = saver;
    return STATUS_OK;
fail:
    release(saver);
    return status;
}

/* True if a result is there; the lock is held. */
static bool collect(struct saver *saver, struct saver_result *result) {
    if (saver->phase != SAVER_ENDED) return false;
    *result = saver->result;
    saver->phase = SAVER_IDLE;
    return true;
}

bool saver_take(struct saver *saver, struct saver_result *result) {
    pthread_mutex_lock(&saver->lock);
    while (saver->phase == SAVER_WRITING || saver->phase == SAVER_TOUCHING) {
        pthread_cond_wait(&saver->changed, &saver->lock);
    }
    const bool found = collect(saver, result);
    pthread_mutex_unlock(&saver->lock);
    return found;
}

bool saver_poll(struct saver *saver, struct saver_result *result) {
    pthread_mutex_lock(&saver->lock);
    const bool found = collect(saver, result);
    pthread_mutex_unlock(&saver->lock);
    return found;
}

float *const *saver_buffers(struct saver *saver) { return saver->buffers; }

void saver_start(struct saver *saver, const struct checkpoint_content *content, cJSON *state,
                 const struct checkpoint_retention *retention) {
    saver->content = *content;
    saver->content.masters = saver->buffers[0];
    saver->content.moments1 = saver->buffers[1];
    saver->content.moments2 = saver->buffers[2];
    saver->content.state = saver->state = state;
    saver->retention = *retention;
    set_phase(saver, SAVER_WRITING);
}

void saver_close(struct saver *saver) {
    if (saver == NULL) return;
    pthread_mutex_lock(&saver->lock);
    saver->stopping = true;
    pthread_cond_broadcast(&saver->changed);
    pthread_mutex_unlock(&saver->lock);
    pthread_join(saver->thread, NULL);
    release(saver);
}
