/*
 * The commands of the program. Each takes its own arguments (argv[0] is its name), prints what it
 * has to say on stdout, and returns a status; main.c prints the message of a failure and exits with
 * its code.
 */
#ifndef DEEPWELL_TRAIN_COMMANDS_H_
#define DEEPWELL_TRAIN_COMMANDS_H_

#include "base/status.h"

enum status command_train(int argc, char **argv);
enum status command_sample(int argc, char **argv);
enum status command_eval(int argc, char **argv);
enum status command_plan(int argc, char **argv);
enum status command_convert(int argc, char **argv);
enum status command_checkpoint(int argc, char **argv);
enum status command_probe(int argc, char **argv);
enum status command_bench(int argc, char **argv);

#endif
