/*
 * Saving in the background: the caller copies its state into the saver's buffers and goes on; a
 * thread of the saver writes the checkpoint from there with checkpoint_save(), which keeps all that
 * checkpoint.c promises. One save at a time: whoever wants the next one waits for the last.
 *
 * The order of calls, all from one thread:
 *   saver_take()      the result of the last save, waiting for it if it is under way
 *   saver_buffers()   to be filled
 *   saver_start()
 *   saver_poll()      now and then; a failed save is the caller's to report
 *   saver_close()     waits for a save that is under way
 *
 * Owned by the trainer. Memory: 12 bytes a parameter in host memory, taken and touched once.
 */
#ifndef DEEPWELL_CHECKPOINTS_SAVER_H_
#define DEEPWELL_CHECKPOINTS_SAVER_H_

#include <stdbool.h>

#include "checkpoints/checkpoint.h"

enum { SAVER_BUFFERS = 3, SAVER_MESSAGE_BYTES = 2048 };

/* How a save ended. */
struct saver_result {
    int64_t step;
    double seconds; /* from saver_start() on */
    enum status status;
    char message[SAVER_MESSAGE_BYTES]; /* of the failure */
};

struct saver;

/* Bytes of a saver for this table. False if they do not fit in a size_t. */
bool saver_bytes(const struct param_table *params, size_t *bytes);

/* The table and what content->tokenizer points to must outlive the saver. STATUS_MEMORY with the
 * bytes that were asked for. */
enum status saver_open(struct saver **saver, const char *run_folder,
                       const struct param_table *params);

/* Waits for the save under way, if any, and for the memory to be there. True and the result if a
 * save has ended whose result was not taken yet. */
bool saver_take(struct saver *saver, struct saver_result *result);

/* The same without waiting: false while the save goes on. */
bool saver_poll(struct saver *saver, struct saver_result *result);

/* Masters, first and second moments: params->elements numbers each. Only while no save is under
 * way, that is after saver_take(). */
float *const *saver_buffers(struct saver *saver);

/* Writes the buffers as the checkpoint of content->step. content->masters, moments1 and moments2
 * are not looked at; `state` takes the place of content->state and becomes the saver's. The caller
 * holds the run's lock until saver_close(). */
void saver_start(struct saver *saver, const struct checkpoint_content *content, cJSON *state,
                 const struct checkpoint_retention *retention);

/* NULL is fine. */
void saver_close(struct saver *saver);

#endif
