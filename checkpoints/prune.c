/*
 * Removing what retention does not keep: behind checkpoint_prune() of checkpoints/checkpoint.h.
 * Keeps invariants 2 and 3 of checkpoint.c: nothing is removed that is not older than a checkpoint
 * verified by reading it, and only here are the leftovers of dead saves and prunes removed.
 *
 * A checkpoint goes in three moves: renamed to ...deleting-PID-N, the run folder made durable, then
 * emptied. Whatever the moment of a crash, a half-emptied folder never has the name of a
 * checkpoint.
 */
#include "checkpoints/prune.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/layout.h"
#include "checkpoints/open.h"

enum status prune_retention_check(const struct checkpoint_retention *retention) {
    if (retention->keep >= 1 && retention->keep_every >= 0) return STATUS_OK;
    return status_set(STATUS_CONFIG,
                      "expected to keep at least 1 checkpoint and multiples of 0 or more "
                      "steps, found %lld and %lld",
                      (long long)retention->keep, (long long)retention->keep_every);
}

/* *newest = the newest step that verifies, *oldest = the last of the newest `keep` that do; -1
 * where there are none or fewer. verified_step is not read again, and, after a save, nothing older
 * than the newest is: each was read when it was saved. Without it, only what is read now counts. */
static enum status find_kept(const char *run_folder, const struct checkpoint_retention *retention,
                             const int64_t *steps, size_t count, int64_t verified_step,
                             int64_t *newest, int64_t *oldest) {
    int64_t kept = 0;
    *newest = *oldest = -1;
    for (size_t i = 0; i < count && *oldest < 0; i++) {
        const bool trusted =
            steps[i] == verified_step || (verified_step >= 0 && *newest >= 0);
        const enum status status = trusted ? STATUS_OK : open_verify(run_folder, steps[i]);
        if (status == STATUS_MEMORY) return status; /* says nothing about the checkpoint */
        if (status != STATUS_OK) continue;
        if (*newest < 0) *newest = steps[i];
        if (++kept == retention->keep) *oldest = steps[i];
    }
    return STATUS_OK;
}

/* Takes the name of a checkpoint from it. The folder is emptied later, as a leftover. */
static enum status retire(const char *run_folder, int64_t step) {
    char path[PATH_BYTES], retired[PATH_BYTES];
    TRY(layout_step_path(path, run_folder, step));
    TRY(layout_free_path(retired, run_folder, step, LAYOUT_DELETING));
    if (rename(path, retired) == 0) return STATUS_OK;
    return status_set(STATUS_IO, "cannot rename %s to %s: %s", path, retired, strerror(errno));
}

static enum status retire_old(const char *run_folder, const struct checkpoint_retention *retention,
                              int64_t verified_step, int64_t *newest) {
    int64_t *steps = NULL, oldest = -1;
    size_t count = 0;
    enum status status = STATUS_OK;
    TRY(layout_steps(run_folder, &steps, &count));
    TRY_GOTO(find_kept(run_folder, retention, steps, count, verified_step, newest, &oldest), done);
    for (size_t i = 0; i < count; i++) {
        const bool landmark = retention->keep_every > 0 && steps[i] % retention->keep_every == 0;
        if (landmark || steps[i] >= oldest || steps[i] == verified_step) continue;
        TRY_GOTO(retire(run_folder, steps[i]), done);
    }

done:
    free(steps);
    return status;
}

/* What no process works on any more. A damaged checkpoint that was moved aside is kept until one
 * that verifies has its step or a later one. */
static bool is_leftover(const char *name, int64_t newest) {
    int64_t step = -1;
    const enum layout_kind kind = layout_kind(name, &step);
    return kind == LAYOUT_TEMPORARY || kind == LAYOUT_DELETING ||
           (kind == LAYOUT_DAMAGED && step <= newest);
}

static enum status remove_leftovers(const char *run_folder, int64_t newest) {
    char **names = NULL;
    size_t count = 0;
    enum status status = STATUS_OK;
    TRY(folder_list(run_folder, &names, &count));
    for (size_t i = 0; i < count; i++) {
        char path[PATH_BYTES];
        if (!is_leftover(names[i], newest)) continue;
        TRY_GOTO(path_join(path, run_folder, names[i]), done);
        TRY_GOTO(folder_remove(path), done);
    }

done:
    names_free(names, count);
    return status;
}

enum status prune_after(const char *run_folder, const struct checkpoint_retention *retention,
                        int64_t verified_step) {
    int64_t newest = -1; /* that verifies */
    TRY(prune_retention_check(retention));
    TRY(retire_old(run_folder, retention, verified_step, &newest));
    TRY(folder_sync(run_folder)); /* the new names, before anything behind them goes */
    return remove_leftovers(run_folder, newest);
}

enum status checkpoint_prune(const char *run_folder, const struct checkpoint_retention *retention) {
    return prune_after(run_folder, retention, -1);
}
