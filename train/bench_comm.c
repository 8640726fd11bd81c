/* deepwell bench comm */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/text.h"
#include "train/bench.h"
#include "train/cli.h"
#include "train/comm_self_test.h"
#include "train/launch.h"
#include "train/launch_gpus.h"
#include "train/ranks_start.h"
#include "train/scaling.h"
#include "train/signals.h"

enum { SIZE_FACTOR = 4, CTAS_BYTES = 16, CALLS_MAX = 10000 };
#define FROM_DEFAULT (1 << 10)
#define TO_DEFAULT (1 << 26)
#define TO_MAX ((int64_t)1 << 36)

static const char usage[] =
    "usage: deepwell bench comm [CONFIG] [options] [--section.key VALUE ...]\n"
    "\n"
    "Times all-reduce, reduce-scatter, all-gather and broadcast between ranks, which are started\n"
    "as those of `deepwell train` are: by mpirun, srun or torchrun, or by --gpus here. Sizes go\n"
    "from --from to --to by factors of four; two more are those of the configured model's\n"
    "gradients, a block's and the largest bucket's. For each the time of the slowest rank, the\n"
    "algorithm's GB/s (size / time), and the bus's, as nccl-tests defines it: that times\n"
    "2 (N-1)/N for all-reduce, (N-1)/N for reduce-scatter and all-gather, 1 for broadcast.\n"
    "The last line is what to give to `deepwell plan --ranks N --link-GBps X`.\n"
    "\n"
    "  --gpus N             N ranks on this host, a GPU each\n"
    "  --from BYTES         smallest size (default 1024)\n"
    "  --to BYTES           largest (default 67108864, 64 MiB)\n"
    "  --seconds S          how long each is timed, about (default 0.2)\n"
    "  --max-ctas LIST      on GPUs: all of it once for each value of comm.max_ctas, \"0,4,8,16\"\n"
    "\n"
    "  mpirun -np 4 deepwell bench comm --device cpu --to 16777216\n"
    "  deepwell bench comm configs/gpt2_1558m.conf --gpus 2 --to 1073741824 --max-ctas 0,4,8,16\n";

struct comm_bench {
    struct config config;
    struct ranks ranks;
    struct comm comm;
    struct device device;
    int64_t from_bytes, to_bytes, gpus;
    double seconds;
    enum comm_type type;               /* of numbers that are summed: comm.reduction */
    size_t block_bytes, largest_bytes; /* gradients of a block, and of the largest bucket */
    size_t memory_bytes;               /* of each of */
    void *in, *out;                    /* device memory; zeros, which sums leave as they are */
    double least_bus; /* bytes/s of a block's reduce-scatter and all-gather; 0: none yet */
};

/* ---- the collectives; `bytes` is the larger of what goes in and comes out on a rank ---- */

static enum status ask_all_reduce(struct comm_bench *b, size_t bytes) {
    return comm_all_reduce(&b->comm, b->in, bytes / comm_type_bytes(b->type), b->type, COMM_SUM);
}

static enum status ask_reduce_scatter(struct comm_bench *b, size_t bytes) {
    const size_t part = bytes / comm_type_bytes(b->type) / (size_t)b->ranks.world;
    return comm_reduce_scatter(&b->comm, b->out, b->in, part, b->type);
}

static enum status ask_all_gather(struct comm_bench *b, size_t bytes) {
    return comm_all_gather(&b->comm, b->out, b->in, bytes / (size_t)b->ranks.world);
}

static enum status ask_broadcast(struct comm_bench *b, size_t bytes) {
    return comm_broadcast(&b->comm, b->in, bytes, 0);
}

