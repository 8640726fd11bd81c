/* Optimizer state in ranges, written whole and read in any pieces: behind checkpoints/moments.h. */
#include "checkpoints/moments.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

enum { MOMENTS = 2 };
static const char *const moment_names[MOMENTS] = {"exp_avg", "exp_avg_sq"};

/* A stored range of one moment of one parameter. */
struct piece {
    size_t param; /* place in the table */
    size_t moment;
    size_t begin, end; /* within the parameter, padding not counted */
    const struct safetensors *file;
    const struct safetensors_entry *entry;
};

/* What `range` has of a parameter: [begin, end) of its numbers, from `at` on in the buffer. */
struct overlap {
    size_t begin, end, at;
};

static struct overlap overlap_of(const struct param *param, const struct flat_range *range) {
    const size_t end = size_min(param->offset + param_count(param), range->offset + range->count);
    const size_t begin = size_max(param->offset, range->offset);
    if (begin >= end) return (struct overlap){0};
    return (struct overlap){
        begin - param->offset, end - param->offset, range->at + (begin - range->offset),
    };
}

static enum status describe(const struct param *param, size_t moment, struct overlap part,
                            struct safetensors_entry *entry) {
    memset(entry, 0, sizeof *entry);
    const int length = snprintf(entry->name, sizeof entry->name, "%s:%s:%zu-%zu",
                                moment_names[moment], param->name, part.begin, part.end);
    if (length < 0 || (size_t)length >= sizeof entry->name) {
        return status_set(STATUS_INTERNAL, "the optimizer key of %s is longer than %d bytes",
                          param->name, SAFETENSORS_NAME_BYTES - 1);
    }
    entry->dtype = SAFETENSORS_F32;
    entry->rank = 1;
    entry->shape[0] = part.end - part.begin;
    return STATUS_OK;
}

/* The entries of a file and where the numbers of each lie. */
struct outline {
    struct safetensors_entry *entries;
    const float **numbers;
    size_t count;
};

static enum status outline_all(struct outline *outline, const struct param_table *params,
                               struct flat_ranges ranges, const float *const moments[MOMENTS]) {
    for (size_t p = 0; p < params->length; p++) {
        for (size_t r = 0; r < ranges.count; r++) {
            const struct overlap part = overlap_of(&params->params[p], &ranges.items[r]);
            if (part.begin == part.end) continue;
            for (size_t moment = 0; moment < MOMENTS; moment++) {
                TRY(describe(&params->params[p], moment, part, &outline->entries[outline->count]));
                outline->numbers[outline->count++] = moments[moment] + part.at;
            }
        }
    }
    return STATUS_OK;
}

enum status moments_write(const char *path, const struct param_table *params,
                          struct flat_ranges ranges, const float *moments1,
                          const float *moments2, struct file_digest *digest) {
    const float *const moments[MOMENTS] = {moments1, moments2};
    enum status status = STATUS_OK;
    struct safetensors_writer *writer = NULL;
    /* Every range but the last ends one parameter more. */
    const size_t most = MOMENTS * (params->length + ranges.count);
    struct outline outline = {.entries = calloc(most, sizeof *outline.entries),
                              .numbers = calloc(most, sizeof *outline.numbers)};
    if (outline.entries == NULL || outline.numbers == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory writing %s", path);
        goto done;
    }
    TRY_GOTO(outline_all(&outline, params, ranges, moments), done);
    TRY_GOTO(safetensors_writer_open(&writer, path, outline.entries, outline.count, NULL, 0), done);
    for (size_t i = 0; i < outline.count; i++) {
        TRY_GOTO(safetensors_writer_append(writer, outline.numbers[i], outline.entries[i].bytes),
                 done);
    }
    status = safetensors_writer_finish(writer, digest);
    writer = NULL;

done:
    safetensors_writer_abandon(writer);
    free(outline.entries);
    free(outline.numbers);
    return status;
}

static enum status bad_key(const struct safetensors *file, const char *key) {
    return status_set(STATUS_CHECKPOINT, "%s: expected keys like exp_avg:NAME:BEGIN-END, found %s",
                      file->path, key);
}

/* Digits without a sign or a leading zero; returns what follows them, NULL if there is no such
 * number. */
static const char *parse_size(const char *text, size_t *value) {
    const size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 18 || (digits > 1 && text[0] == '0')) return NULL;
    *value = (size_t)strtoumax(text, NULL, 10);
    return text + digits;
}

static enum status parse_key(const struct safetensors *file, const struct safetensors_entry *entry,
                             const struct param_table *params, struct piece *piece) {
    char name[SAFETENSORS_NAME_BYTES];
    const char *first = strchr(entry->name, ':'), *last = strrchr(entry->name, ':');
    if (first == NULL || first == last) return bad_key(file, entry->name);
    const char *rest = parse_size(last + 1, &piece->begin);
    if (rest == NULL || *rest != '-') return bad_key(file, entry->name);
    rest = parse_size(rest + 1, &piece->end);
    if (rest == NULL || *rest != '\0') return bad_key(file, entry->name);

    const size_t prefix = (size_t)(first - entry->name);
    for (piece->moment = 0; piece->moment < MOMENTS; piece->moment++) {
        const char *known = moment_names[piece->moment];
        if (strlen(known) == prefix && strncmp(known, entry->name, prefix) == 0) break;
    }
    if (piece->moment == MOMENTS) return bad_key(file, entry->name);

    snprintf(name, sizeof name, "%.*s", (int)(last - first - 1), first + 1);
    const struct param *param = param_table_find(params, name);
    if (param == NULL) {
        return status_set(STATUS_CHECKPOINT,
                          "%s has optimizer state of %s, which is no parameter of the "
                          "model: the configuration describes another model",
                          file->path, name);
    }
    piece->param = (size_t)(param - params->params);
    piece->file = file;
    piece->entry = entry;
    return STATUS_OK;
}

