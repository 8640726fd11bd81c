/* Checked reading and exact writing of JSON: behind checkpoints/json.h. */
#include "checkpoints/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { SHOWN_BYTES_MAX = 40 }; /* of a foreign value in a message */

enum status json_parse(const char *where, const char *text, size_t bytes, cJSON **root) {
    if (memchr(text, '\0', bytes) != NULL) {
        return status_set(STATUS_CHECKPOINT, "%s: expected JSON text, found a NUL byte", where);
    }
    /* A copy with a NUL behind it: some releases of cJSON read one byte past a text without. */
    char *copy = malloc(bytes + 1);
    if (copy == NULL) return status_set(STATUS_MEMORY, "out of memory reading %s", where);
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    const char *end = NULL;
    cJSON *parsed = cJSON_ParseWithLengthOpts(copy, bytes + 1, &end, 1);
    enum status status = STATUS_OK;
    if (parsed == NULL) {
        status = status_set(STATUS_CHECKPOINT,
                            "%s: expected JSON, found something else at byte %zu of "
                            "%zu",
                            where, end == NULL ? 0 : (size_t)(end - copy), bytes);
    } else if (!cJSON_IsObject(parsed)) {
        status =
            status_set(STATUS_CHECKPOINT, "%s: expected a JSON object, found another value", where);
    }
    free(copy);
    if (status != STATUS_OK) {
        cJSON_Delete(parsed);
        return status;
    }
    *root = parsed;
    return STATUS_OK;
}

enum status json_read(const char *path, size_t limit_bytes, cJSON **root) {
    char *text = NULL;
    size_t bytes = 0;
    TRY(file_read(path, limit_bytes, &text, &bytes));
    const enum status status = json_parse(path, text, bytes, root);
    free(text);
    return status;
}

enum status json_find(const char *where, const cJSON *object, const char *key, const cJSON **item) {
    *item = NULL;
    for (const cJSON *child = object->child; child != NULL; child = child->next) {
        if (strcmp(child->string, key) != 0) continue;
        if (*item != NULL) {
            return status_set(STATUS_CHECKPOINT, "%s: the key \"%s\" stands twice", where, key);
        }
        *item = child;
    }
    return STATUS_OK;
}

/* What a message shows of a value; never more than SHOWN_BYTES_MAX. */
static void show_value(const cJSON *item, char shown[SHOWN_BYTES_MAX + 1]) {
    if (item == NULL) {
        snprintf(shown, SHOWN_BYTES_MAX + 1, "nothing");
    } else if (cJSON_IsNumber(item)) {
        snprintf(shown, SHOWN_BYTES_MAX + 1, "%.17g", item->valuedouble);
    } else {
        const char *kind = cJSON_IsString(item)   ? "a string"
                           : cJSON_IsArray(item)  ? "an array"
                           : cJSON_IsObject(item) ? "an object"
                           : cJSON_IsNull(item)   ? "null"
                                                  : "true or false";
        snprintf(shown, SHOWN_BYTES_MAX + 1, "%s", kind);
    }
}

enum status json_integer_of(const char *where, const char *what, const cJSON *item, int64_t least,
                            int64_t most, int64_t *value) {
    const double number = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (!(number >= (double)least && number <= (double)most) || number != floor(number)) {
        char shown[SHOWN_BYTES_MAX + 1];
        show_value(item, shown);
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected %s to be an integer from %lld to %lld, found "
                          "%s",
                          where, what, (long long)least, (long long)most, shown);
    }
    *value = (int64_t)number;
    return STATUS_OK;
}

enum status json_integer(const char *where, const cJSON *object, const char *key, int64_t least,
                         int64_t most, int64_t *value) {
    const cJSON *item = NULL;
    char what[SHOWN_BYTES_MAX + 1];
    TRY(json_find(where, object, key, &item));
    snprintf(what, sizeof what, "\"%s\"", key);
    return json_integer_of(where, what, item, least, most, value);
}

enum status json_string(const char *where, const cJSON *object, const char *key,
                        const char **value) {
    const cJSON *item = NULL;
    TRY(json_find(where, object, key, &item));
    if (!cJSON_IsString(item)) {
        char shown[SHOWN_BYTES_MAX + 1];
        show_value(item, shown);
        return status_set(STATUS_CHECKPOINT, "%s: expected \"%s\" to be a string, found %s", where,
                          key, shown);
    }
    for (const char *at = item->valuestring; *at != '\0'; at++) {
        if (*at >= ' ' && *at <= '~') continue;
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected \"%s\" in printable ASCII, found byte 0x%02x", where, key,
                          (unsigned char)*at);
    }
    *value = item->valuestring;
    return STATUS_OK;
}

/* Turns every number below `item` into raw text of the fewest digits that give the same double. */
static enum status numbers_to_text(const char *where, cJSON *item) {
    for (; item != NULL; item = item->next) {
        if (item->child != NULL) TRY(numbers_to_text(where, item->child));
        if (!cJSON_IsNumber(item)) continue;
        const double number = item->valuedouble;
        if (!isfinite(number)) {
            return status_set(STATUS_NUMERICS,
                              "%s: the number \"%s\" is not finite, and JSON has no word "
                              "for that",
                              where, item->string == NULL ? "in an array" : item->string);
        }
        char text[SHOWN_BYTES_MAX];
        for (int digits = 15; digits <= 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, number);
            if (strtod(text, NULL) == number) break;
        }
        item->valuestring = strdup(text);
        if (item->valuestring == NULL) {
            return status_set(STATUS_MEMORY, "out of memory writing %s", where);
        }
        item->type =
            (item->type & ~0xFF) | cJSON_Raw; /* the bits above the type stay: who owns what */
    }
    return STATUS_OK;
}

enum status json_text_exact(const char *where, const cJSON *root, char **text) {
    cJSON *copy = cJSON_Duplicate(root, 1);
    if (copy == NULL) return status_set(STATUS_MEMORY, "out of memory writing %s", where);
    enum status status = numbers_to_text(where, copy);
    if (status == STATUS_OK) {
        *text = cJSON_Print(copy);
        if (*text == NULL) status = status_set(STATUS_MEMORY, "out of memory writing %s", where);
    }
    cJSON_Delete(copy);
    return status;
}
