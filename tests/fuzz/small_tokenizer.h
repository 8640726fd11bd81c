/* A small valid tokenizer.json, for the entries that begin with one. */
#ifndef DEEPWELL_TESTS_FUZZ_SMALL_TOKENIZER_H_
#define DEEPWELL_TESTS_FUZZ_SMALL_TOKENIZER_H_

#include <stddef.h>
#include <stdio.h>

/* 256 bytes in their byte characters, some merges, two added tokens. Returns the size. */
static inline size_t small_tokenizer(char *out, size_t room, const char *pre_tokenizer) {
    unsigned other = 256;
    int used = snprintf(out, room, "{\"added_tokens\":[{\"id\":261,\"content\":\"<e>\",\"special\":"
                        "true},{\"id\":262,\"content\":\"ab\",\"lstrip\":true,"
                        "\"single_word\":true}],"
                        "\"pre_tokenizer\":%s,\"model\":{\"type\":\"BPE\",\"merges\":[\"t h\","
                        "\"th e\",[\"\xC4\xA0\",\"the\"],\"a a\",\"aa aa\"],\"vocab\":{",
                        pre_tokenizer);
    for (unsigned byte = 0; byte < 256; byte++) {
        const int visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        const unsigned c = visible ? byte : other++;
        char *at = out + used;
        const size_t left = room - (size_t)used;
        if (c >= 0x80) {
            used += snprintf(at, left, "\"%c%c\":%u,", 0xC0 | c >> 6, 0x80 | (c & 0x3F), byte);
        } else {
            used += snprintf(at, left, "\"%s%c\":%u,", c == '"' || c == '\\' ? "\\" : "", c, byte);
        }
    }
    used += snprintf(out + used, room - (size_t)used, "\"th\":256,\"the\":257,\"\xC4\xA0the\":258,"
                     "\"aa\":259,\"aaaa\":260}}}");
    return (size_t)used;
}

#endif
