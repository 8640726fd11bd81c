/* Multiple-choice questions as text, a JSON object a line: behind data/choices.h. */
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "data/choices_parts.h"
#include "data/tokenizer_json.h"

enum { LABEL_DIGITS_MAX = 2 }; /* of one that is written as text */

/* The lines being read. */
struct reader {
    struct choices *choices;
    size_t line; /* counted from 1 */
    bool encode;
    const struct tokenizer *tokenizer; /* NULL: bytes */
};

/* The fields of one line; they live as long as its JSON. */
struct question {
    const char *context;
    const cJSON *endings;
    size_t ending_count, label;
};

/* One line, NUL-terminated. */
static enum status parse_line(const char *text, size_t bytes, cJSON **root) {
    const char *end = text;
    TRY(tokenizer_json_refuse_zero(text, bytes));
    *root = cJSON_ParseWithLengthOpts(text, bytes + 1, &end, true);
    if (*root != NULL) return STATUS_OK;
    return status_set(STATUS_DATA,
                      "expected a JSON object, found something else at byte %zu of "
                      "the line's %zu",
                      (size_t)(end - text) + 1, bytes);
}

/* A number, or its digits as text: HellaSwag's own files have the one, copies the other. */
static bool label_value(const cJSON *item, double *value) {
    if (cJSON_IsNumber(item)) {
        *value = item->valuedouble;
        return true;
    }
    const char *text = cJSON_GetStringValue(item);
    if (text == NULL) return false;
    const size_t digits = strspn(text, "0123456789");
    *value = strtod(text, NULL);
    return digits >= 1 && digits <= LABEL_DIGITS_MAX && text[digits] == '\0';
}

static enum status read_label(const cJSON *root, struct question *question) {
    const cJSON *item = NULL;
    double value = -1.0;
    TRY(tokenizer_json_find(root, "label", &item));
    const bool written = label_value(item, &value);
    if (!written || !(value >= 0.0 && value < (double)question->ending_count) ||
        (double)(size_t)value != value) {
        return status_set(STATUS_DATA,
                          "expected as \"label\" the number of an ending, a whole one "
                          "from 0 to %zu",
                          question->ending_count - 1);
    }
    question->label = (size_t)value;
    return STATUS_OK;
}

static enum status read_question(const cJSON *root, struct question *question) {
    const cJSON *ending = NULL;
    TRY(tokenizer_json_text(root, "ctx", &question->context));
    TRY(tokenizer_json_find(root, "endings", &question->endings));
    if (!cJSON_IsArray(question->endings)) {
        return status_set(STATUS_DATA, "expected a list of texts as \"endings\"");
    }
    cJSON_ArrayForEach(ending, question->endings) {
        if (!cJSON_IsString(ending)) {
            return status_set(STATUS_DATA, "expected text as ending %zu, found another value",
                              question->ending_count);
        }
        question->ending_count++;
    }
    if (question->ending_count < 2 || question->ending_count > CHOICES_COMPLETIONS_MAX) {
        return status_set(STATUS_DATA, "expected 2 to %d \"endings\", found %zu",
                          CHOICES_COMPLETIONS_MAX, question->ending_count);
    }
    if (question->context[0] == '\0') {
        return status_set(STATUS_DATA, "expected text as \"ctx\", found an empty one: there is "
                                       "nothing to continue");
    }
    return read_label(root, question);
}

/* The tokens of the text behind `prefix`; release with free(). */
static enum status encode(const struct reader *reader, const char *prefix, const char *text,
                          int32_t **tokens, size_t *count) {
    const size_t prefix_bytes = strlen(prefix), bytes = prefix_bytes + strlen(text);
    enum status status = STATUS_OK;
    char *whole = malloc(bytes + 1);
    *tokens = NULL;
    *count = bytes;
    if (whole == NULL) goto out_of_memory;
    memcpy(whole, prefix, prefix_bytes);
    memcpy(whole + prefix_bytes, text, bytes - prefix_bytes + 1);
    if (reader->tokenizer != NULL) {
        status = tokenizer_encode(reader->tokenizer, whole, bytes, false, tokens, count);
    } else {
        *tokens = malloc((bytes + 1) * sizeof **tokens);
        if (*tokens == NULL) goto out_of_memory;
        byte_encode((const unsigned char *)whole, bytes, *tokens);
    }
    free(whole);
    return status;

out_of_memory:
    free(whole);
    return status_set(STATUS_MEMORY, "out of memory for a text of %zu bytes", bytes);
}

static enum status add_text(const struct reader *reader, const char *prefix, const char *text) {
    int32_t *tokens = NULL, *room = NULL;
    size_t count = 0;
    enum status status = STATUS_OK;
    TRY_GOTO(encode(reader, prefix, text, &tokens, &count), cleanup);
    if (count == 0) {
        status = status_set(STATUS_DATA,
                            "expected at least one token, found none in \"%.40s\": "
                            "the tokenizer drops it",
                            text);
        goto cleanup;
    }
    TRY_GOTO(choices_add_tokens(reader->choices, count, &room), cleanup);
    memcpy(room, tokens, count * sizeof *room);
cleanup:
    free(tokens);
    return status;
}

static enum status add_tokens(const struct reader *reader, const struct question *question) {
    const cJSON *ending = NULL;
    TRY(choices_begin_example(reader->choices, reader->line, question->label,
                              question->ending_count));
    TRY(add_text(reader, "", question->context));
    cJSON_ArrayForEach(ending, question->endings) {
        TRY(add_text(reader, " ", ending->valuestring));
    }
    choices_end_example(reader->choices);
    return STATUS_OK;
}

static enum status read_line(const struct reader *reader, const char *text, size_t bytes) {
    struct question question = {.label = 0};
    cJSON *root = NULL;
    enum status status = STATUS_OK;
    TRY_GOTO(parse_line(text, bytes, &root), cleanup);
    TRY_GOTO(read_question(root, &question), cleanup);
    if (reader->encode) {
        status = add_tokens(reader, &question);
    } else {
        reader->choices->count++;
        reader->choices->completions += question.ending_count;
    }
cleanup:
    cJSON_Delete(root);
    return status;
}

/* From nothing: a second call reads the same lines anew. */
enum status choices_read_lines(struct choices *choices, bool encode_too,
                               const struct tokenizer *tokenizer) {
    struct reader reader = {.choices = choices, .encode = encode_too, .tokenizer = tokenizer};
    char *const end = choices->lines + choices->line_bytes;
    choices->count = choices->completions = choices->word_count = 0;
    for (char *line = choices->lines; line < end;) {
        char *newline = memchr(line, '\n', (size_t)(end - line));
        char *stop = newline == NULL ? end : newline;
        reader.line++;
        *stop = '\0'; /* for cJSON: some releases read one byte past a text without */
        enum status status = STATUS_OK;
        const bool blank = line + strspn(line, " \t\r") == stop;
        if (!blank) status = read_line(&reader, line, (size_t)(stop - line));
        if (newline != NULL) *newline = '\n';
        if (status != STATUS_OK) {
            return status_context(status, "%s:%zu", choices->path, reader.line);
        }
        line = stop + 1;
    }
    if (choices->count > 0) return STATUS_OK;
    return status_set(STATUS_DATA,
                      "%s: expected at least one question, a JSON object with "
                      "\"ctx\", \"endings\" and \"label\" a line, found none",
                      choices->path);
}
