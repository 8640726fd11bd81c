/*
 * Added tokens in text, by the rules of the `tokenizers` library: first those that are not
 * "normalized", then, in what is between them, the others; at each place the longest. A match that
 * a rule (single_word, special) forbids stays text, and the search goes on behind it.
 */
#include <string.h>

#include "base/utf8.h"
#include "data/tokenizer_parts.h"

struct place {
    size_t start, end;
};

/* The longest added token at text[i..bytes), NULL if there is none. */
static const struct added_token *token_at(const struct tokenizer *tokenizer, bool normalized,
                                          const char *text, size_t i, size_t bytes) {
    if (!tokenizer->added_starts[normalized][(unsigned char)text[i]]) return NULL;
    for (size_t k = 0; k < tokenizer->added_count; k++) {
        const struct added_token *added = &tokenizer->added[k];
        if (added->normalized == normalized && added->bytes <= bytes - i &&
            memcmp(text + i, added->content, added->bytes) == 0) {
            return added;
        }
    }
    return NULL;
}

static enum status note_match(void *context, const char *word, size_t bytes) {
    (void)word;
    *(size_t *)context = bytes;
    return STATUS_OK;
}

/* Whether the character text[0..bytes) matches. */
static enum status is_of(const struct split *kind, const char *text, size_t bytes, bool *is) {
    size_t matched = 0;
    TRY(split_run(kind, text, bytes, note_match, &matched));
    *is = matched == bytes;
    return STATUS_OK;
}

/* Where the character that ends at text[end] begins; the text is valid UTF-8. */
static size_t character_before(const char *text, size_t end) {
    do end--;
    while (end > 0 && ((unsigned char)text[end] & 0xC0) == 0x80);
    return end;
}

/* Whether a word's character stands right before or after the place. */
static enum status touches_word(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                                const struct place *place, bool *touches) {
    *touches = false;
    if (place->start > 0) {
        const size_t before = character_before(text, place->start);
        TRY(is_of(&tokenizer->word, text + before, place->start - before, touches));
    }
    if (!*touches && place->end < bytes) {
        const size_t after = utf8_sequence(text + place->end, bytes - place->end);
        TRY(is_of(&tokenizer->word, text + place->end, after, touches));
    }
    return STATUS_OK;
}

/* Widens the place over the white space that the token takes, to the left not before `least`. */
static enum status take_space(const struct tokenizer *tokenizer, const struct added_token *added,
                              const char *text, size_t bytes, size_t least, struct place *place) {
    bool is = added->takes_left;
    while (is && place->start > least) {
        const size_t before = character_before(text, place->start);
        TRY(is_of(&tokenizer->space, text + before, place->start - before, &is));
        if (is) place->start = before;
    }
    is = added->takes_right;
    while (is && place->end < bytes) {
        const size_t after = utf8_sequence(text + place->end, bytes - place->end);
        TRY(is_of(&tokenizer->space, text + place->end, after, &is));
        if (is) place->end += after;
    }
    return STATUS_OK;
}

static enum status cut(const struct tokenizer *tokenizer, bool normalized, const char *text,
                       size_t bytes, bool special, added_take take, void *context) {
    size_t taken = 0;
    for (size_t i = 0; i < bytes;) {
        const struct added_token *added = token_at(tokenizer, normalized, text, i, bytes);
        if (added == NULL) {
            i++;
            continue;
        }
        struct place place = {i, i + added->bytes};
        bool stays_text = added->special && !special;
        i = place.end;
        if (!stays_text && added->single_word) {
            TRY(touches_word(tokenizer, text, bytes, &place, &stays_text));
        }
        if (stays_text) continue;
        /* White space that the token before took may lie inside this match. */
        TRY(take_space(tokenizer, added, text, bytes, taken, &place));
        if (place.start < taken) place.start = taken;
        if (place.start > taken) TRY(take(context, text + taken, place.start - taken, -1));
        TRY(take(context, text + place.start, place.end - place.start, added->token));
        taken = place.end;
    }
    return taken < bytes ? take(context, text + taken, bytes - taken, -1) : STATUS_OK;
}

/* The second round, in what the first left. */
struct second_round {
    const struct tokenizer *tokenizer;
    bool special;
    added_take take;
    void *context;
};

static enum status cut_again(void *context, const char *text, size_t bytes, int32_t token) {
    const struct second_round *second = context;
    if (token >= 0) return second->take(second->context, text, bytes, token);
    return cut(second->tokenizer, true, text, bytes, second->special, second->take,
               second->context);
}

enum status added_tokens_run(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                             bool special, added_take take, void *context) {
    struct second_round second = {tokenizer, special, take, context};
    return cut(tokenizer, false, text, bytes, special, cut_again, &second);
}
