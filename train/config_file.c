/*
 * Configuration files: INI, read by inih through a reader of our own that counts lines (for
 * messages) and refuses what inih would let pass in silence: lines longer than its buffer, zero
 * bytes, unknown sections, text behind a section's header. Comments stand on lines of their own,
 * after # or ;.
 *
 * A text value may stand in double quotes, with \n, \t, \" and \\ inside; it must if it starts with
 * a quote, or starts or ends with white space.
 */
#include <ctype.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "train/config.h"
#include "train/config_table.h"

/* A quoted value is at most twice as long as its text; the rest is the key and white space. */
enum { LINE_BYTES = 2 * CONFIG_TEXT_BYTES + 512, FILE_BYTES_MAX = 1 << 20 };

struct parse {
    struct config *config;
    const char *label;
    const char *next, *end; /* the text not read yet */
    int line;
    int seen_at[CONFIG_KEYS_MAX]; /* line that set key i, 0: none */
    enum status status;     /* the first error; its message is this thread's */
};

static void fail(struct parse *parse, enum status status) {
    parse->status = status_context(status, "%s:%d", parse->label, parse->line);
}

/* A line that starts with '[' must be exactly the header of a section that there is. */
static enum status check_section(const char *line, size_t length) {
    const char *names = line + 1, *close = memchr(line, ']', length);
    if (close == NULL) {
        return status_set(STATUS_CONFIG, "expected \"]\" at the end of the section's name");
    }
    for (const char *rest = close + 1; rest < line + length; rest++) {
        if (!isspace((unsigned char)*rest)) {
            return status_set(STATUS_CONFIG, "expected nothing behind the section's name; a "
                              "comment needs a line of its own");
        }
    }
    const size_t name_length = (size_t)(close - names);
    for (size_t i = 0; i < config_section_count; i++) {
        if (strlen(config_sections[i]) == name_length &&
            memcmp(config_sections[i], names, name_length) == 0) {
            return STATUS_OK;
        }
    }
    char name[CONFIG_FOUND_BYTES], found[CONFIG_FOUND_BYTES], expected[256];
    size_t used = 0;
    for (size_t i = 0; i < config_section_count; i++) {
        used += (size_t)snprintf(expected + used, sizeof expected - used, "%s%s",
                                 i == 0 ? "" : ", ", config_sections[i]);
    }
    snprintf(name, sizeof name, "%.*s", (int)size_min(name_length, sizeof name - 1), names);
    return status_set(STATUS_CONFIG, "unknown section [%s]; expected one of %s",
                      config_printable(found, name), expected);
}

/* inih's fgets: the next line of the text, or NULL at its end and at an error. */
static char *read_line(char *buffer, int room, void *stream) {
    struct parse *parse = stream;
    if (parse->next == parse->end || parse->status != STATUS_OK) return NULL;
    const char *newline = memchr(parse->next, '\n', (size_t)(parse->end - parse->next));
    const char *after = newline == NULL ? parse->end : newline + 1;
    const size_t length = (size_t)(after - parse->next);
    parse->line++;
    if (length + 1 > (size_t)room) {
        fail(parse, status_set(STATUS_CONFIG, "expected a line of at most %d bytes, found %zu",
                               room - 1, length));
        return NULL;
    }
    if (memchr(parse->next, '\0', length) != NULL) {
        fail(parse, status_set(STATUS_CONFIG, "expected text, found a zero byte: is this a "
                               "configuration file?"));
        return NULL;
    }
    memcpy(buffer, parse->next, length);
    buffer[length] = '\0';
    parse->next = after;
    const size_t indent = strspn(buffer, " \t");
    if (buffer[indent] == '[') {
        const enum status status = check_section(buffer + indent, length - indent);
        if (status != STATUS_OK) {
            fail(parse, status);
            return NULL;
        }
    }
    return buffer;
}

