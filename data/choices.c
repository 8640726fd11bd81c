/* Reading llm.c's evaluation files: behind data/choices.h. */
#include "data/choices.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

enum {
    HEADER_INTS = 256,
    HEADER_BYTES = HEADER_INTS * (int)sizeof(int32_t),
    MAGIC = 20240522,
    VERSION = 1,
    START_OF_EXAMPLE = 65535,
    EXAMPLE_HEAD = 6, /* start, bytes, index, label, completions, length of the context */
};

static const uint16_t *stream(const struct choices *choices) {
    return (const uint16_t *)(const void *)(choices->map.data + HEADER_BYTES);
}

/* An example being read: words[next..end). */
struct reader {
    const struct choices *choices;
    size_t index, vocabulary;
    const uint16_t *words;
    size_t next, end;
};

static enum status refuse(const struct reader *reader, const char *what, size_t found) {
    return status_set(STATUS_DATA, "%s: example %zu: expected %s, found %zu", reader->choices->path,
                      reader->index, what, found);
}

/* A length and as many tokens. */
static enum status read_tokens(struct reader *reader, const uint16_t **tokens, size_t *count) {
    if (reader->next == reader->end) return refuse(reader, "a length", 0);
    *count = reader->words[reader->next++];
    if (*count == 0 || *count > reader->end - reader->next) {
        return refuse(reader, "a length of at least 1 and within the example", *count);
    }
    *tokens = reader->words + reader->next;
    for (size_t i = 0; i < *count; i++) {
        if ((*tokens)[i] >= reader->vocabulary) {
            return refuse(reader, "tokens below the model's vocabulary", (*tokens)[i]);
        }
    }
    reader->next += *count;
    return STATUS_OK;
}

static enum status read_example(struct reader *reader, struct choice_example *example) {
    const uint16_t *head = reader->words + reader->next;
    if (reader->end - reader->next < EXAMPLE_HEAD) {
        return refuse(reader, "a whole example", reader->end - reader->next);
    }
    if (head[0] != START_OF_EXAMPLE) return refuse(reader, "65535 at its start", head[0]);
    if (head[1] % 2 != 0 || head[1] / 2 > reader->end - reader->next) {
        return refuse(reader, "a size within the file", head[1]);
    }
    reader->end = reader->next + head[1] / 2;
    example->label = head[3];
    example->completion_count = head[4];
    if (head[4] < 2 || head[4] > CHOICES_COMPLETIONS_MAX) {
        return refuse(reader, "2 to 64 completions", head[4]);
    }
    if (head[3] >= head[4]) return refuse(reader, "a label that is a completion", head[3]);
    reader->next += EXAMPLE_HEAD - 1;
    TRY(read_tokens(reader, &example->context, &example->context_tokens));
    for (size_t i = 0; i < example->completion_count; i++) {
        TRY(read_tokens(reader, &example->completions[i], &example->completion_tokens[i]));
    }
    if (reader->next == reader->end) return STATUS_OK;
    return refuse(reader, "its end behind the last completion; words too many",
                  reader->end - reader->next);
}

static void note_example(struct choices *choices, const struct choice_example *example) {
    choices->completions += example->completion_count;
    for (size_t i = 0; i < example->completion_count; i++) {
        choices->longest_tokens = size_max(choices->longest_tokens,
                                           example->context_tokens + example->completion_tokens[i]);
    }
}

static enum status check(struct choices *choices, size_t vocabulary) {
    int32_t header[4];
    const size_t bytes = choices->map.bytes;
    if (bytes < HEADER_BYTES || bytes % sizeof(uint16_t) != 0) {
        return status_set(STATUS_DATA,
                          "%s: expected a header of %d bytes and 2 bytes a token, found %zu bytes",
                          choices->path, HEADER_BYTES, bytes);
    }
    memcpy(header, choices->map.data, sizeof header);
    if (header[0] != MAGIC || header[1] != VERSION || header[2] < 1) {
        return status_set(STATUS_DATA,
                          "%s: expected an evaluation file of llm.c, magic %d, version %d and at "
                          "least one example, found %d, %d and %d",
                          choices->path, MAGIC, VERSION, header[0], header[1], header[2]);
    }
    const size_t words = (bytes - HEADER_BYTES) / sizeof(uint16_t);
    if ((size_t)header[2] > words / EXAMPLE_HEAD) {
        return status_set(STATUS_DATA, "%s: %d examples are promised, the file ends before",
                          choices->path, header[2]);
    }
    choices->offsets = calloc((size_t)header[2], sizeof *choices->offsets);
    if (choices->offsets == NULL)
        return status_set(STATUS_MEMORY, "out of memory for %s", choices->path);
    size_t next = 0;
    for (choices->count = 0; choices->count < (size_t)header[2]; choices->count++) {
        struct choice_example example;
        struct reader reader = {.choices = choices,
                                .index = choices->count,
                                .next = next,
                                .vocabulary = vocabulary,
                                .words = stream(choices),
                                .end = words};
        TRY(read_example(&reader, &example));
        choices->offsets[choices->count] = next;
        note_example(choices, &example);
        next = reader.end;
    }
    if (next == words) return STATUS_OK;
    return status_set(STATUS_DATA, "%s: expected its end behind example %d, found %zu words more",
                      choices->path, header[2], words - next);
}

enum status choices_open(struct choices *choices, const char *path, size_t vocabulary) {
    memset(choices, 0, sizeof *choices);
    const size_t length = strlen(path);
    if (length >= sizeof choices->path) {
        return status_set(STATUS_CONFIG, "the path %.100s... is too long", path);
    }
    memcpy(choices->path, path, length + 1);
    TRY(file_map_open(path, &choices->map));
    const enum status status = check(choices, vocabulary);
    if (status != STATUS_OK) choices_close(choices);
    return status;
}

void choices_close(struct choices *choices) {
    free(choices->offsets);
    file_map_close(&choices->map);
    memset(choices, 0, sizeof *choices);
}

struct choice_example choices_get(const struct choices *choices, size_t index) {
    const uint16_t *word = stream(choices) + choices->offsets[index];
    struct choice_example example = {.label = word[3],
                                     .completion_count = word[4],
                                     .context_tokens = word[5],
                                     .context = word + EXAMPLE_HEAD};
    word = example.context + example.context_tokens;
    for (size_t i = 0; i < example.completion_count; i++) {
        example.completion_tokens[i] = word[0];
        example.completions[i] = word + 1;
        word += 1 + example.completion_tokens[i];
    }
    return example;
}
