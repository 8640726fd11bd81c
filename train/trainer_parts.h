/* What trainer.c and trainer_open.c share, and nobody else needs. */
#ifndef DEEPWELL_TRAIN_TRAINER_PARTS_H_
#define DEEPWELL_TRAIN_TRAINER_PARTS_H_

#include "train/trainer.h"

enum { EVENT_BYTES = 512 };

/* Something worth a line and an event record, at the present step. */
enum status trainer_event(struct trainer *trainer, const char *what);

/* Validation now: line and metrics record. Nothing without validation data, or if done for this
 * step. */
enum status trainer_validate(struct trainer *trainer);

/* Multiple choice now: line and metrics record. Nothing without eval.file, or if done for this
 * step. */
enum status trainer_score_choices(struct trainer *trainer);

/* A text sample now: lines and metrics record. */
enum status trainer_sample(struct trainer *trainer);

/* A checkpoint of the present state, unless it is there or on its way. In the background it returns
 * when the copy is made; a save that is still under way is waited for first, and if that takes
 * long, a line says so. */
enum status trainer_save(struct trainer *trainer);

/* Looks at power and clock, unless it did a quarter of a second ago. */
void trainer_look_at_power(struct trainer *trainer);

/* What the steps of this process took, on a line and in the metrics; why it is not known, on a
 * line. */
enum status trainer_report_energy(struct trainer *trainer);

/* After every step: the line and the record of a save that has ended since; its failure, if it
 * failed. */
enum status trainer_save_poll(struct trainer *trainer);

/* Returns when no save is under way. */
enum status trainer_save_finish(struct trainer *trainer);

/* The same at the end of a run that ended with `status`, whose message stays in front. Returns it,
 * or how the save ended. */
enum status trainer_save_end(struct trainer *trainer, enum status status);

/* Refuses what several ranks cannot do, before the run's folder is made. */
enum status trainer_save_check(const struct trainer *trainer);

/* Opens the saver where checkpoint.background and memory allow it. */
enum status trainer_save_open(struct trainer *trainer);

/* Several ranks (trainer_ranks.c), on all with the same outcome: refuses what they read and have
 * not in common. */
enum status trainer_check_data(struct trainer *trainer);
enum status trainer_check_resumed(struct trainer *trainer);

/* A checkpoint of all ranks where they share the state out: the same outcome on each. */
enum status trainer_save_shards(struct trainer *trainer, struct checkpoint_content *content,
                                const struct checkpoint_retention *retention);

/* The header: what will run, on what, with how much memory. */
void trainer_print_header(const struct trainer *trainer);

/* What this process was started with: the metrics record, and RUN/configuration.conf. */
enum status trainer_record_run(const struct trainer *trainer);

#endif
