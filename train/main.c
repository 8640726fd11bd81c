/* The program: finds the command, runs it, and is the one place that exits. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/text.h"
#include "train/command_data.h"
#include "train/commands.h"
#include "train/version.h"

struct command {
    const char *name, *help;
    enum status (*run)(int argc, char **argv);
};

static const struct command commands[] = {
    {"train", "train a model, or continue training one", command_train},
    {"sample", "continue prompts with a trained model", command_sample},
    {"eval", "the loss of a trained model, or its answers to questions", command_eval},
    {"checkpoint", "list, verify and remove the checkpoints of a run", command_checkpoint},
    {"convert", "models of Hugging Face and llm.c in, any type out", command_convert},
    {"data", "make token shards from text, and look into them", command_data},
    {"plan", "parameters, memory and work of a run, without running it", command_plan},
    {"bench", "time steps, their floor, GEMMs, operations and collectives", command_bench},
    {"probe", "what this machine can do", command_probe},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(void) {
    printf("deepwell %s: trains GPT-style transformers\n\nusage: deepwell COMMAND [arguments]\n\n",
           DEEPWELL_VERSION);
    for (size_t i = 0; i < COMMANDS; i++) {
        printf("  %-10s %s\n", commands[i].name, commands[i].help);
    }
    printf("\n`deepwell COMMAND --help` tells more. Exit codes: docs/exit_codes.md\n");
}

static enum status unknown_command(const char *name) {
    const char *names[COMMANDS];
    char hint[TEXT_HINT_BYTES];
    for (size_t i = 0; i < COMMANDS; i++) names[i] = commands[i].name;
    return status_set(STATUS_CONFIG, "unknown command \"%s\"%s; `deepwell --help` lists them", name,
                      text_hint(hint, name, names, COMMANDS));
}

static enum status run(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help();
        return argc < 2 ? status_set(STATUS_CONFIG, "a command is missing") : STATUS_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("deepwell %s\n", DEEPWELL_VERSION);
        return STATUS_OK;
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    }
    return unknown_command(argv[1]);
}

/* What was printed must have arrived: a full disk behind the output is no success. */
static enum status flush_output(void) {
    const bool flushed = fflush(stdout) == 0;
    if (flushed && !ferror(stdout)) return STATUS_OK;
    return status_set(STATUS_IO, "cannot write to the standard output%s%s", flushed ? "" : ": ",
                      flushed ? "" : strerror(errno));
}

int main(int argc, char **argv) {
    enum status status = run(argc, argv);
    if (status == STATUS_OK) status = flush_output();
    else fflush(stdout); /* the error stands behind what led to it, also in one pipe with it */
    /* No message: another rank speaks for this one. */
    if (status != STATUS_OK && status_message()[0] != '\0')
        fprintf(stderr, "deepwell: %s\n", status_message());
    return (int)status;
}
