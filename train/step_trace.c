/* Recording a step, behind train/step_trace.h. */
#include "train/step_trace.h"

#include <stdlib.h>

#include "train/step.h"

static enum status ask_for_step(struct engine *engine, const struct config *config) {
    const struct step_policy policy = step_policy(config, 0);
    const int64_t micro_batches = config_micro_batches(config, 1);
    TRY(step_begin(engine, &policy));
    for (int64_t micro = 0; micro < micro_batches; micro++) {
        TRY(step_micro_batch(engine, &policy, micro == 0));
    }
    return step_update(engine, config);
}

enum status step_trace(struct engine *engine, const struct config *config, struct op_trace *trace,
                       struct op_list *list) {
    const bool scaled = engine->training.scaled;
    TRY(op_trace_attach(trace, &engine->device, true));
    trace->list = list;
    engine->training.scaled = true; /* a step of the run, not its first: delayed scaling */
    const enum status status = ask_for_step(engine, config);
    engine->training.scaled = scaled;
    const enum status detached = op_trace_detach(trace, &engine->device);
    return status != STATUS_OK ? status : detached;
}

enum status step_work_open(struct step_work *work, const struct config *config) {
    struct engine engine;
    enum status status = STATUS_OK;
    *work = (struct step_work){0};
    TRY(engine_open(&engine, config, ENGINE_TRAIN, ENGINE_RESERVED));
    struct op_trace *trace = calloc(1, sizeof *trace); /* large */
    if (trace == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for a step's operations");
        goto cleanup;
    }
    work->scratch_bytes = engine.device.attention_scratch_bytes;
    TRY_GOTO(flops_count(&engine.gpt.table, engine.gpt.config.layers, engine.gpt.config.width,
                         engine.training.shape.sequence_length, &work->flops), cleanup);
    work->limit = engine_speed_limit(&engine, config, &work->flops);
    status = step_trace(&engine, config, trace, &work->calls);
cleanup:
    free(trace);
    engine_close(&engine);
    if (status != STATUS_OK) step_work_close(work);
    return status;
}

void step_work_close(struct step_work *work) { op_list_close(&work->calls); }
