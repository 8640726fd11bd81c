/* Behind train/prompts.h. */
#include "train/prompts.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "train/token_text.h"

static enum status add(struct prompt_list *list, const struct vocabulary *vocabulary,
                       const char *text, size_t bytes, size_t line) {
    if (list->count == list->capacity) {
        const size_t capacity = size_max(16, 2 * list->capacity);
        struct prompt *grown = realloc(list->items, capacity * sizeof *grown);
        if (grown == NULL) {
            return status_set(STATUS_MEMORY, "out of memory for %zu prompts", capacity);
        }
        list->items = grown;
        list->capacity = capacity;
    }
    struct prompt prompt = {.text = malloc(bytes + 1), .line = line};
    if (prompt.text == NULL) {
        return status_set(STATUS_MEMORY, "out of memory for a prompt of %zu bytes", bytes);
    }
    memcpy(prompt.text, text, bytes);
    prompt.text[bytes] = '\0';
    const enum status status = prompt_tokens(vocabulary, prompt.text, &prompt.tokens,
                                             &prompt.token_count);
    if (status == STATUS_OK)
        list->items[list->count++] = prompt;
    else
        free(prompt.text);
    return status;
}

enum status prompt_list_add(struct prompt_list *list, const struct vocabulary *vocabulary,
                            const char *text) {
    return add(list, vocabulary, text, strlen(text), 0);
}

static enum status add_line(struct prompt_list *list, const struct vocabulary *vocabulary,
                            const char *line, size_t bytes, size_t number) {
    if (memchr(line, '\0', bytes) != NULL) {
        return status_set(STATUS_DATA, "expected text, found a zero byte");
    }
    if (bytes > 0 && line[bytes - 1] == '\r') bytes--;
    return add(list, vocabulary, line, bytes, number);
}

enum status prompt_list_parse(struct prompt_list *list, const struct vocabulary *vocabulary,
                              const char *label, const char *text, size_t bytes) {
    const char *const end = text + bytes;
    size_t number = 0;
    if (bytes == 0) {
        return status_set(STATUS_DATA, "%s: expected prompts, one a line, found an empty file",
                          label);
    }
    for (const char *line = text; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        const char *stop = newline == NULL ? end : newline;
        const enum status status = add_line(list, vocabulary, line, (size_t)(stop - line),
                                            ++number);
        if (status != STATUS_OK) return status_context(status, "%s:%zu", label, number);
        line = stop + 1;
    }
    return STATUS_OK;
}

enum status prompt_list_read(struct prompt_list *list, const struct vocabulary *vocabulary,
                             const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    TRY(file_read(path, PROMPTS_BYTES_MAX, &text, &bytes));
    const enum status status = prompt_list_parse(list, vocabulary, path, text, bytes);
    free(text);
    return status;
}

void prompt_list_free(struct prompt_list *list) {
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i].text);
        free(list->items[i].tokens);
    }
    free(list->items);
    *list = (struct prompt_list){.items = NULL};
}
