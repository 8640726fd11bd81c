/*
 * The writer of metrics.jsonl; records and rules in train/metrics.h.
 *
 * Every line is one object {"record": "...", "step": n, ...}. Numbers are written by real_text and
 * not by cJSON, which stops at 15 digits when the rest is within an epsilon.
 */
#include "train/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/utf8.h"
#include "train/encode.h"

struct metrics {
    char path[PATH_BYTES];
    FILE *file;
};

/* An object being filled. `complete` turns false when memory runs out. */
struct record {
    cJSON *object;
    bool complete;
};

static void add_text(struct record *record, const char *name, const char *value) {
    char *valid = utf8_repaired(value);
    if (valid == NULL || cJSON_AddStringToObject(record->object, name, valid) == NULL) {
        record->complete = false;
    }
    free(valid);
}

static void add_null(struct record *record, const char *name, const char *why) {
    char text_name[64];
    if (cJSON_AddNullToObject(record->object, name) == NULL) record->complete = false;
    if (why == NULL) return;
    snprintf(text_name, sizeof text_name, "%s_text", name);
    add_text(record, text_name, why);
}

static void add_real(struct record *record, const char *name, double value) {
    char text[REAL_TEXT_BYTES];
    real_text(text, value);
    if (!isfinite(value)) {
        add_null(record, name, text);
    } else if (cJSON_AddRawToObject(record->object, name, text) == NULL) {
        record->complete = false;
    }
}

static void add_integer(struct record *record, const char *name, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    if (cJSON_AddRawToObject(record->object, name, text) == NULL) record->complete = false;
}

static struct record record_begin(const char *kind, int64_t step) {
    struct record record = {cJSON_CreateObject(), true};
    add_text(&record, "record", kind);
    add_integer(&record, "step", step);
    return record;
}

/* Writes the line and releases the record. */
static enum status record_end(struct metrics *metrics, struct record *record) {
    if (metrics == NULL) { /* a rank that writes none */
        cJSON_Delete(record->object);
        return STATUS_OK;
    }
    char *line = record->complete ? cJSON_PrintUnformatted(record->object) : NULL;
    cJSON_Delete(record->object);
    if (line == NULL) return status_set(STATUS_MEMORY, "out of memory writing %s", metrics->path);
    const bool written = fputs(line, metrics->file) >= 0 && fputc('\n', metrics->file) != EOF &&
                         fflush(metrics->file) == 0;
    free(line);
    if (written) return STATUS_OK;
    return status_set(STATUS_IO, "cannot write %s: %s", metrics->path, strerror(errno));
}

/* What is to become of a line of an earlier run. */
enum verdict { LINE_KEEP, LINE_DROP, LINE_BROKEN, LINE_NO_MEMORY };

static enum verdict judge_line(const char *line, size_t bytes, int64_t steps_done) {
    enum verdict verdict = LINE_BROKEN;
    if (memchr(line, '\0', bytes) != NULL) return LINE_BROKEN;
    char *text = malloc(bytes + 1); /* cJSON wants an end, and strndup may look for one */
    if (text == NULL) return LINE_NO_MEMORY;
    memcpy(text, line, bytes);
    text[bytes] = '\0';
    cJSON *object = cJSON_ParseWithOpts(text, NULL, 1);
    const cJSON *kind = cJSON_GetObjectItemCaseSensitive(object, "record");
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(object, "step");
    if (cJSON_IsString(kind) && cJSON_IsNumber(step)) {
        const bool past = step->valuedouble <= (double)steps_done;
        const bool wanted = steps_done > 0 || strcmp(kind->valuestring, "run") == 0;
        verdict = past && wanted ? LINE_KEEP : LINE_DROP;
    }
    cJSON_Delete(object);
    free(text);
    return verdict;
}

