/*
 * What the subcommands of `deepwell bench` share: a model that is stepped on tokens, the floor of a
 * configuration, headings, and the rule that a figure above what the device can do is an error.
 *
 * command_bench.c chooses the subcommand; each has a file of its own.
 */
#ifndef DEEPWELL_TRAIN_BENCH_H_
#define DEEPWELL_TRAIN_BENCH_H_

#include "data/loader.h"
#include "kernels/cuda/power.h"
#include "train/engine.h"
#include "train/step_trace.h"

/* argv[0] is the subcommand. */
enum status bench_step(int argc, char **argv);
enum status bench_floor(int argc, char **argv);
enum status bench_gemm(int argc, char **argv);
enum status bench_ops(int argc, char **argv);
enum status bench_comm(int argc, char **argv);

/* A new model, stepped on tokens from data.train, or random ones where that is empty. */
struct bench {
    const struct config *config;
    struct ranks ranks;
    struct comm comm;
    struct engine engine;
    struct dataset dataset;
    struct loader *loader; /* NULL: random tokens */
    int32_t *random;       /* (N + 1) */
    uint64_t drawn;        /* random tokens so far */
    int64_t step;
    struct step_state states[DEVICE_READS]; /* several ranks: after step s in [s % DEVICE_READS] */
    struct gpu_power power;
};

/* Opens everything and prints what will run, on this one rank alone. bench_close() it, also after
 * a failure. */
enum status bench_open(struct bench *bench, const struct config *config);
/* The same on all ranks that a launcher started, as training begins; each takes its share of
 * train.batch. */
enum status bench_open_ranks(struct bench *bench, const struct config *config);
void bench_close(struct bench *bench);

/* A whole optimizer step, asked for. STATUS_INTERRUPTED after a signal; with several ranks on all
 * of them at the same step, to whichever it came. */
enum status bench_run_step(struct bench *bench);

/* The state after what was run so far, which is waited for; STATUS_NUMERICS if a step was not
 * finite. */
enum status bench_read_state(struct bench *bench, struct step_state *state);

/* Device, why it is this one, and on a GPU the versions of what drives it, as they are loaded. */
void bench_print_device(const struct device *device);
/* Power, clock and energy of the stretch that was measured (gpu_power_text); on a CPU, which has no
 * such counter, nothing. */
void bench_print_power(const struct device *device, const struct gpu_power *power, double tokens);
void bench_print_step(const struct config *config, const struct device *device, const char *tokens);

/* STATUS_INTERNAL, naming `what`, if it is faster than `limit` TFLOPS (0: not known), which
 * `whose` is: then the measurement is wrong, and must not stand as a result. */
enum status bench_check_tflops(const char *what, double tflops, double limit, const char *whose);

/* The floor of the configuration's step, measured on a device that is opened for it, and
 * printed; `header`: behind what it runs on. */
struct bench_floor_result {
    double seconds;      /* of a step, the median */
    double gemm_tflops;  /* of its GEMMs alone; 0: it has none */
};
enum status bench_floor_run(const struct config *config, double seconds, bool header,
                            struct bench_floor_result *result);

#endif
