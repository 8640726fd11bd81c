/* UTF-8 by RFC 3629. */
#include "base/utf8.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char replacement[] = UTF8_REPLACEMENT;

/* Lead byte, then the range of the second byte that rules out overlong forms and surrogates. */
static const struct form {
    unsigned char first, last, low, high;
    size_t length;
} forms[] = {
    {0xC2, 0xDF, 0x80, 0xBF, 2}, {0xE0, 0xE0, 0xA0, 0xBF, 3}, {0xE1, 0xEC, 0x80, 0xBF, 3},
    {0xED, 0xED, 0x80, 0x9F, 3}, {0xEE, 0xEF, 0x80, 0xBF, 3}, {0xF0, 0xF0, 0x90, 0xBF, 4},
    {0xF1, 0xF3, 0x80, 0xBF, 4}, {0xF4, 0xF4, 0x80, 0x8F, 4},
};

static const struct form *find_form(unsigned char lead) {
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if (lead >= forms[i].first && lead <= forms[i].last) return &forms[i];
    }
    return NULL;
}

/* How many of the first bytes could begin a sequence of this form: at least 1. */
static size_t fitting(const struct form *form, const unsigned char *s, size_t bytes) {
    size_t k = 1;
    if (bytes < 2 || s[1] < form->low || s[1] > form->high) return k;
    for (k = 2; k < form->length && k < bytes && s[k] >= 0x80 && s[k] <= 0xBF;) k++;
    return k;
}

size_t utf8_sequence(const char *text, size_t bytes) {
    if (bytes == 0) return 0;
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) return 1;
    const struct form *form = find_form(s[0]);
    return form != NULL && fitting(form, s, bytes) == form->length ? form->length : 0;
}

size_t utf8_broken(const char *text, size_t bytes) {
    const unsigned char *s = (const unsigned char *)text;
    const struct form *form = find_form(s[0]);
    return form == NULL ? 1 : fitting(form, s, bytes);
}

char *utf8_repaired(const char *text) {
    size_t left = strlen(text);
    if (left > (SIZE_MAX - 1) / 3) return NULL;
    char *repaired = malloc(3 * left + 1);
    if (repaired == NULL) return NULL;
    char *out = repaired;
    while (left > 0) {
        const size_t valid = utf8_sequence(text, left), taken = valid > 0 ? valid : 1;
        const size_t written = valid > 0 ? valid : 3;
        memcpy(out, valid > 0 ? text : replacement, written);
        out += written;
        text += taken;
        left -= taken;
    }
    *out = '\0';
    return repaired;
}