/* The range lies in the parameter, and the tensor is as long as the range. */
static enum status check_piece(const struct piece *piece, const struct param_table *params) {
    const struct safetensors_entry *entry = piece->entry;
    const size_t count = param_count(&params->params[piece->param]);
    if (piece->begin >= piece->end || piece->end > count) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected a range within the %zu numbers of the "
                          "parameter, found %s",
                          piece->file->path, count, entry->name);
    }
    if (entry->dtype != SAFETENSORS_F32 || entry->rank != 1 ||
        entry->shape[0] != piece->end - piece->begin) {
        char text[SAFETENSORS_SHAPE_BYTES];
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected %s to be F32 of shape [%zu], found %s of shape "
                          "%s",
                          piece->file->path, entry->name, piece->end - piece->begin,
                          safetensors_dtype_name(entry->dtype),
                          safetensors_shape_text(text, entry->rank, entry->shape));
    }
    return STATUS_OK;
}

static int compare_pieces(const void *a, const void *b) {
    const struct piece *left = a, *right = b;
    if (left->param != right->param) return left->param < right->param ? -1 : 1;
    if (left->moment != right->moment) return left->moment < right->moment ? -1 : 1;
    return (left->begin > right->begin) - (left->begin < right->begin);
}

static enum status not_covered(const char *where, const struct param *param, size_t moment,
                               size_t begin, size_t end) {
    return status_set(STATUS_CHECKPOINT, "%s: %s of %s lacks the numbers from %zu to %zu", where,
                      moment_names[moment], param->name, begin, end);
}

/* The sorted pieces cover both moments of every parameter exactly once. */
static enum status check_cover(const struct piece *pieces, size_t count, const char *where,
                               const struct param_table *params) {
    const struct piece *piece = pieces, *const end = pieces + count;
    for (size_t i = 0; i < MOMENTS * params->length; i++) {
        const struct param *param = &params->params[i / MOMENTS];
        const size_t moment = i % MOMENTS;
        size_t covered = 0;
        for (; piece < end && piece->param == i / MOMENTS && piece->moment == moment; piece++) {
            if (piece->begin > covered) {
                return not_covered(where, param, moment, covered, piece->begin);
            }
            if (piece->begin < covered) {
                return status_set(STATUS_CHECKPOINT,
                                  "%s: %s overlaps the range before it, which ends at "
                                  "%zu",
                                  piece->file->path, piece->entry->name, covered);
            }
            covered = piece->end;
        }
        if (covered < param_count(param)) {
            return not_covered(where, param, moment, covered, param_count(param));
        }
    }
    return STATUS_OK;
}

static enum status gather(const struct safetensors *files, size_t file_count,
                          const struct param_table *params, struct piece *pieces) {
    size_t used = 0;
    for (size_t f = 0; f < file_count; f++) {
        for (size_t e = 0; e < files[f].count; e++) {
            struct piece *piece = &pieces[used++];
            TRY(parse_key(&files[f], &files[f].entries[e], params, piece));
            TRY(check_piece(piece, params));
        }
    }
    qsort(pieces, used, sizeof *pieces, compare_pieces);
    return check_cover(pieces, used, file_count > 0 ? files[0].path : "the optimizer state",
                       params);
}

/* What the ranges have of a stored piece. */
static void copy_piece(const struct piece *piece, const struct param_table *params,
                       struct flat_ranges ranges, float *moment) {
    const struct param *param = &params->params[piece->param];
    const unsigned char *data = piece->file->data + piece->entry->offset;
    for (size_t r = 0; r < ranges.count; r++) {
        const struct overlap part = overlap_of(param, &ranges.items[r]);
        const size_t begin = size_max(part.begin, piece->begin),
                     end = size_min(part.end, piece->end);
        if (begin >= end) continue;
        memcpy(moment + part.at + (begin - part.begin),
               data + (begin - piece->begin) * sizeof(float), (end - begin) * sizeof(float));
    }
}

enum status moments_load(const struct safetensors *files, size_t file_count,
                         const struct param_table *params, struct flat_ranges ranges,
                         float *moments1, float *moments2) {
    float *const moments[MOMENTS] = {moments1, moments2};
    size_t count = 0;
    for (size_t f = 0; f < file_count; f++) count += files[f].count;
    struct piece *pieces = calloc(count + 1, sizeof *pieces);
    if (pieces == NULL) {
        return status_set(STATUS_MEMORY, "out of memory for %zu optimizer ranges", count);
    }
    const enum status status = gather(files, file_count, params, pieces);
    for (size_t i = 0; i < MOMENTS * ranges.count && status == STATUS_OK; i++) {
        const struct flat_range *range = &ranges.items[i / MOMENTS];
        memset(moments[i % MOMENTS] + range->at, 0, range->count * sizeof(float));
    }
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        copy_piece(&pieces[i], params, ranges, moments[pieces[i].moment]);
    }
    free(pieces);
    return status;
}