static const struct collective {
    const char *name;
    enum status (*ask)(struct comm_bench *, size_t bytes);
    double turns;   /* times that a ring passes (N-1)/N of the bytes; 0: all of them, once */
    bool of_a_step; /* what sharded training asks for */
} collectives[] = {
    {"all_reduce", ask_all_reduce, 2.0, false},
    {"reduce_scatter", ask_reduce_scatter, 1.0, true},
    {"all_gather", ask_all_gather, 1.0, true},
    {"broadcast", ask_broadcast, 0.0, false},
};
enum { COLLECTIVES = sizeof collectives / sizeof collectives[0] };

/* What a rank of a ring sends, which nccl-tests' bus rate is of. */
static double bus_bytes(const struct collective *c, size_t ranks, size_t bytes) {
    return c->turns == 0.0 ? (double)bytes
                           : c->turns * scaling_collective_bytes(ranks, (double)bytes);
}

/* ---- timing ---- */

/* So many calls in a row; *seconds of all of them: the slowest rank's, the same on every one. */
static enum status time_calls(struct comm_bench *b, const struct collective *c, size_t bytes,
                              size_t calls, double *seconds) {
    double own = 0.0;
    TRY(device_wait(&b->device));
    TRY(comm_barrier(&b->comm));
    TRY(device_mark(&b->device, 0));
    TRY(comm_after_compute(&b->comm));
    for (size_t i = 0; i < calls; i++) TRY(c->ask(b, bytes));
    TRY(compute_after_comm(&b->comm));
    TRY(device_mark(&b->device, 1));
    TRY(device_seconds_between(&b->device, 0, 1, &own));
    double *all = calloc((size_t)b->ranks.world, sizeof *all);
    if (all == NULL) return status_set(STATUS_MEMORY, "out of memory for the ranks' times");
    const enum status status = comm_gather_host(&b->comm, all, &own, sizeof own);
    *seconds = 0.0;
    for (int r = 0; r < b->ranks.world; r++) *seconds = all[r] > *seconds ? all[r] : *seconds;
    free(all);
    return status;
}

static enum status time_row(struct comm_bench *b, const struct collective *c, size_t bytes,
                            const char *what) {
    enum { TRIAL = 3 };
    double seconds = 0.0;
    char text[TEXT_BYTES];
    TRY(time_calls(b, c, bytes, TRIAL, &seconds)); /* buffers are mapped, connections made */
    TRY(time_calls(b, c, bytes, TRIAL, &seconds));
    /* all ranks have the same seconds, and so the same number of calls */
    const double wanted = b->seconds * TRIAL / (seconds > 1e-9 ? seconds : 1e-9);
    const size_t calls = wanted < TRIAL ? TRIAL : wanted > CALLS_MAX ? CALLS_MAX : (size_t)wanted;
    TRY(time_calls(b, c, bytes, calls, &seconds));
    seconds /= (double)calls;
    const double bus = bus_bytes(c, (size_t)b->ranks.world, bytes) / seconds;
    printf("  %-16s %14zu %12s %12.2f %14.3f %12.3f%s%s\n", c->name, bytes, text_bytes(text, bytes),
           seconds * 1e6, (double)bytes / seconds * 1e-9, bus * 1e-9, what[0] == '\0' ? "" : "  ",
           what);
    fflush(stdout);
    if (c->of_a_step && what[0] != '\0' && bytes == b->block_bytes &&
        (b->least_bus == 0.0 || bus < b->least_bus)) {
        b->least_bus = bus;
    }
    return STATUS_OK;
}

/* What every rank can be given one part of: whole numbers, and kibibytes where it is large, which
 * MPI counts in. */
static size_t whole_parts(const struct comm_bench *b, size_t bytes) {
    const size_t world = (size_t)b->ranks.world;
    const size_t large = world * 1024, unit = bytes >= large ? large : world * sizeof(float);
    return size_max(bytes / unit * unit, unit);
}

static enum status time_size(struct comm_bench *b, size_t bytes, const char *what) {
    for (size_t i = 0; i < COLLECTIVES; i++) {
        const char *signal = signals_received();
        TRY(ranks_agree(&b->comm, signal == NULL
                                      ? STATUS_OK
                                      : status_set(STATUS_INTERRUPTED, "stopped by %s", signal)));
        TRY(time_row(b, &collectives[i], bytes, what));
    }
    return STATUS_OK;
}

