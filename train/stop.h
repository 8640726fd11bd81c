/*
 * Sequences of symbols that end a generated text: bytes where tokens stand for text, tokens where
 * they are numbers. Symbols that may yet become a stop are held back, so that a stop is never
 * printed, not even in part. Used by token_text.c; command_sample.c makes the list.
 */
#ifndef DEEPWELL_TRAIN_STOP_H_
#define DEEPWELL_TRAIN_STOP_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { STOPS_MAX = 16, STOP_SYMBOLS_MAX = 256 };

struct stop {
    int32_t *symbols;
    size_t count; /* 1 to STOP_SYMBOLS_MAX */
};

struct stop_list {
    struct stop items[STOPS_MAX];
    size_t count;
};

/* One text under way; begins as {.list = ...}. */
struct stop_filter {
    const struct stop_list *list;
    int32_t held[STOP_SYMBOLS_MAX]; /* the longest end of the text that begins a stop */
    size_t held_count;
    bool stopped;
};

/* Takes the next symbol and hands those that belong to the text, in order, to `release`. The stop
 * that is complete first ends the text (of several with the same end the longest): nothing from its
 * first symbol on is handed over, and later symbols are dropped. */
void stop_filter_add(struct stop_filter *filter, int32_t symbol,
                     void (*release)(void *context, int32_t symbol), void *context);

/* Hands over what is held when no symbol follows. */
void stop_filter_end(struct stop_filter *filter, void (*release)(void *context, int32_t symbol),
                     void *context);

#endif
