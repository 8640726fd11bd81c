/* What a tokenizer consists of. Made by tokenizer_json.c, used by tokenizer.c and added_tokens.c;
 * nobody else includes this. */
#ifndef DEEPWELL_DATA_TOKENIZER_PARTS_H_
#define DEEPWELL_DATA_TOKENIZER_PARTS_H_

#include "data/bpe.h"
#include "data/split.h"
#include "data/token_table.h"
#include "data/tokenizer.h"

enum { TOKENIZER_STEPS_MAX = 16, BYTE_CHARACTERS = 512 };

/* A token outside the merges, found in the text before it is split. */
struct added_token {
    const char *content;
    size_t bytes;
    int32_t token;
    bool special;
    bool normalized;             /* looked for after those that are not */
    bool single_word;            /* only where no letter or digit touches it */
    bool takes_left, takes_right; /* the white space beside it belongs to it ("lstrip", "rstrip") */
};

/* One step of the way from a piece of text to words: every word of the step goes to the next. */
struct tokenizer_step {
    bool adds_space; /* puts a space in front of a piece that has none */
    bool splits;
    struct split split;
};

struct token_text {
    const char *bytes; /* NULL: no token has this number */
    size_t count;
    bool outside; /* an added token that the model's vocabulary does not have */
};

struct tokenizer {
    char *strings;            /* all texts below lie in here */
    struct token_table table; /* by the text in tokenizer.json */
    struct token_text *texts; /* (vocabulary,): what each token stands for */
    size_t vocabulary, longest;
    struct bpe_merges merges;
    bool whole_words;         /* a word that is a token is that token, whatever the merges say */
    int32_t byte_tokens[BYTE_VOCABULARY];
    struct tokenizer_step steps[TOKENIZER_STEPS_MAX];
    size_t step_count;
    struct added_token *added; /* the longest first */
    size_t added_count;
    bool added_starts[2][BYTE_VOCABULARY]; /* [normalized][first byte of an added token] */
    struct split space, word; /* one character of white space; of a word */
};

/* tokenizer.json writes the 256 bytes as characters that can be seen: this is the one of a byte as
 * UTF-8, *bytes (1 or 2) of it (Radford et al., "Language models are unsupervised multitask
 * learners", 2019, and GPT-2's bytes_to_unicode). */
const char *byte_character(unsigned char byte, size_t *bytes);

/* A piece between added tokens, or an added token (token >= 0). */
typedef enum status (*added_take)(void *context, const char *text, size_t bytes, int32_t token);

/* Cuts text[0..bytes) at the added tokens. */
enum status added_tokens_run(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                             bool special, added_take take, void *context);

#endif
