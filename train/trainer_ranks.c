/*
 * A run of several ranks: what they read by themselves, compared at the start, and how they write
 * one checkpoint. Each rank writes the moments that it owns; the first rank writes all else, while
 * the masters are gathered bucket by bucket where the gradients lie between two steps. Called by
 * the other trainer files.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/checked.h"
#include "checkpoints/manifest.h"
#include "train/trainer_parts.h"

/* ---- start ---- */

static uint64_t hash_tokenizer(const struct tokenizer_files *tokenizer) {
    uint64_t hash = 0;
    for (size_t i = 0; i < tokenizer->count; i++) {
        hash ^= XXH3_64bits_withSeed(tokenizer->files[i].text, tokenizer->files[i].bytes, i);
    }
    return hash;
}

enum status trainer_check_data(struct trainer *t) {
    const char *train = t->train_data.fingerprint, *validation = t->validation_data.fingerprint;
    uint64_t questions = 0;
    if (t->ranks.world == 1) return STATUS_OK;
    TRY(ranks_agree(&t->comm, t->config->eval.file[0] == '\0'
                                  ? STATUS_OK
                                  : digest_file_64(t->config->eval.file, &questions)));
    const struct ranks_check checks[] = {
        {"the training data (data.train)", XXH3_64bits(train, strlen(train))},
        {"the validation data (data.validation)", XXH3_64bits(validation, strlen(validation))},
        {"the questions (eval.file)", questions},
        {"the tokenizer (data.tokenizer)", hash_tokenizer(&t->tokenizer)},
    };
    return ranks_check(&t->comm, checks, sizeof checks / sizeof checks[0]);
}

static bool is_weights(const char *name) {
    static const char end[] = ".safetensors";
    const size_t length = strlen(name);
    return length >= sizeof end && strcmp(name + length - (sizeof end - 1), end) == 0;
}

/* Of the weights that the run begins with. A checkpoint's manifest has the digests of its files;
 * of another model every file of weights is read. */
