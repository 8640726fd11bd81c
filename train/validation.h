/* The mean loss over a validation set. Called by trainer.c and command_eval.c. */
#ifndef DEEPWELL_TRAIN_VALIDATION_H_
#define DEEPWELL_TRAIN_VALIDATION_H_

#include "data/dataset.h"
#include "train/engine.h"

struct validation {
    double loss;          /* nats a token, mean over all tokens */
    double bits_per_byte; /* of the text that the tokens stand for, the end of a document being
                             none; NaN where no tokenizer says what it is */
    size_t tokens;
};

/* The first `sequences` (0: all) of the dataset in file order, engine->evaluation.shape.batch at a
 * time on each rank; the same tokens every time, and the same sum whatever the number of ranks.
 * With `until_signal` it fails with STATUS_INTERRUPTED between batches once a signal has come; a
 * run finishes its validation first, for it would never be made up. */
enum status validation_run(struct engine *engine, const struct dataset *dataset, size_t sequences,
                           bool until_signal, struct validation *result);

#endif