/* Undoes the quotes around a text value; `text` has room for any line. */
static enum status unquote(const char *value, char *text) {
    const char *in = value + 1;
    char *out = text;
    for (; *in != '"' && *in != '\0'; in++) {
        char byte = *in;
        if (byte == '\\') {
            byte = *++in;
            if (byte == 'n') byte = '\n';
            else if (byte == 't') byte = '\t';
            else if (byte != '"' && byte != '\\') break;
        }
        *out++ = byte;
    }
    *out = '\0';
    if (in[0] == '"' && in[1] == '\0') return STATUS_OK;
    char found[CONFIG_FOUND_BYTES];
    return status_set(STATUS_CONFIG, "expected \" at the end and only \\n, \\t, \\\" and \\\\ as "
                      "escapes in a quoted text, found %s", config_printable(found, value));
}

static enum status set_from_file(struct parse *parse, const char *name, const char *value) {
    const struct config_key *key = config_key_find(name);
    if (key != NULL) {
        int *seen_at = &parse->seen_at[key - config_keys];
        if (*seen_at != 0) {
            return status_set(STATUS_CONFIG, "%s is set twice, here and on line %d: remove one",
                              name, *seen_at);
        }
        *seen_at = parse->line;
        if (key->type == CONFIG_TEXT && value[0] == '"') {
            char text[LINE_BYTES];
            TRY(unquote(value, text));
            return config_set(parse->config, name, text);
        }
    }
    return config_set(parse->config, name, value);
}

/* inih's handler: nonzero to go on. */
static int handle_key(void *user, const char *section, const char *key, const char *value) {
    struct parse *parse = user;
    char name[128]; /* inih cuts section and key at 49 bytes; no key of ours is that long */
    if (parse->status != STATUS_OK) return 0;
    snprintf(name, sizeof name, "%s%s%s", section, section[0] == '\0' ? "" : ".", key);
    const enum status status = set_from_file(parse, name, value);
    if (status != STATUS_OK) fail(parse, status);
    return parse->status == STATUS_OK;
}

enum status config_load_text(struct config *config, const char *label, const char *text,
                             size_t bytes) {
    static const char byte_order_mark[] = "\xEF\xBB\xBF";
    struct config read = *config; /* an error leaves the caller's as it was */
    struct parse parse = {.config = &read, .label = label, .next = text, .end = text + bytes};
    if (bytes >= 3 && memcmp(text, byte_order_mark, 3) == 0) parse.next += 3;
    ini_allow_multiline = false; /* an indented line is a line like any other */
    ini_allow_inline_comments = false; /* a prompt may hold " ;" */
    ini_stop_on_first_error = true;
    ini_use_stack = false;
    ini_allow_realloc = false;
    ini_initial_alloc = LINE_BYTES;
    ini_max_line = LINE_BYTES;
    const int result = ini_parse_stream(read_line, &parse, handle_key, &parse);
    TRY(parse.status);
    if (result < 0) return status_set(STATUS_MEMORY, "out of memory reading %s", label);
    if (result > 0) {
        return status_set(STATUS_CONFIG,
                          "%s:%d: expected \"key = value\", \"[section]\" or a comment after #",
                          label, result);
    }
    *config = read;
    return STATUS_OK;
}

/* A run's folder is what people name where its configuration is wanted. */
static enum status refuse_folder(const char *path) {
    char saved[PATH_BYTES];
    TRY(path_join(saved, path, CONFIG_SAVED_NAME));
    if (!path_is_file(saved)) {
        return status_set(STATUS_CONFIG, "expected a configuration file, found the folder %s",
                          path);
    }
    return status_set(STATUS_CONFIG,
                      "expected a configuration file, found the run's folder %s: "
                      "give %s, with which `deepwell train` continues that run",
                      path, saved);
}

enum status config_load(struct config *config, const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    if (path_is_folder(path)) return refuse_folder(path);
    const enum status read = file_read(path, FILE_BYTES_MAX, &text, &bytes);
    if (read == STATUS_MEMORY) return read;
    if (read != STATUS_OK) return status_context(STATUS_CONFIG, "the configuration file");
    const enum status status = config_load_text(config, path, text, bytes);
    free(text);
    return status;
}
