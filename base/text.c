/* Formatting for people, and the nearest-name search behind "did you mean". */
#include "base/text.h"

#include <stdio.h>
#include <string.h>

const char *text_bytes(char text[TEXT_BYTES], size_t bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024.0 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1024.0;
        unit++;
    }
    snprintf(text, TEXT_BYTES, unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
    return text;
}

const char *text_count(char text[TEXT_BYTES], uint64_t count) {
    char digits[TEXT_BYTES];
    const int length = snprintf(digits, sizeof digits, "%llu", (unsigned long long)count);
    char *out = text;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) *out++ = ',';
        *out++ = digits[i];
    }
    *out = '\0';
    return text;
}

const char *text_duration(char text[TEXT_BYTES], double seconds) {
    if (!(seconds >= 0.0) || seconds > 1e12) {
        snprintf(text, TEXT_BYTES, "?");
    } else if (seconds < 1.0) {
        snprintf(text, TEXT_BYTES, "%.0f ms", seconds * 1e3);
    } else {
        const unsigned long long whole = (unsigned long long)(seconds + 0.5);
        const unsigned long long hours = whole / 3600, minutes = whole / 60 % 60;
        if (hours > 0) {
            snprintf(text, TEXT_BYTES, "%llu:%02llu:%02llu", hours, minutes, whole % 60);
        } else {
            snprintf(text, TEXT_BYTES, "%llu:%02llu", minutes, whole % 60);
        }
    }
    return text;
}

const char *text_list(char *text, size_t room, const char *const *names, size_t count,
                      const char *last) {
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < count && used < room; i++) {
        const char *between = i == 0 ? "" : i + 1 < count ? ", " : last;
        used += (size_t)snprintf(text + used, room - used, "%s%s", between, names[i]);
    }
    return text;
}

enum { NAME_LENGTH_MAX = 63 };

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* The least number of letters put in, left out, replaced, or exchanged with their neighbour
 * ("optimal string alignment"), over three rows of the table; both names are at most
 * NAME_LENGTH_MAX long. */
static size_t edit_distance(const char *a, size_t a_length, const char *b, size_t b_length) {
    size_t rows[3][NAME_LENGTH_MAX + 1];
    for (size_t j = 0; j <= b_length; j++) rows[0][j] = j;
    for (size_t i = 1; i <= a_length; i++) {
        const size_t *above = rows[(i + 2) % 3], *twice_above = rows[(i + 1) % 3];
        size_t *row = rows[i % 3];
        row[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            row[j] = least(least(above[j], row[j - 1]) + 1, above[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                row[j] = least(row[j], twice_above[j - 2] + 1);
            }
        }
    }
    return rows[a_length % 3][b_length];
}

const char *text_nearest(const char *name, const char *const *names, size_t count) {
    const size_t length = strlen(name);
    if (length == 0 || length > NAME_LENGTH_MAX) return NULL;
    const char *nearest = NULL;
    size_t nearest_distance = (length - 1) / 3 + 1;
    for (size_t i = 0; i < count; i++) {
        const size_t other = strlen(names[i]);
        if (other > NAME_LENGTH_MAX) continue;
        const size_t distance = edit_distance(name, length, names[i], other);
        if (distance < nearest_distance) {
            nearest_distance = distance;
            nearest = names[i];
        }
    }
    return nearest;
}

const char *text_hint(char text[TEXT_HINT_BYTES], const char *name, const char *const *names,
                      size_t count) {
    const char *nearest = text_nearest(name, names, count);
    text[0] = '\0';
    if (nearest != NULL) snprintf(text, TEXT_HINT_BYTES, " (did you mean %s?)", nearest);
    return text;
}
