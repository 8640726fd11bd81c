/* Writes docs/configuration.md to stdout: bazel run //train:configuration_markdown. */
#include <stdio.h>

#include "train/config.h"

int main(void) {
    config_print_markdown(stdout);
    return fflush(stdout) == 0 ? 0 : 1;
}
