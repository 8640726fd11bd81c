/* deepwell checkpoint: what lies in a run's folder, whether it is whole, and less of it. */
#include <stdio.h>
#include <stdlib.h>

#include "base/text.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/layout.h"
#include "checkpoints/manifest.h"
#include "checkpoints/run_lock.h"
#include "train/cli.h"
#include "train/commands.h"

static const char help[] =
    "deepwell checkpoint: the checkpoints of a run\n"
    "\n"
    "  deepwell checkpoint list RUN      steps and sizes, and what interrupted saves left\n"
    "  deepwell checkpoint verify PATH   reads a run's checkpoints, or the one named, to the last\n"
    "                                    byte; exit code 4 if one is damaged\n"
    "  deepwell checkpoint prune RUN --keep N\n"
    "                                    removes all but the newest that verify\n"
    "\n"
    "`deepwell checkpoint SUBCOMMAND --help` says more.\n";

static const char help_list[] =
    "usage: deepwell checkpoint list RUN\n"
    "\n"
    "Lists the checkpoints of a run by what their manifests say, newest first. Nothing is\n"
    "verified.\n";

static const char help_verify[] =
    "usage: deepwell checkpoint verify RUN|CHECKPOINT\n"
    "\n"
    "Compares every file with its size and checksum and parses it. Prints a line each; ends with\n"
    "exit code 4 if one is damaged. Nothing is changed.\n";

static const char help_prune[] =
    "usage: deepwell checkpoint prune RUN --keep N [--keep_every M]\n"
    "\n"
    "Removes checkpoints and what interrupted saves left. Nothing is removed that is not older\n"
    "than a checkpoint that was read to its last byte first. Refused while the run is training.\n"
    "\n"
    "  --keep N             the newest N that verify stay, and damaged ones among them\n"
    "  --keep_every M       those of steps that are multiples of M stay too\n";

static enum status count_steps(const char *run, size_t *count) {
    int64_t *steps = NULL;
    TRY(layout_steps(run, &steps, count));
    free(steps);
    return STATUS_OK;
}

static enum status require_run(const char *run) {
    char configuration[PATH_BYTES];
    size_t count = 0;
    if (!path_is_folder(run)) {
        return status_set(STATUS_CHECKPOINT, "there is no run folder %.1000s", run);
    }
    TRY(count_steps(run, &count));
    TRY(path_join(configuration, run, "configuration.conf"));
    if (count > 0 || path_is_file(configuration)) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT, "expected a run's folder, with checkpoints such as "
                      "step_00001000 in it, found none in %.1000s", run);
}

static enum status print_one(const char *run, int64_t step) {
    char path[PATH_BYTES], manifest_path[PATH_BYTES], text[TEXT_BYTES];
    struct manifest manifest;
    size_t bytes = 0;
    TRY(layout_step_path(path, run, step));
    TRY(path_join(manifest_path, path, MANIFEST_NAME));
    const enum status status = manifest_read(manifest_path, &manifest);
    if (status == STATUS_MEMORY) return status;
    if (status != STATUS_OK) {
        printf("%-12lld damaged: %s\n", (long long)step, status_message());
        return STATUS_OK;
    }
    for (size_t i = 0; i < manifest.count; i++) bytes += manifest.files[i].digest.bytes;
    printf("%-12lld %10s  %s\n", (long long)step, text_bytes(text, bytes), path);
    manifest_free(&manifest);
    return STATUS_OK;
}

static enum status print_leftovers(const char *run) {
    char **names = NULL;
    size_t count = 0;
    TRY(folder_list(run, &names, &count));
    for (size_t i = 0; i < count; i++) {
        int64_t step = 0;
        const enum layout_kind kind = layout_kind(names[i], &step);
        const char *what = kind == LAYOUT_TEMPORARY  ? "being written, or left by a save that died"
                           : kind == LAYOUT_DAMAGED  ? "did not verify and was replaced"
                           : kind == LAYOUT_DELETING ? "being removed, or left by a prune that died"
                                                     : NULL;
        if (what != NULL)
            printf("%-12lld %10s  %s/%s: %s\n", (long long)step, "-", run, names[i], what);
    }
    names_free(names, count);
    return STATUS_OK;
}

static enum status list(int argc, char **argv) {
    static const struct cli cli = {.command = "checkpoint list",
                                   .usage = help_list,
                                   .names = "RUN, a run's folder"};
    struct cli_names names;
    int64_t *steps = NULL;
    size_t count = 0;
    enum status status = STATUS_OK;
    TRY(cli_positionals(&cli, argc, argv, 1, 1, &names));
    if (names.help) return STATUS_OK;
    TRY(cli_options(&cli, argc, argv, NULL));
    const char *run = names.names[0];
    TRY(require_run(run));
    TRY(layout_steps(run, &steps, &count));
    printf("%-12s %10s\n", "step", "size");
    for (size_t i = 0; i < count && status == STATUS_OK; i++) status = print_one(run, steps[i]);
    free(steps);
    return status == STATUS_OK ? print_leftovers(run) : status;
}

