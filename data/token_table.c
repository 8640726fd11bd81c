/* The table of token texts. */
#include "data/token_table.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct token_slot {
    const char *text; /* NULL: free */
    uint32_t bytes;
    int32_t token;
};

bool token_table_open(struct token_table *table, size_t most) {
    size_t capacity = 16;
    while (capacity / 2 < most && capacity <= SIZE_MAX / 4) capacity *= 2; /* at most half full */
    *table = (struct token_table){.capacity = capacity};
    table->slots = calloc(capacity, sizeof *table->slots);
    return table->slots != NULL;
}

void token_table_close(struct token_table *table) {
    free(table->slots);
    *table = (struct token_table){.slots = NULL};
}

/* Where the text is, or the free slot where it would be. */
static struct token_slot *find_slot(const struct token_table *table, const char *text,
                                    size_t bytes) {
    size_t place = XXH3_64bits(text, bytes) & (table->capacity - 1);
    for (;; place = (place + 1) & (table->capacity - 1)) {
        struct token_slot *slot = &table->slots[place];
        if (slot->text == NULL) return slot;
        if (slot->bytes == bytes && memcmp(slot->text, text, bytes) == 0) return slot;
    }
}

bool token_table_add(struct token_table *table, const char *text, size_t bytes, int32_t token) {
    struct token_slot *slot = find_slot(table, text, bytes);
    if (slot->text != NULL) return false;
    *slot = (struct token_slot){.text = text, .bytes = (uint32_t)bytes, .token = token};
    table->count++;
    return true;
}

int32_t token_table_find(const struct token_table *table, const char *text, size_t bytes) {
    const struct token_slot *slot = find_slot(table, text, bytes);
    return slot->text == NULL ? -1 : slot->token;
}
