/* Numbers and UTF-8 for files; see train/encode.h. */
#include "train/encode.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *real_text(char text[REAL_TEXT_BYTES], double value) {
    if (isnan(value)) {
        snprintf(text, REAL_TEXT_BYTES, "nan"); /* printf would show the sign bit: "-nan" */
        return text;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, REAL_TEXT_BYTES, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    return text;
}

size_t utf8_sequence(const char *text, size_t bytes) {
    if (bytes == 0) return 0;
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) return 1;
    /* lead byte, then the range of the second byte that rules out overlong forms and surrogates */
    static const struct { unsigned char first, last, low, high; size_t length; } forms[] = {
        {0xC2, 0xDF, 0x80, 0xBF, 2}, {0xE0, 0xE0, 0xA0, 0xBF, 3}, {0xE1, 0xEC, 0x80, 0xBF, 3},
        {0xED, 0xED, 0x80, 0x9F, 3}, {0xEE, 0xEF, 0x80, 0xBF, 3}, {0xF0, 0xF0, 0x90, 0xBF, 4},
        {0xF1, 0xF3, 0x80, 0xBF, 4}, {0xF4, 0xF4, 0x80, 0x8F, 4},
    };
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if (s[0] < forms[i].first || s[0] > forms[i].last) continue;
        if (bytes < forms[i].length || s[1] < forms[i].low || s[1] > forms[i].high) return 0;
        for (size_t k = 2; k < forms[i].length; k++) {
            if (s[k] < 0x80 || s[k] > 0xBF) return 0;
        }
        return forms[i].length;
    }
    return 0;
}

char *utf8_repaired(const char *text) {
    static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */
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