/* Copies the lines that stay from `map` to `kept`, which has room for all and a newline. */
static enum status select_lines(const char *path, const struct file_map *map, int64_t steps_done,
                                char *kept, size_t *kept_bytes) {
    const char *line = (const char *)map->data, *end = line + map->bytes;
    size_t used = 0;
    for (size_t number = 1; line < end; number++) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        const size_t bytes = (size_t)((newline == NULL ? end : newline) - line);
        const bool last = newline == NULL || newline + 1 == end;
        const enum verdict verdict = judge_line(line, bytes, steps_done);
        if (verdict == LINE_NO_MEMORY) {
            return status_set(STATUS_MEMORY, "out of memory reading %s", path);
        }
        if (verdict == LINE_BROKEN && !last) {
            return status_set(STATUS_DATA, "%s:%zu: expected a JSON object with \"record\" and "
                              "\"step\": repair the line or move the file away", path, number);
        }
        if (verdict == LINE_KEEP) {
            memcpy(kept + used, line, bytes);
            used += bytes;
            kept[used++] = '\n';
        }
        line += bytes + (newline != NULL);
    }
    *kept_bytes = used;
    return STATUS_OK;
}

/* Brings an earlier run's file back to `steps_done`. */
static enum status truncate_to(const char *path, int64_t steps_done) {
    struct file_map map = {NULL, 0};
    size_t bytes = 0;
    char *kept = NULL;
    enum status status = STATUS_OK;
    TRY(file_map_open(path, &map));
    if (map.bytes == 0) return STATUS_OK;
    kept = malloc(map.bytes + 1);
    if (kept == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory reading %s (%zu bytes)", path, map.bytes);
        goto cleanup;
    }
    TRY_GOTO(select_lines(path, &map, steps_done, kept, &bytes), cleanup);
    if (bytes != map.bytes || memcmp(kept, map.data, bytes) != 0) {
        TRY_GOTO(file_write_durable(path, kept, bytes), cleanup);
    }
cleanup:
    free(kept);
    file_map_close(&map);
    return status;
}

enum status metrics_open(struct metrics **metrics, const char *path, int64_t steps_done) {
    *metrics = NULL;
    if (strlen(path) >= PATH_BYTES) {
        return status_set(STATUS_CONFIG, "the path %.100s... is too long", path);
    }
    if (path_is_file(path)) TRY(truncate_to(path, steps_done));
    struct metrics *opened = calloc(1, sizeof *opened);
    if (opened == NULL) return status_set(STATUS_MEMORY, "out of memory opening %s", path);
    snprintf(opened->path, sizeof opened->path, "%s", path);
    opened->file = fopen(path, "ae");
    if (opened->file == NULL) {
        free(opened);
        return status_set(STATUS_IO, "cannot open %s for writing: %s", path, strerror(errno));
    }
    *metrics = opened;
    return STATUS_OK;
}

enum status metrics_run(struct metrics *metrics, int64_t step, const cJSON *details) {
    struct record record = record_begin("run", step);
    cJSON *copy = cJSON_Duplicate(details, 1);
    if (copy == NULL || !cJSON_AddItemToObject(record.object, "details", copy)) {
        cJSON_Delete(copy);
        record.complete = false;
    }
    return record_end(metrics, &record);
}

static const char *skip_name(enum step_skip skip) {
    switch (skip) {
    case SKIP_NONE: return "none";
    case SKIP_NONFINITE: return "nonfinite";
    case SKIP_LOSS_OUTLIER: return "loss_outlier";
    case SKIP_NORM_OUTLIER: return "norm_outlier";
    case SKIP_HALTED: return "halted";
    }
    return "unknown";
}

/* A mixture of types has a speed of light and no MFU, what is emulated neither. null where there is
 * no peak; above the peak also "..._text", which says so. */
static void add_mfu(struct record *record, const struct mfu *mfu) {
    const char *name = mfu->limit.mixed ? "speed_of_light" : "mfu";
    const bool error = mfu->state == MFU_MEASUREMENT_ERROR;
    char text[MFU_TEXT_BYTES];
    if (mfu->limit.mixed) add_null(record, "mfu", NULL);
    if (mfu->state == MFU_KNOWN && !mfu->limit.emulated) add_real(record, name, mfu->share);
    else add_null(record, name, error ? mfu_text(text, mfu) : NULL);
    if (mfu->limit.emulated && cJSON_AddTrueToObject(record->object, "emulated") == NULL) {
        record->complete = false;
    }
}

