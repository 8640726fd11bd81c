/* The one table of configuration keys; read by the config_*.c files only (and by their tests). */
#ifndef DEEPWELL_TRAIN_CONFIG_TABLE_H_
#define DEEPWELL_TRAIN_CONFIG_TABLE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/text.h"
#include "train/config.h"

enum config_type {
    CONFIG_INTEGER, /* int64_t */
    CONFIG_REAL,    /* double */
    CONFIG_CHOICE,  /* int: index into choices */
    CONFIG_SET,     /* int: bit i for choices[i]; written as a list with commas, "none" if empty */
    CONFIG_TEXT,    /* char[CONFIG_TEXT_BYTES] */
};

struct config_key {
    const char *name; /* "section.key", or "key" above the first section */
    enum config_type type;
    size_t offset;    /* in struct config */
    const char *default_text;
    int64_t minimum, maximum;     /* CONFIG_INTEGER; maximum INT64_MAX: none */
    double low, high;             /* CONFIG_REAL */
    bool low_open, high_open;     /* the bound itself is not allowed */
    const char *const *choices;   /* ends with NULL */
    const char *help;
};

enum { CONFIG_KEYS_MAX = 128 };
extern const struct config_key config_keys[];
extern const size_t config_key_count;

/* Sections in the order of the table, without the one above the first header. */
extern const char *const config_sections[];
extern const size_t config_section_count;

/* The key of this name, or NULL. */
const struct config_key *config_key_find(const char *name);

/* " (did you mean train.steps?)", or a pointer to --help if nothing is near; `text` is room. */
const char *config_hint(char text[TEXT_HINT_BYTES], const char *name);

/* How many choices a key has; 0 unless it is a CONFIG_CHOICE or a CONFIG_SET. */
size_t config_choice_count(const struct config_key *key);

/* A value as it can stand in a message: shortened, nothing that a terminal would act on. */
enum { CONFIG_FOUND_BYTES = 64 };
const char *config_printable(char text[CONFIG_FOUND_BYTES], const char *value);

/* Length of the section's name in "section.key"; 0 for a key above the first section. */
size_t config_section_length(const char *name);

/* What a key accepts: "whole number, 1 to 1000", "auto, cpu or cuda", "text". */
enum { CONFIG_RANGE_BYTES = 160 };
const char *config_range(char text[CONFIG_RANGE_BYTES], const struct config_key *key);

/* The value of a key as config_set would read it. */
const char *config_value(char text[CONFIG_TEXT_BYTES], const struct config *config,
                         const struct config_key *key);

#endif