static enum status hash_weights(const char *path, uint64_t *hash) {
    char file[PATH_BYTES];
    struct dirent **entries = NULL;
    enum status status = STATUS_OK;
    *hash = 0;
    if (path[0] == '\0') return STATUS_OK;
    if (!path_is_folder(path)) return digest_file_64(path, hash);
    TRY(path_join(file, path, MANIFEST_NAME));
    if (path_is_file(file)) return digest_file_64(file, hash);
    const int count = scandir(path, &entries, NULL, alphasort);
    if (count < 0) return status_set(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    for (int i = 0; i < count; i++) {
        uint64_t one = 0;
        if (status == STATUS_OK && is_weights(entries[i]->d_name)) {
            status = path_join(file, path, entries[i]->d_name);
            if (status == STATUS_OK) status = digest_file_64(file, &one);
            *hash = *hash * 31 + one;
        }
        free(entries[i]);
    }
    free(entries);
    return status;
}

enum status trainer_check_resumed(struct trainer *t) {
    uint64_t weights = 0;
    if (t->ranks.world == 1) return STATUS_OK;
    TRY(ranks_agree(&t->comm, hash_weights(t->begun_from, &weights)));
    const struct ranks_check checks[] = {
        {"the weights to begin with (train.init, train.resume)", weights},
        {"the step to go on from", (uint64_t)t->state.step},
        {"the position in the data", (uint64_t)t->state.sequences},
    };
    return ranks_check(&t->comm, checks, sizeof checks / sizeof checks[0]);
}

/* ---- checkpoints ---- */

/* Masters on their way to the file: one bucket at a time in host memory, on the first rank. */
struct gathering {
    struct trainer *trainer;
    size_t next; /* bucket */
    float *host; /* the one before it; NULL on the other ranks */
};

static enum status gather_next(struct gathering *g) {
    struct engine *engine = &g->trainer->engine;
    const struct gpt_bucket *bucket = &engine->gpt.buckets[g->next];
    const float *there = NULL;
    TRY(exchange_gather_bucket(&engine->exchange, engine->masters, g->next, &there));
    g->next++;
    if (g->host == NULL) return STATUS_OK;
    return device_download(&engine->device, g->host, there, bucket->count * sizeof *there);
}

static enum status fetch(void *context, const struct param *param, const float **numbers) {
    struct gathering *g = context;
    const struct gpt_bucket *buckets = g->trainer->engine.gpt.buckets;
    while (g->next == 0 ||
           param->offset >= buckets[g->next - 1].offset + buckets[g->next - 1].count) {
        TRY(gather_next(g));
    }
    *numbers = g->host + (param->offset - buckets[g->next - 1].offset);
    return STATUS_OK;
}

/* All ranks take part in all buckets, also when the file was given up. Keeps `status`'s message. */
static enum status gather_rest(struct gathering *g, enum status status) {
    char message[SAVER_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", status_message());
    while (g->next < gpt_bucket_count(&g->trainer->engine.gpt)) TRY(gather_next(g));
    return status == STATUS_OK ? STATUS_OK : status_set(status, "%s", message);
}

static enum status write_model(struct trainer *t, struct checkpoint_writing *writing,
                               struct checkpoint_content *content) {
    const struct gpt *gpt = &t->engine.gpt;
    struct gathering g = {.trainer = t};
    const struct weights_source source = {fetch, &g};
    size_t largest = 0;
    if (t->ranks.rank > 0) return gather_rest(&g, STATUS_OK);
    for (size_t i = 0; i < gpt_bucket_count(gpt); i++) {
        largest = size_max(largest, gpt->buckets[i].count);
    }
    enum status status = STATUS_OK;
    g.host = malloc(largest * sizeof *g.host);
    if (g.host == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for a block of weights to save");
    } else {
        content->weights = &source;
        status = checkpoint_write_model(writing);
        content->weights = NULL;
    }
    status = gather_rest(&g, status);
    free(g.host);
    return status;
}

static enum status write_shard(struct trainer *t, const char *folder, struct file_digest *digest) {
    struct engine *engine = &t->engine;
    const size_t bytes = engine->owned * sizeof(float);
    void *moments[2] = {NULL, NULL};
    float *const from[2] = {engine->moments1, engine->moments2};
    struct flat_range *ranges = calloc(gpt_bucket_count(&engine->gpt), sizeof *ranges);
    if (ranges == NULL) return status_set(STATUS_MEMORY, "out of memory for buckets");
    const struct flat_ranges owned = {ranges, engine_ranges(engine, ranges)};
    enum status status = STATUS_OK;
    for (size_t i = 0; i < 2 && status == STATUS_OK; i++) {
        status = device_map(&engine->device, from[i], bytes, &moments[i]);
    }
    if (status == STATUS_OK) {
        status = checkpoint_write_shard(folder, &engine->gpt.table, owned, moments[0], moments[1],
                                        (size_t)t->ranks.rank, (size_t)t->ranks.world, digest);
    }
    for (size_t i = 0; i < 2; i++) {
        if (moments[i] == NULL) continue;
        const enum status unmapped = device_unmap(&engine->device, from[i], moments[i], bytes,
                                                  false);
        if (status == STATUS_OK) status = unmapped;
    }
    free(ranges);
    return status;
}

/* What the first rank tells the others of the save. */
struct begun {
    bool whole;
    char folder[PATH_BYTES];
};

/* Shards of all ranks, and the digests that the manifest needs; on the first rank in `digests`. */
static enum status write_all(struct trainer *t, struct checkpoint_writing *writing,
                             struct checkpoint_content *content, const char *folder,
                             struct file_digest *digests) {
    struct file_digest own = {0};
    enum status status = write_model(t, writing, content);
    if (status == STATUS_OK) status = write_shard(t, folder, &own);
    TRY(ranks_agree(&t->comm, status));
    return comm_gather_host(&t->comm, digests, &own, sizeof own);
}

enum status trainer_save_shards(struct trainer *t, struct checkpoint_content *content,
                                const struct checkpoint_retention *retention) {
    const size_t world = (size_t)t->ranks.world;
    const bool first = t->ranks.rank == 0;
    bool open = false; /* begun here, and neither ended nor given up */
    struct checkpoint_writing writing = {0};
    struct begun begun = {0};
    struct file_digest *digests = calloc(world, sizeof *digests);
    enum status status = digests == NULL
                             ? status_set(STATUS_MEMORY, "out of memory for a checkpoint")
                             : STATUS_OK;
    if (first && status == STATUS_OK) {
        status = checkpoint_begin(&writing, t->config->train.out, content, retention, world);
        open = status == STATUS_OK;
        begun.whole = writing.whole;
        memcpy(begun.folder, writing.folder, sizeof begun.folder);
    }
    TRY_GOTO(ranks_agree(&t->comm, status), cleanup);
    TRY_GOTO(comm_broadcast_host(&t->comm, &begun, sizeof begun, 0), cleanup);
    if (!begun.whole) status = write_all(t, &writing, content, begun.folder, digests);
    if (first) {
        open = false;
        status = status == STATUS_OK ? checkpoint_end(&writing, digests, world)
                                     : checkpoint_fail(&writing, status);
    }
    status = ranks_agree(&t->comm, status);
cleanup:
    if (open) status = checkpoint_fail(&writing, status); /* another rank could not begin */
    free(digests);
    return status;
}
