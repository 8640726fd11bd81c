/* Prompts to tokens, tokens to text. */
#include "train/token_text.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

static bool is_bytes(const struct vocabulary *vocabulary) {
    return vocabulary->tokenizer == NULL && vocabulary->size == BYTE_VOCABULARY;
}

/* Numbers separated by white space; there are at most as many as half the characters, rounded
 * up. */
static enum status parse_numbers(const char *prompt, size_t vocabulary, int32_t *tokens,
                                 size_t *count) {
    const char *at = prompt + strspn(prompt, " \t\n");
    *count = 0;
    while (*at != '\0') {
        char *end = NULL;
        errno = 0;
        const long long value = strtoll(at, &end, 10);
        const bool separated = *end == '\0' || strchr(" \t\n", *end) != NULL;
        if (end == at || !separated || errno != 0 || value < 0 ||
            (unsigned long long)value >= vocabulary) {
            return status_set(STATUS_CONFIG,
                              "prompt: expected token numbers from 0 to %zu separated by "
                              "spaces (the model's vocabulary is not bytes), found \"%.20s\"",
                              vocabulary - 1, at);
        }
        tokens[(*count)++] = (int32_t)value;
        at = end + strspn(end, " \t\n");
    }
    return STATUS_OK;
}

/* The prompt without a tokenizer: bytes or numbers. */
static enum status plain_tokens(const struct vocabulary *vocabulary, const char *prompt,
                                int32_t **tokens, size_t *count) {
    const size_t bytes = strlen(prompt);
    int32_t *list = calloc(bytes + 1, sizeof *list);
    enum status status = STATUS_OK;
    if (list == NULL)
        return status_set(STATUS_MEMORY, "out of memory for a prompt of %zu bytes", bytes);
    if (is_bytes(vocabulary)) {
        byte_encode((const unsigned char *)prompt, bytes, list);
        *count = bytes;
    } else {
        status = parse_numbers(prompt, vocabulary->size, list, count);
    }
    if (status != STATUS_OK) {
        free(list);
        return status;
    }
    *tokens = list;
    return STATUS_OK;
}

enum status prompt_tokens(const struct vocabulary *vocabulary, const char *prompt, int32_t **tokens,
                          size_t *count) {
    int32_t *list = NULL;
    if (vocabulary->tokenizer != NULL) {
        TRY(tokenizer_encode(vocabulary->tokenizer, prompt, strlen(prompt), true, &list, count));
    } else {
        TRY(plain_tokens(vocabulary, prompt, &list, count));
    }
    if (*count == 0 && vocabulary->end_of_text < 0) {
        free(list);
        return status_set(STATUS_CONFIG, "expected a prompt, or data.end_of_text, the token that a "
                          "new document begins with, found neither");
    }
    if (*count == 0) list[(*count)++] = vocabulary->end_of_text; /* both make room for one */
    *tokens = list;
    return STATUS_OK;
}

/* Bytes that a UTF-8 sequence starting with this byte has; 1 for what starts none. */
static size_t sequence_bytes(unsigned char first) {
    if (first >= 0xC2 && first <= 0xDF) return 2;
    if (first >= 0xE0 && first <= 0xEF) return 3;
    if (first >= 0xF0 && first <= 0xF4) return 4;
    return 1;
}

/* U+0000 to U+001F but newline and tab, and U+007F to U+009F: terminals act on both sets. */
static bool is_control(const unsigned char *character, size_t bytes) {
    if (bytes == 2) return character[0] == 0xC2 && character[1] < 0xA0;
    const unsigned char byte = character[0];
    return bytes == 1 && ((byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7F);
}

/* Prints what is complete, or can never be, of the waiting bytes. */
static void drain(struct token_printer *printer, bool last, FILE *out) {
    while (printer->waiting_bytes > 0) {
        const unsigned char *waiting = printer->waiting;
        const size_t left = printer->waiting_bytes;
        const size_t valid = utf8_sequence((const char *)waiting, left);
        const size_t taken = valid > 0 ? valid : 1;
        if (valid > 0 && !is_control(waiting, valid)) {
            fwrite(waiting, 1, valid, out);
        } else if (valid == 0 && !last && left < sequence_bytes(waiting[0])) {
            break;
        } else {
            fputs(UTF8_REPLACEMENT, out);
        }
        memmove(printer->waiting, waiting + taken, left - taken);
        printer->waiting_bytes = left - taken;
    }
}

static void add_byte(struct token_printer *printer, unsigned char byte, FILE *out) {
    printer->waiting[printer->waiting_bytes++] = byte;
    drain(printer, false, out);
}

void token_printer_add(struct token_printer *printer, int32_t token, FILE *out) {
    const struct vocabulary *vocabulary = printer->vocabulary;
    if (vocabulary->tokenizer != NULL) {
        size_t bytes = 0;
        const char *text = tokenizer_text(vocabulary->tokenizer, token, &bytes);
        for (size_t i = 0; i < bytes; i++) add_byte(printer, (unsigned char)text[i], out);
        if (bytes == 0) fputs(UTF8_REPLACEMENT, out); /* it only pads the vocabulary */
    } else if (is_bytes(vocabulary)) {
        add_byte(printer, (unsigned char)token, out);
    } else {
        fprintf(out, "%d ", token);
    }
}

void token_printer_end(struct token_printer *printer, FILE *out) { drain(printer, true, out); }