static enum status time_all(struct comm_bench *b) {
    b->least_bus = 0.0;
    printf("  %-16s %14s %12s %12s %14s %12s\n", "collective", "bytes", "", "time us",
           "algorithm GB/s", "bus GB/s");
    for (size_t bytes = (size_t)b->from_bytes; bytes <= (size_t)b->to_bytes; bytes *= SIZE_FACTOR) {
        TRY(time_size(b, whole_parts(b, bytes), ""));
    }
    TRY(time_size(b, b->block_bytes, "gradients of a block"));
    if (b->largest_bytes != b->block_bytes) {
        TRY(time_size(b, b->largest_bytes, "gradients of the embeddings"));
    }
    printf("link        --link-GBps %.3g: the lower bus rate of a block's reduce-scatter and "
           "all-gather\n",
           b->least_bus * 1e-9);
    fflush(stdout);
    return STATUS_OK;
}

/* ---- opening ---- */

/* Buckets are padded as those of training. */
static enum status measure_buckets(struct comm_bench *b) {
    struct gpt_config model = engine_model(&b->config);
    struct gpt gpt;
    model.bucket_multiple = (size_t)b->ranks.world * SUMSQ_BLOCK;
    TRY(gpt_open(&gpt, &model, (unsigned)b->config.optimizer.decay_roles));
    size_t largest = 0;
    for (size_t i = 0; i < gpt_bucket_count(&gpt); i++) {
        largest = size_max(largest, gpt.buckets[i].count);
    }
    b->block_bytes = gpt.buckets[gpt_block_bucket(0)].count * comm_type_bytes(b->type);
    b->largest_bytes = largest * comm_type_bytes(b->type);
    gpt_close(&gpt);
    b->memory_bytes = size_max(size_max((size_t)b->to_bytes, b->largest_bytes),
                               (size_t)b->ranks.world * sizeof(float));
    return STATUS_OK;
}

static enum status open_device(struct comm_bench *b, bool lists_ctas) {
    if (b->device.calls != NULL) return STATUS_OK; /* of an earlier value of comm.max_ctas */
    TRY(measure_buckets(b));
    TRY(engine_open_rank_device(&b->device, &b->config, &b->ranks));
    if (lists_ctas && b->device.kind == DEVICE_CPU) {
        return status_set(STATUS_CONFIG, "--max-ctas is of NCCL, between GPUs; these ranks are on "
                                         "CPUs: leave it out");
    }
    TRY(device_allocate(&b->device, b->memory_bytes, &b->in));
    return device_allocate(&b->device, b->memory_bytes, &b->out);
}

static enum status check_options(struct comm_bench *b, size_t lists) {
    const struct ranks_check checks[] = {
        {"--from", (uint64_t)b->from_bytes},
        {"--to", (uint64_t)b->to_bytes},
        {"--seconds", (uint64_t)(b->seconds * 1e6)},
        {"--max-ctas", (uint64_t)lists},
    };
    return ranks_check(&b->comm, checks, sizeof checks / sizeof checks[0]);
}

