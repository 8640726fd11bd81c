/* Questions in memory, and reading llm.c's evaluation files: behind data/choices.h. */
#include "data/choices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "data/choices_parts.h"

enum {
    HEADER_INTS = 256,
    HEADER_BYTES = HEADER_INTS * (int)sizeof(int32_t),
    MAGIC = 20240522,
    VERSION = 1,
    START_OF_EXAMPLE = 65535,
    EXAMPLE_HEAD = 6, /* start, bytes, index, label, completions, length of the context */
    LAID_HEAD = 3,    /* line, label, completions: choices_parts.h */
};

/* Room for `more` items of `size` bytes behind `count`, grown to twice as much where it ends. */
static enum status make_room(void **items, size_t *capacity, size_t count, size_t more,
                             size_t size) {
    size_t wanted = 0, doubled = 0, bytes = 0;
    bool fits = size_add(count, more, &wanted);
    if (fits && wanted <= *capacity) return STATUS_OK;
    fits = fits && size_mul(*capacity, 2, &doubled);
    wanted = size_max(size_max(wanted, doubled), 64);
    fits = fits && size_mul(wanted, size, &bytes);
    void *grown = fits ? realloc(*items, bytes) : NULL;
    if (grown == NULL) return status_set(STATUS_MEMORY, "out of memory for multiple-choice "
                                         "questions of %zu tokens", count);
    *items = grown;
    *capacity = wanted;
    return STATUS_OK;
}

static enum status add_words(struct choices *choices, size_t count, int32_t **words) {
    void *items = choices->words;
    TRY(make_room(&items, &choices->word_capacity, choices->word_count, count, sizeof **words));
    choices->words = items;
    *words = choices->words + choices->word_count;
    choices->word_count += count;
    return STATUS_OK;
}

enum status choices_begin_example(struct choices *choices, size_t line, size_t label,
                                  size_t completions) {
    void *offsets = choices->offsets;
    int32_t *head = NULL;
    TRY(make_room(&offsets, &choices->offset_capacity, choices->count, 1,
                  sizeof *choices->offsets));
    choices->offsets = offsets;
    choices->offsets[choices->count] = choices->word_count;
    TRY(add_words(choices, LAID_HEAD, &head));
    head[0] = (int32_t)line;
    head[1] = (int32_t)label;
    head[2] = (int32_t)completions;
    return STATUS_OK;
}

enum status choices_add_tokens(struct choices *choices, size_t count, int32_t **tokens) {
    int32_t *length = NULL;
    TRY(add_words(choices, 1, &length));
    *length = (int32_t)count;
    return add_words(choices, count, tokens);
}

void choices_end_example(struct choices *choices) {
    const struct choice_example example = choices_get(choices, choices->count++);
    choices->completions += example.completion_count;
    for (size_t i = 0; i < example.completion_count; i++) {
        choices->longest_tokens = size_max(choices->longest_tokens,
                                           example.context_tokens + example.completion_tokens[i]);
    }
}

/* An example being read: words[next..end). */
struct reader {
    struct choices *choices;
    size_t vocabulary;
    const uint16_t *words;
    size_t next, end;
};

static enum status refuse(const struct reader *reader, const char *what, size_t found) {
    return status_set(STATUS_DATA, "%s: example %zu: expected %s, found %zu", reader->choices->path,
                      reader->choices->count, what, found);
}

/* A length and as many tokens. */
static enum status read_tokens(struct reader *reader) {
    if (reader->next == reader->end) return refuse(reader, "a length", 0);
    int32_t *tokens = NULL;
    const size_t count = reader->words[reader->next++];
    if (count == 0 || count > reader->end - reader->next) {
        return refuse(reader, "a length of at least 1 and within the example", count);
    }
    TRY(choices_add_tokens(reader->choices, count, &tokens));
    for (size_t i = 0; i < count; i++) {
        const uint16_t token = reader->words[reader->next++];
        if (token >= reader->vocabulary) {
            return refuse(reader, "tokens below the model's vocabulary", token);
        }
        tokens[i] = token;
    }
    return STATUS_OK;
}

static enum status read_example(struct reader *reader) {
    const uint16_t *head = reader->words + reader->next;
    if (reader->end - reader->next < EXAMPLE_HEAD) {
        return refuse(reader, "a whole example", reader->end - reader->next);
    }
    if (head[0] != START_OF_EXAMPLE) return refuse(reader, "65535 at its start", head[0]);
    if (head[1] % 2 != 0 || head[1] < 2 * EXAMPLE_HEAD ||
        head[1] / 2 > reader->end - reader->next) {
        return refuse(reader, "a size within the file", head[1]);
    }
    reader->end = reader->next + head[1] / 2;
    if (head[4] < 2 || head[4] > CHOICES_COMPLETIONS_MAX) {
        return refuse(reader, "2 to 64 completions", head[4]);
    }
    if (head[3] >= head[4]) return refuse(reader, "a label that is a completion", head[3]);
    reader->next += EXAMPLE_HEAD - 1;
    TRY(choices_begin_example(reader->choices, 0, head[3], head[4]));
    for (size_t i = 0; i < 1 + (size_t)head[4]; i++) TRY(read_tokens(reader));
    if (reader->next < reader->end) {
        return refuse(reader, "its end behind the last completion; words too many",
                      reader->end - reader->next);
    }
    choices_end_example(reader->choices);
    return STATUS_OK;
}

