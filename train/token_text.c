/* Prompts to tokens, tokens to text. */
#include "train/token_text.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

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
                              "expected token numbers from 0 to %zu separated by "
                              "spaces (the model's vocabulary is not bytes), found \"%.20s\"",
                              vocabulary - 1, at);
        }
        tokens[(*count)++] = (int32_t)value;
        at = end + strspn(end, " \t\n");
    }
    return STATUS_OK;
}

/* Text as bytes where tokens stand for text, otherwise its numbers. */
static enum status plain_symbols(const struct vocabulary *vocabulary, const char *prompt,
                                 int32_t **tokens, size_t *count) {
    const size_t bytes = strlen(prompt);
    int32_t *list = calloc(bytes + 1, sizeof *list);
    enum status status = STATUS_OK;
    if (list == NULL)
        return status_set(STATUS_MEMORY, "out of memory for a text of %zu bytes", bytes);
    if (vocabulary_is_text(vocabulary)) {
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
        const enum status status = plain_symbols(vocabulary, prompt, &list, count);
        if (status != STATUS_OK) return status_context(status, "prompt");
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

enum status stop_list_add(struct stop_list *list, const struct vocabulary *vocabulary,
                          const char *text) {
    struct stop stop = {.symbols = NULL};
    if (list->count == STOPS_MAX) {
        return status_set(STATUS_CONFIG, "expected at most %d stops, found one more", STOPS_MAX);
    }
    const enum status status = plain_symbols(vocabulary, text, &stop.symbols, &stop.count);
    if (status != STATUS_OK) return status_context(status, "stop");
    if (stop.count < 1 || stop.count > STOP_SYMBOLS_MAX) {
        free(stop.symbols);
        return status_set(STATUS_CONFIG, "stop: expected 1 to %d %s, found %zu", STOP_SYMBOLS_MAX,
                          vocabulary_is_text(vocabulary) ? "bytes" : "tokens", stop.count);
    }
    list->items[list->count++] = stop;
    return STATUS_OK;
}

void stop_list_free(struct stop_list *list) {
    for (size_t i = 0; i < list->count; i++) free(list->items[i].symbols);
    list->count = 0;
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

/* Where symbols go: bytes of text, or numbers. */
struct sink {
    struct token_printer *printer;
    FILE *out;
};

static void print_symbol(void *context, int32_t symbol) {
    const struct sink *sink = context;
    if (vocabulary_is_text(sink->printer->vocabulary)) {
        add_byte(sink->printer, (unsigned char)symbol, sink->out);
    } else {
        fprintf(sink->out, "%d ", symbol);
    }
}

static void add_symbol(struct sink *sink, int32_t symbol) {
    struct stop_filter *stops = sink->printer->stops;
    if (stops != NULL) stop_filter_add(stops, symbol, print_symbol, sink);
    else print_symbol(sink, symbol);
}

bool token_printer_add(struct token_printer *printer, int32_t token, FILE *out) {
    const struct vocabulary *vocabulary = printer->vocabulary;
    struct sink sink = {.printer = printer, .out = out};
    if (vocabulary->tokenizer != NULL) {
        size_t bytes = 0;
        const char *text = tokenizer_text(vocabulary->tokenizer, token, &bytes);
        if (bytes == 0) { /* one that only pads the model's vocabulary */
            text = UTF8_REPLACEMENT;
            bytes = strlen(text);
        }
        for (size_t i = 0; i < bytes; i++) add_symbol(&sink, (unsigned char)text[i]);
    } else {
        add_symbol(&sink, token); /* a byte, or a number */
    }
    return printer->stops == NULL || !printer->stops->stopped;
}

void token_printer_end(struct token_printer *printer, FILE *out) {
    struct sink sink = {.printer = printer, .out = out};
    if (printer->stops != NULL) stop_filter_end(printer->stops, print_symbol, &sink);
    drain(printer, true, out);
}
