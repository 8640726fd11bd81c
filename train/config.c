/* Values: defaults, one key from text and back, options, JSON. See train/config.h. */
#include "train/config.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "train/config_table.h"
#include "train/encode.h"

static enum status refuse(const struct config_key *key, const char *value) {
    char range[CONFIG_RANGE_BYTES], found[CONFIG_FOUND_BYTES], hint[TEXT_HINT_BYTES];
    const char *note = strpbrk(value, ";#") == NULL ? "" : "; a comment needs a line of its own";
    return status_set(STATUS_CONFIG, "%s: expected %s, found \"%s\"%s%s", key->name,
                      config_range(range, key), config_printable(found, value),
                      text_hint(hint, value, key->choices, config_choice_count(key)), note);
}

static enum status set_integer(const struct config_key *key, const char *value, int64_t *out) {
    char *end = NULL;
    if (!isdigit((unsigned char)value[value[0] == '-'])) return refuse(key, value);
    errno = 0;
    const long long number = strtoll(value, &end, 10);
    if (*end != '\0' || errno != 0 || number < key->minimum || number > key->maximum) {
        return refuse(key, value);
    }
    *out = number;
    return STATUS_OK;
}

static enum status set_real(const struct config_key *key, const char *value, double *out) {
    char *end = NULL;
    /* strtod alone would take white space, hexadecimal, "nan" and "inf" */
    if (value[0] == '\0' || value[strspn(value, "+-.0123456789eE")] != '\0') {
        return refuse(key, value);
    }
    errno = 0;
    const double number = strtod(value, &end);
    if (*end != '\0' || errno != 0 || number < key->low || number > key->high ||
        (key->low_open && number <= key->low) || (key->high_open && number >= key->high)) {
        return refuse(key, value);
    }
    *out = number;
    return STATUS_OK;
}

/* Index of value[0..length) among the choices, -1 if it is none. */
static int find_choice(const struct config_key *key, const char *value, size_t length) {
    for (int i = 0; key->choices[i] != NULL; i++) {
        if (strlen(key->choices[i]) == length && memcmp(key->choices[i], value, length) == 0) {
            return i;
        }
    }
    return -1;
}

static enum status set_set(const struct config_key *key, const char *value, int *out) {
    int set = 0;
    if (strcmp(value, "none") == 0) {
        *out = 0;
        return STATUS_OK;
    }
    for (const char *item = value;; ) {
        item += strspn(item, " ");
        const size_t length = strcspn(item, ", ");
        const int choice = find_choice(key, item, length);
        if (choice < 0 || (set >> choice & 1) != 0) return refuse(key, value);
        set |= 1 << choice;
        item += length;
        item += strspn(item, " ");
        if (*item == '\0') break;
        if (*item++ != ',') return refuse(key, value);
    }
    *out = set;
    return STATUS_OK;
}

static enum status set_text(const struct config_key *key, const char *value, char *out) {
    const size_t length = strlen(value);
    char found[CONFIG_FOUND_BYTES];
    if (length >= CONFIG_TEXT_BYTES) {
        return status_set(STATUS_CONFIG, "%s: expected at most %d bytes of text, found %zu: \"%s\"",
                          key->name, CONFIG_TEXT_BYTES - 1, length, config_printable(found, value));
    }
    for (size_t i = 0; i < length; ) {
        const size_t sequence = utf8_sequence(value + i, length - i);
        const unsigned char byte = (unsigned char)value[i];
        const bool control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7F;
        if (sequence == 0 || control) {
            return status_set(STATUS_CONFIG,
                              "%s: expected UTF-8 text without control characters, found the byte "
                              "0x%02X at place %zu of \"%s\"",
                              key->name, byte, i + 1, config_printable(found, value));
        }
        i += sequence;
    }
    memcpy(out, value, length + 1);
    return STATUS_OK;
}

static enum status set_key(struct config *config, const struct config_key *key, const char *value) {
    void *place = (char *)config + key->offset;
    switch (key->type) {
    case CONFIG_INTEGER:
        return set_integer(key, value, place);
    case CONFIG_REAL:
        return set_real(key, value, place);
    case CONFIG_CHOICE: {
        const int choice = find_choice(key, value, strlen(value));
        if (choice < 0) return refuse(key, value);
        *(int *)place = choice;
        return STATUS_OK;
    }
    case CONFIG_SET:
        return set_set(key, value, place);
    case CONFIG_TEXT:
        return set_text(key, value, place);
    }
    return status_set(STATUS_INTERNAL, "%s: the table has a key of no type", key->name);
}

