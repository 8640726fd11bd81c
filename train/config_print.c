/* The table as people read it: effective configuration, --help, docs/configuration.md. */
#include <stdio.h>
#include <string.h>

#include "train/config.h"
#include "train/config_table.h"

/* True if the key opens a section that the key before it is not in. */
static bool opens_section(size_t i) {
    const char *name = config_keys[i].name;
    const size_t length = config_section_length(name);
    return length > 0 && (i == 0 || config_section_length(config_keys[i - 1].name) != length ||
                          memcmp(config_keys[i - 1].name, name, length) != 0);
}

static const char *word_of(const char *name) {
    const size_t section = config_section_length(name);
    return section == 0 ? name : name + section + 1;
}

static void print_text_value(const char *text, FILE *out) {
    const size_t length = strlen(text);
    const bool edge = length > 0 && (text[0] == '"' || text[0] == ' ' || text[length - 1] == ' ');
    const bool quoted = edge || strpbrk(text, "\n\t") != NULL;
    if (!quoted) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (const char *c = text; *c != '\0'; c++) {
        if (*c == '\n') fputs("\\n", out);
        else if (*c == '\t') fputs("\\t", out);
        else if (*c == '"' || *c == '\\') fprintf(out, "\\%c", *c);
        else fputc(*c, out);
    }
    fputc('"', out);
}

void config_print(const struct config *config, FILE *out) {
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        char value[CONFIG_TEXT_BYTES];
        if (opens_section(i)) {
            fprintf(out, "\n[%.*s]\n", (int)config_section_length(key->name), key->name);
        }
        fprintf(out, "%s = ", word_of(key->name));
        config_value(value, config, key);
        if (key->type == CONFIG_TEXT) print_text_value(value, out);
        else fputs(value, out);
        fputc('\n', out);
    }
}

void config_print_help(FILE *out) {
    fputs("Keys of a configuration file, each also an option: --train.steps 100. Later wins: "
          "defaults, file, options.\n", out);
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        char range[CONFIG_RANGE_BYTES];
        if (opens_section(i) || i == 0) {
            const int length = (int)config_section_length(key->name);
            if (length > 0) fprintf(out, "\n[%.*s]\n", length, key->name);
            else fputs("\n(above the first section)\n", out);
        }
        fprintf(out, "  --%s (default %s; %s)\n      %s\n", key->name,
                key->default_text[0] == '\0' ? "empty" : key->default_text,
                config_range(range, key), key->help);
    }
}

void config_print_markdown(FILE *out) {
    fputs("# Configuration\n\n"
          "<!-- Made from the table in train/config_table.c; do not edit. Make it anew with\n"
          "     bazel run //train:configuration_markdown > docs/configuration.md -->\n\n"
          "A run is a file like those in `configs/`: `[section]` headers, `key = value` lines, "
          "comments\non lines of their own after `#`. Every key is also an option: `steps` under "
          "`[train]` is\n`--train.steps 100` or `--train.steps=100`. Defaults come first, then the "
          "file, then the options;\nlater wins. An unknown key, a value out of bounds and a key "
          "that stands twice in a file are errors.\nA text value may stand in double quotes, with "
          "`\\n`, `\\t`, `\\\"` and `\\\\` inside.\n", out);
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        char range[CONFIG_RANGE_BYTES];
        if (opens_section(i) || i == 0) {
            const int length = (int)config_section_length(key->name);
            if (length > 0) fprintf(out, "\n## [%.*s]\n", length, key->name);
            else fputs("\n## Above the first section\n", out);
            fputs("| key | default | what it accepts | meaning |\n|-|-|-|-|\n", out);
        }
        const char *tick = key->default_text[0] == '\0' ? "" : "`";
        fprintf(out, "| `%s` | %s%s%s | %s | %s |\n", key->name, tick,
                key->default_text[0] == '\0' ? "empty" : key->default_text, tick,
                config_range(range, key), key->help);
    }
}