static enum status read_llmc(struct choices *choices, const struct file_map *map,
                             size_t vocabulary) {
    int32_t header[4];
    const size_t bytes = map->bytes;
    if (bytes < HEADER_BYTES || bytes % sizeof(uint16_t) != 0) {
        return status_set(STATUS_DATA,
                          "%s: expected a header of %d bytes and 2 bytes a token, found %zu bytes "
                          "(questions as text are read from a file named .jsonl)",
                          choices->path, HEADER_BYTES, bytes);
    }
    memcpy(header, map->data, sizeof header);
    if (header[0] != MAGIC || header[1] != VERSION || header[2] < 1) {
        return status_set(STATUS_DATA,
                          "%s: expected an evaluation file of llm.c, magic %d, version %d and at "
                          "least one example, found %d, %d and %d (questions as text are read "
                          "from a file named .jsonl)",
                          choices->path, MAGIC, VERSION, header[0], header[1], header[2]);
    }
    const size_t promised = (size_t)header[2], words = (bytes - HEADER_BYTES) / sizeof(uint16_t);
    if (promised > words / EXAMPLE_HEAD) {
        return status_set(STATUS_DATA, "%s: %zu examples are promised, the file ends before",
                          choices->path, promised);
    }
    struct reader reader = {.choices = choices,
                            .vocabulary = vocabulary,
                            .words = (const uint16_t *)(const void *)(map->data + HEADER_BYTES)};
    while (choices->count < promised) {
        reader.end = words; /* until the example says its own */
        TRY(read_example(&reader));
    }
    if (reader.next == words) return STATUS_OK;
    return status_set(STATUS_DATA, "%s: expected its end behind example %zu, found %zu words more",
                      choices->path, promised, words - reader.next);
}

static enum status begin(struct choices *choices, const char *path) {
    memset(choices, 0, sizeof *choices);
    return path_copy(choices->path, path);
}

bool choices_is_text(const char *path) {
    static const char ending[] = ".jsonl";
    const size_t length = strlen(path), end = sizeof ending - 1;
    return length >= end && strcmp(path + length - end, ending) == 0;
}

enum status choices_parse(struct choices *choices, const char *label, const char *text,
                          size_t bytes) {
    TRY(begin(choices, label));
    choices->lines = malloc(bytes + 1); /* the text, NUL-terminated */
    if (choices->lines == NULL) return status_set(STATUS_MEMORY, "out of memory for %s", label);
    memcpy(choices->lines, text, bytes);
    choices->lines[bytes] = '\0';
    choices->line_bytes = bytes;
    const enum status status = choices_read_lines(choices, false, NULL);
    if (status != STATUS_OK) choices_close(choices);
    return status;
}

enum status choices_open(struct choices *choices, const char *path, size_t vocabulary) {
    enum status status = STATUS_OK;
    TRY(begin(choices, path));
    if (choices_is_text(path)) {
        TRY(file_read(path, CHOICES_LINES_BYTES_MAX, &choices->lines, &choices->line_bytes));
        status = choices_read_lines(choices, false, NULL);
    } else {
        struct file_map map;
        TRY(file_map_open(path, &map));
        status = read_llmc(choices, &map, vocabulary);
        file_map_close(&map);
    }
    if (status != STATUS_OK) choices_close(choices);
    return status;
}

enum status choices_tokenise(struct choices *choices, const struct tokenizer *tokenizer) {
    if (choices->lines == NULL) return STATUS_OK;
    TRY(choices_read_lines(choices, true, tokenizer));
    free(choices->lines);
    choices->lines = NULL;
    return STATUS_OK;
}

void choices_close(struct choices *choices) {
    free(choices->lines);
    free(choices->words);
    free(choices->offsets);
    memset(choices, 0, sizeof *choices);
}

struct choice_example choices_get(const struct choices *choices, size_t index) {
    const int32_t *word = choices->words + choices->offsets[index];
    struct choice_example example = {.label = (size_t)word[1],
                                     .completion_count = (size_t)word[2],
                                     .context_tokens = (size_t)word[LAID_HEAD],
                                     .context = word + LAID_HEAD + 1};
    word = example.context + example.context_tokens;
    for (size_t i = 0; i < example.completion_count; i++) {
        example.completion_tokens[i] = (size_t)word[0];
        example.completions[i] = word + 1;
        word += 1 + example.completion_tokens[i];
    }
    return example;
}

const char *choices_place(const struct choices *choices, size_t index,
                          char text[CHOICES_PLACE_BYTES]) {
    const int32_t line = choices->words[choices->offsets[index]];
    if (line > 0) {
        snprintf(text, CHOICES_PLACE_BYTES, "%s:%d", choices->path, line);
    } else {
        snprintf(text, CHOICES_PLACE_BYTES, "%s: example %zu", choices->path, index);
    }
    return text;
}