/* A line about one; counts it if it is damaged. */
static enum status verify_one(const char *path, size_t *damaged) {
    struct checkpoint checkpoint;
    const enum status status = checkpoint_open(&checkpoint, path);
    if (status == STATUS_OK) {
        printf("whole    %s\n", path);
        checkpoint_close(&checkpoint);
        return STATUS_OK;
    }
    if (status != STATUS_CHECKPOINT) return status; /* says nothing about the checkpoint */
    printf("damaged  %s: %s\n", path, status_message());
    (*damaged)++;
    return STATUS_OK;
}

static enum status verify_run(const char *run, size_t *count, size_t *damaged) {
    int64_t *steps = NULL;
    enum status status = STATUS_OK;
    TRY(layout_steps(run, &steps, count));
    for (size_t i = 0; i < *count; i++) {
        char path[PATH_BYTES];
        TRY_GOTO(layout_step_path(path, run, steps[i]), done);
        TRY_GOTO(verify_one(path, damaged), done);
    }
done:
    free(steps);
    return status;
}

static enum status verify(int argc, char **argv) {
    static const struct cli cli = {.command = "checkpoint verify",
                                   .usage = help_verify,
                                   .names = "RUN, a run's folder or a checkpoint"};
    struct cli_names names;
    char run[PATH_BYTES], name[PATH_BYTES];
    size_t count = 1, damaged = 0;
    int64_t step = 0;
    TRY(cli_positionals(&cli, argc, argv, 1, 1, &names));
    if (names.help) return STATUS_OK;
    TRY(cli_options(&cli, argc, argv, NULL));
    const char *path = names.names[0];
    TRY(require_run(path));
    TRY(layout_split(path, run, name));
    char manifest[PATH_BYTES];
    TRY(path_join(manifest, path, MANIFEST_NAME));
    if (layout_kind(name, &step) == LAYOUT_STEP || path_is_file(manifest)) {
        TRY(verify_one(path, &damaged));
    } else {
        TRY(verify_run(path, &count, &damaged));
    }
    if (count == 0) return status_set(STATUS_CHECKPOINT, "%s holds no checkpoint", path);
    if (damaged == 0) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT, "%zu of %zu checkpoints in %s %s damaged", damaged, count,
                      path, damaged == 1 ? "is" : "are");
}

static enum status prune(int argc, char **argv) {
    struct checkpoint_retention retention = {0};
    const struct cli_option options[] = {
        {.name = "--keep", .whole = &retention.keep, .least = 1, .most = 1000000},
        {.name = "--keep_every",
         .whole = &retention.keep_every,
         .least = 0,
         .most = LAYOUT_STEP_MAX},
    };
    const struct cli cli = {
        .command = "checkpoint prune",
        .usage = help_prune,
        .names = "RUN, a run's folder",
        .options = options,
        .option_count = sizeof options / sizeof options[0],
    };
    struct cli_names names;
    struct run_lock lock = RUN_LOCK_NONE;
    TRY(cli_positionals(&cli, argc, argv, 1, 1, &names));
    if (names.help) return STATUS_OK;
    TRY(cli_options(&cli, argc, argv, NULL));
    if (retention.keep == 0) {
        return status_set(STATUS_CONFIG, "expected --keep N, how many of the newest stay");
    }
    TRY(require_run(names.names[0]));
    TRY(run_lock_acquire(&lock, names.names[0]));
    size_t before = 0, after = 0;
    enum status status = count_steps(names.names[0], &before);
    if (status == STATUS_OK) status = checkpoint_prune(names.names[0], &retention);
    if (status == STATUS_OK) status = count_steps(names.names[0], &after);
    run_lock_release(&lock);
    TRY(status);
    printf("removed %zu checkpoint%s, kept %zu\n", before - after, before - after == 1 ? "" : "s",
           after);
    return STATUS_OK;
}

enum status command_checkpoint(int argc, char **argv) {
    static const struct cli_subcommand subcommands[] = {
        {"list", list}, {"verify", verify}, {"prune", prune},
    };
    static const struct cli_group group = {
        "checkpoint", help, subcommands, sizeof subcommands / sizeof subcommands[0],
    };
    return cli_dispatch(&group, argc, argv);
}