enum status config_set(struct config *config, const char *name, const char *value) {
    const struct config_key *key = config_key_find(name);
    if (key == NULL) {
        char found[CONFIG_FOUND_BYTES], hint[TEXT_HINT_BYTES];
        return status_set(STATUS_CONFIG, "unknown key \"%s\"%s", config_printable(found, name),
                          config_hint(hint, name));
    }
    return set_key(config, key, value);
}

void config_defaults(struct config *config) {
    memset(config, 0, sizeof *config);
    for (size_t i = 0; i < config_key_count; i++) {
        /* cannot fail: config_test sets every default */
        (void)set_key(config, &config_keys[i], config_keys[i].default_text);
    }
}

const char *config_value(char text[CONFIG_TEXT_BYTES], const struct config *config,
                         const struct config_key *key) {
    const void *place = (const char *)config + key->offset;
    size_t used = 0;
    switch (key->type) {
    case CONFIG_INTEGER:
        snprintf(text, CONFIG_TEXT_BYTES, "%" PRId64, *(const int64_t *)place);
        break;
    case CONFIG_REAL: {
        char number[REAL_TEXT_BYTES];
        snprintf(text, CONFIG_TEXT_BYTES, "%s", real_text(number, *(const double *)place));
        break;
    }
    case CONFIG_CHOICE:
        snprintf(text, CONFIG_TEXT_BYTES, "%s", key->choices[*(const int *)place]);
        break;
    case CONFIG_SET:
        for (int i = 0; key->choices[i] != NULL; i++) {
            if ((*(const int *)place >> i & 1) == 0) continue;
            used += (size_t)snprintf(text + used, CONFIG_TEXT_BYTES - used, "%s%s",
                                     used == 0 ? "" : ",", key->choices[i]);
        }
        if (used == 0) snprintf(text, CONFIG_TEXT_BYTES, "none");
        break;
    case CONFIG_TEXT:
        snprintf(text, CONFIG_TEXT_BYTES, "%s", (const char *)place);
        break;
    }
    return text;
}

enum status config_option(struct config *config, int argc, char *const *argv, int *index) {
    const char *option = argv[*index];
    char found[CONFIG_FOUND_BYTES], name[CONFIG_FOUND_BYTES];
    if (strncmp(option, "--", 2) != 0) {
        return status_set(STATUS_CONFIG, "expected an option, --section.key value, found \"%s\"",
                          config_printable(found, option));
    }
    const size_t length = strcspn(option + 2, "=");
    snprintf(name, sizeof name, "%.*s", length < sizeof name ? (int)length : (int)sizeof name - 1,
             option + 2);
    const char *value = NULL;
    if (option[2 + length] == '=') {
        value = option + 2 + length + 1;
    } else if (config_key_find(name) == NULL) {
        value = ""; /* the name is what is wrong, not the value: config_set says so */
    } else if (*index + 1 < argc && strncmp(argv[*index + 1], "--", 2) != 0) {
        value = argv[++*index];
    } else {
        const bool more = *index + 1 < argc;
        return status_set(STATUS_CONFIG,
                          "option --%s: expected a value, found %s; write --%s=VALUE for a value "
                          "that starts with --", name,
                          more ? config_printable(found, argv[*index + 1]) : "nothing", name);
    }
    TRY(config_set(config, name, value));
    ++*index;
    return STATUS_OK;
}

cJSON *config_to_json(const struct config *config) {
    cJSON *object = cJSON_CreateObject();
    for (size_t i = 0; object != NULL && i < config_key_count; i++) {
        char text[CONFIG_TEXT_BYTES];
        const struct config_key *key = &config_keys[i];
        if (cJSON_AddStringToObject(object, key->name, config_value(text, config, key)) == NULL) {
            cJSON_Delete(object);
            object = NULL;
        }
    }
    return object;
}

enum status config_from_json(struct config *config, const cJSON *object) {
    if (!cJSON_IsObject(object)) {
        return status_set(STATUS_CONFIG, "the saved configuration is no JSON object");
    }
    for (const cJSON *item = object->child; item != NULL; item = item->next) {
        if (!cJSON_IsString(item)) {
            char found[CONFIG_FOUND_BYTES];
            return status_set(STATUS_CONFIG,
                              "the saved configuration: expected text as the value of \"%s\"",
                              config_printable(found, item->string));
        }
        const enum status status = config_set(config, item->string, item->valuestring);
        if (status != STATUS_OK) return status_context(status, "the saved configuration");
    }
    return STATUS_OK;
}