enum status metrics_step(struct metrics *metrics, const struct step_record *step) {
    struct record record = record_begin("step", step->step);
    add_real(&record, "loss", step->loss);
    add_real(&record, "learning_rate", step->learning_rate);
    add_real(&record, "gradient_norm", step->gradient_norm);
    add_real(&record, "loss_scale", step->loss_scale);
    add_text(&record, "skip", skip_name(step->skip));
    add_integer(&record, "tokens", step->tokens);
    add_real(&record, "step_ms", step->step_ms);
    add_real(&record, "data_wait_ms", step->data_wait_ms);
    if (step->ranks > 1) add_real(&record, "comm_exposed_ms", step->comm_exposed_ms);
    add_real(&record, "tokens_per_s", step->tokens_per_s);
    add_real(&record, "tflops", step->tflops);
    add_mfu(&record, &step->mfu);
    add_real(&record, "loss_z", step->loss_z);
    add_real(&record, "norm_z", step->norm_z);
    if (step->gpu_power_w > 0.0) {
        add_real(&record, "gpu_power_w", step->gpu_power_w);
        add_real(&record, "gpu_clock_mhz", step->gpu_clock_mhz);
    }
    return record_end(metrics, &record);
}

enum status metrics_validation(struct metrics *metrics, int64_t step, double loss,
                               double bits_per_byte, int64_t tokens) {
    struct record record = record_begin("validation", step);
    add_real(&record, "loss", loss);
    if (isnan(bits_per_byte)) add_null(&record, "bits_per_byte", NULL);
    else add_real(&record, "bits_per_byte", bits_per_byte);
    add_real(&record, "perplexity", exp(loss));
    add_integer(&record, "tokens", tokens);
    return record_end(metrics, &record);
}

enum status metrics_choices(struct metrics *metrics, int64_t step, const char *file,
                            int64_t examples, double accuracy, double accuracy_norm) {
    struct record record = record_begin("choices", step);
    add_text(&record, "file", file);
    add_integer(&record, "examples", examples);
    add_real(&record, "accuracy", accuracy);
    add_real(&record, "accuracy_norm", accuracy_norm);
    return record_end(metrics, &record);
}

enum status metrics_sample(struct metrics *metrics, int64_t step, const char *prompt,
                           const char *text) {
    struct record record = record_begin("sample", step);
    add_text(&record, "prompt", prompt);
    add_text(&record, "text", text);
    return record_end(metrics, &record);
}

enum status metrics_checkpoint(struct metrics *metrics, int64_t step, const char *path, double ms,
                               double stall_ms) {
    struct record record = record_begin("checkpoint", step);
    add_text(&record, "path", path);
    add_real(&record, "ms", ms);
    add_real(&record, "stall_ms", stall_ms);
    return record_end(metrics, &record);
}

enum status metrics_energy(struct metrics *metrics, int64_t step, const struct run_energy *energy) {
    struct record record = record_begin("energy", step);
    add_real(&record, "joules", energy->joules);
    add_real(&record, "seconds", energy->seconds);
    add_integer(&record, "tokens", energy->tokens);
    add_real(&record, "kj_per_million_tokens", energy->joules / (double)energy->tokens * 1e3);
    add_real(&record, "mean_w", energy->joules / energy->seconds);
    return record_end(metrics, &record);
}

enum status metrics_event(struct metrics *metrics, int64_t step, const char *what) {
    struct record record = record_begin("event", step);
    add_text(&record, "what", what);
    return record_end(metrics, &record);
}

enum status metrics_close(struct metrics *metrics) {
    if (metrics == NULL) return STATUS_OK;
    enum status status = STATUS_OK;
    if (fflush(metrics->file) != 0 || fsync(fileno(metrics->file)) != 0) {
        status = status_set(STATUS_IO, "cannot write %s: %s", metrics->path, strerror(errno));
    }
    fclose(metrics->file);
    free(metrics);
    return status;
}