/* Everything once, with config.comm.max_ctas; `lists`: values of it on the command line. */
static enum status run_once(struct comm_bench *b, size_t lists) {
    enum status status = STATUS_OK;
    char ctas[64] = "";
    TRY_GOTO(ranks_start(&b->ranks, &b->comm, &b->config), cleanup);
    if (b->ranks.world == 1) {
        status = status_set(STATUS_CONFIG, "one rank has nobody to talk to: start several (mpirun "
                                           "-np 2 deepwell bench comm ..., or --gpus 2)");
        goto cleanup;
    }
    TRY_GOTO(ranks_check_alike(&b->comm, &b->config), cleanup);
    TRY_GOTO(check_options(b, lists), cleanup);
    const bool first = b->device.calls == NULL;
    TRY_GOTO(ranks_agree(&b->comm, open_device(b, lists > 0)), cleanup);
    b->comm.device = &b->device;
    TRY_GOTO(ranks_agree(&b->comm, comm_self_test(&b->comm)), cleanup);
    if (first) bench_print_device(&b->device);
    if (b->config.comm.max_ctas > 0) {
        snprintf(ctas, sizeof ctas, "; at most %d CTAs", (int)b->config.comm.max_ctas);
    }
    printf("ranks       %d through %s; sums in %s%s\n", b->ranks.world, b->comm.name,
           b->type == COMM_BF16 ? "bf16" : "fp32", ctas);
    status = time_all(b);
cleanup:
    ranks_leave(&b->ranks, &b->comm, status, false);
    comm_close(&b->comm);
    return status;
}

/* The number at *list into the configuration; *list goes on behind it and its comma. */
static enum status take_ctas(struct config *config, const char **list) {
    char value[CTAS_BYTES];
    const size_t length = strcspn(*list, ",");
    snprintf(value, sizeof value, "%.*s", (int)size_min(length, CTAS_BYTES), *list);
    const enum status status = config_set(config, "comm.max_ctas", value);
    *list += length + ((*list)[length] == ',');
    return status == STATUS_OK ? STATUS_OK : status_context(status, "--max-ctas");
}

/* Once for each number in the list; without a list once as configured. */
static enum status run_list(struct comm_bench *b, const char *list) {
    size_t lists = 0;
    if (list == NULL) return run_once(b, 0);
    const char *at = list;
    do { /* all of them are looked at before the first is run */
        struct config scratch = b->config;
        TRY(take_ctas(&scratch, &at));
        lists++;
    } while (*at != '\0');
    for (at = list; *at != '\0';) {
        TRY(take_ctas(&b->config, &at));
        TRY(run_once(b, lists));
    }
    return STATUS_OK;
}

enum status bench_comm(int argc, char **argv) {
    static struct comm_bench b = {.from_bytes = FROM_DEFAULT,
                                  .to_bytes = TO_DEFAULT,
                                  .seconds = 0.2};
    const char *max_ctas = NULL;
    const struct cli_option options[] = {
        {.name = "--gpus", .whole = &b.gpus, .least = 1, .most = LAUNCH_RANKS_MAX},
        {.name = "--from", .whole = &b.from_bytes, .least = 1, .most = TO_MAX},
        {.name = "--to", .whole = &b.to_bytes, .least = 1, .most = TO_MAX},
        {.name = "--seconds", .real = &b.seconds, .most = 3600},
        {.name = "--max-ctas", .text = &max_ctas},
    };
    const struct cli cli = {
        .command = "bench comm",
        .usage = usage,
        .options = options,
        .option_count = sizeof options / sizeof options[0],
        .takes_config = true,
    };
    bool help = false;
    TRY(cli_one_config(&cli, argc, argv, &b.config, &help));
    if (help) return STATUS_OK;
    if (b.from_bytes > b.to_bytes) {
        return status_set(STATUS_CONFIG, "--from %lld is more than --to %lld: give the smallest "
                          "size as --from",
                          (long long)b.from_bytes, (long long)b.to_bytes);
    }
    if (launch_gpus_wanted(b.gpus)) return launch_gpus(&b.config, b.gpus, "bench", argc, argv);
    b.type = b.config.comm.reduction == CONFIG_REDUCTION_BF16 ? COMM_BF16 : COMM_F32;
    const enum status status = run_list(&b, max_ctas);
    if (b.out != NULL) device_release(&b.device, b.out, b.memory_bytes);
    if (b.in != NULL) device_release(&b.device, b.in, b.memory_bytes);
    if (b.device.calls != NULL) device_close(&b.device);
    return status;
}
