/* Finding stops in a stream: behind train/stop.h. */
#include "train/stop.h"

#include <string.h>

static bool same(const int32_t *a, const int32_t *b, size_t count) {
    return memcmp(a, b, count * sizeof *a) == 0;
}

/* Symbols of the longest stop that ends the text; 0: none does. */
static size_t complete(const struct stop_filter *filter, const int32_t *text, size_t count) {
    size_t longest = 0;
    for (size_t i = 0; i < filter->list->count; i++) {
        const struct stop *stop = &filter->list->items[i];
        if (stop->count > longest && stop->count <= count &&
            same(stop->symbols, text + count - stop->count, stop->count)) {
            longest = stop->count;
        }
    }
    return longest;
}

/* Whether a stop begins with the whole text and goes on. */
static bool begins_stop(const struct stop_filter *filter, const int32_t *text, size_t count) {
    for (size_t i = 0; i < filter->list->count; i++) {
        const struct stop *stop = &filter->list->items[i];
        if (count < stop->count && same(stop->symbols, text, count)) return true;
    }
    return false;
}

void stop_filter_add(struct stop_filter *filter, int32_t symbol,
                     void (*release)(void *context, int32_t symbol), void *context) {
    int32_t text[STOP_SYMBOLS_MAX + 1]; /* a beginning has less than STOP_SYMBOLS_MAX */
    size_t count = filter->held_count, first = 0;
    if (filter->stopped) return;
    memcpy(text, filter->held, count * sizeof *text);
    text[count++] = symbol;
    const size_t end = complete(filter, text, count);
    filter->stopped = end > 0;
    if (filter->stopped) {
        first = count - end;
    } else {
        while (first < count && !begins_stop(filter, text + first, count - first)) first++;
    }
    for (size_t i = 0; i < first; i++) release(context, text[i]);
    filter->held_count = filter->stopped ? 0 : count - first;
    memcpy(filter->held, text + first, filter->held_count * sizeof *text);
}

void stop_filter_end(struct stop_filter *filter, void (*release)(void *context, int32_t symbol),
                     void *context) {
    for (size_t i = 0; i < filter->held_count; i++) release(context, filter->held[i]);
    filter->held_count = 0;
}
