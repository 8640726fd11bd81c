/* PCRE2 behind data/split.h. */
#include "data/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/utf8.h"

enum {
    /* Steps of one match: an expression of words goes over what it matches a few times, and a
     * hostile one must end. */
    MATCH_STEPS = 10000,
    MATCH_STEPS_PER_BYTE = 100,
    SPACE_BYTES = 10, /* of \p{wspace}, which replaces 2 */
};

/* After a backslash: what Oniguruma and PCRE2 read differently, or only one of them reads. */
static const char strange_escapes[] = "wWbBhHCGKQENRXku";

static enum status refuse(const char *pattern, const char *what, size_t place) {
    return status_set(STATUS_DATA, "the pattern \"%.80s\" has %s at place %zu, which regular "
                      "expression libraries read differently: use a tokenizer without it", pattern,
                      what, place + 1);
}

/* What follows "(?", up to what both libraries read alike. */
static bool known_group(const char *at) {
    static const char *const known[] = {":", "=", "!", "<=", "<!", ">", "i:"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strncmp(at, known[i], strlen(known[i])) == 0) return true;
    }
    return false;
}

/* Refuses what the libraries read differently; `in_class`: between [ and ]. */
static enum status check_place(const char *pattern, size_t i, bool in_class) {
    const char *at = pattern + i;
    if (at[0] == '\\' && strchr(strange_escapes, at[1]) != NULL) {
        return refuse(pattern, at[1] == '\0' ? "a last \\" : "a special escape", i);
    }
    if (in_class) {
        if (at[0] == '[') return refuse(pattern, "a [ inside [ ]", i);
        if (strncmp(at, "&&", 2) == 0) return refuse(pattern, "&& inside [ ]", i);
        return STATUS_OK;
    }
    if (strncmp(at, "(*", 2) == 0) return refuse(pattern, "(*", i);
    if (strncmp(at, "(?", 2) == 0 && !known_group(at + 2)) {
        return refuse(pattern, "a special group", i);
    }
    if (strncmp(at, "{,", 2) == 0) return refuse(pattern, "{,", i);
    const size_t interval = at[0] == '{' ? strspn(at + 1, "0123456789,") : 0;
    if (interval > 0 && strncmp(at + 1 + interval, "}+", 2) == 0) {
        return refuse(pattern, "an interval with a +", i);
    }
    return STATUS_OK;
}

/* The pattern for PCRE2; release with free(). */
static enum status translate(const char *pattern, char **out) {
    const size_t bytes = strlen(pattern);
    char *text = malloc(bytes * SPACE_BYTES / 2 + SPACE_BYTES + 1);
    size_t used = 0;
    bool in_class = false;
    if (text == NULL) return status_set(STATUS_MEMORY, "out of memory for a pattern");
    for (size_t i = 0; i < bytes; i++) {
        const enum status status = check_place(pattern, i, in_class);
        if (status != STATUS_OK) {
            free(text);
            return status;
        }
        const char byte = pattern[i], after = pattern[i + 1];
        if (byte == '\\' && (after == 's' || after == 'S')) {
            memcpy(text + used, after == 's' ? "\\p{wspace}" : "\\P{wspace}", SPACE_BYTES);
            used += SPACE_BYTES;
            i++;
            continue;
        }
        text[used++] = byte;
        if (byte == '\\') text[used++] = pattern[++i];
        else if (byte == '[') in_class = true;
        else if (byte == ']') in_class = false;
    }
    text[used] = '\0';
    *out = text;
    return STATUS_OK;
}

static enum status compile(struct split *split, const char *pattern, bool literal) {
    char reason[128];
    int error = 0;
    PCRE2_SIZE place = 0;
    const uint32_t options = literal ? PCRE2_UTF | PCRE2_LITERAL
                                     : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL) return status_set(STATUS_MEMORY, "out of memory for a pattern");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF); /* whatever the library was built with */
    split->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &error, &place,
                                context);
    pcre2_compile_context_free(context);
    if (split->code != NULL) return STATUS_OK;
    pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
    return status_set(STATUS_DATA, "the pattern \"%.80s\" is no regular expression that PCRE2 "
                      "takes: %s", pattern, reason);
}

enum status split_open(struct split *split, const char *pattern, bool literal) {
    enum status status = STATUS_OK;
    char *translated = NULL;
    const size_t bytes = strlen(pattern);
    *split = (struct split){.code = NULL};
    if (bytes == 0 || bytes > SPLIT_PATTERN_BYTES_MAX) {
        return status_set(STATUS_DATA, "expected a pattern of 1 to %d bytes, found %zu",
                          SPLIT_PATTERN_BYTES_MAX, bytes);
    }
    if (!literal) TRY(translate(pattern, &translated));
    TRY_GOTO(compile(split, literal ? pattern : translated, literal), cleanup);
    split->match = pcre2_match_data_create(1, NULL);
    split->limits = pcre2_match_context_create(NULL);
    if (split->match == NULL || split->limits == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for a pattern");
    }

cleanup:
    free(translated);
    if (status != STATUS_OK) split_close(split);
    return status;
}

void split_close(struct split *split) {
    pcre2_match_context_free(split->limits);
    pcre2_match_data_free(split->match);
    pcre2_code_free(split->code);
    *split = (struct split){.code = NULL};
}

/* The next match from `from`; *found is false if there is none. */
static enum status next_match(const struct split *split, const char *text, size_t bytes,
                              size_t from, size_t *start, size_t *end, bool *found) {
    const int result = pcre2_match(split->code, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK,
                                   split->match, split->limits);
    *found = result >= 0;
    if (result == PCRE2_ERROR_NOMATCH) return STATUS_OK;
    if (result < 0) {
        char reason[128];
        pcre2_get_error_message(result, (PCRE2_UCHAR *)reason, sizeof reason);
        return status_set(STATUS_DATA, "the tokenizer's pattern fails at byte %zu of a text of "
                          "%zu: %s", from, bytes, reason);
    }
    const PCRE2_SIZE *place = pcre2_get_ovector_pointer(split->match);
    *start = place[0];
    *end = place[1];
    return STATUS_OK;
}

enum status split_run(const struct split *split, const char *text, size_t bytes,
                      enum status (*take)(void *context, const char *word, size_t bytes),
                      void *context) {
    const size_t steps = MATCH_STEPS + size_min(bytes, UINT32_MAX / 1000) * MATCH_STEPS_PER_BYTE;
    size_t taken = 0, from = 0, last_end = SIZE_MAX;
    pcre2_set_match_limit(split->limits, (uint32_t)steps);
    while (from <= bytes) {
        size_t start = 0, end = 0;
        bool found = false;
        TRY(next_match(split, text, bytes, from, &start, &end, &found));
        if (!found) break;
        if (start == end && end == last_end) { /* nothing again: one character on */
            from = end + size_max(utf8_sequence(text + end, bytes - end), 1);
            continue;
        }
        if (start > taken && split->keeps_gaps) TRY(take(context, text + taken, start - taken));
        if (end > start && split->keeps_matches) TRY(take(context, text + start, end - start));
        taken = from = last_end = end;
    }
    if (taken < bytes && split->keeps_gaps) TRY(take(context, text + taken, bytes - taken));
    return STATUS_OK;
}
