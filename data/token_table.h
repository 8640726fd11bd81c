/* Token texts to token numbers, as tokenizer.json writes them. Filled by tokenizer_json.c, read by
 * the encoder. Owned by a struct tokenizer. */
#ifndef DEEPWELL_DATA_TOKEN_TABLE_H_
#define DEEPWELL_DATA_TOKEN_TABLE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An open-addressing hash table; the texts are the caller's and must outlive it. */
struct token_table {
    struct token_slot *slots;
    size_t capacity; /* a power of two */
    size_t count;
};

/* Room for `most` texts; false when out of memory. */
bool token_table_open(struct token_table *table, size_t most);
void token_table_close(struct token_table *table);

/* False if the text is there already. At most `most` texts. */
bool token_table_add(struct token_table *table, const char *text, size_t bytes, int32_t token);

/* The token of text[0..bytes), -1 if there is none. */
int32_t token_table_find(const struct token_table *table, const char *text, size_t bytes);

#endif
