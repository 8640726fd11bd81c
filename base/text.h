/* Numbers and names as people read them: for console lines and error messages. */
#ifndef DEEPWELL_BASE_TEXT_H_
#define DEEPWELL_BASE_TEXT_H_

#include <stddef.h>
#include <stdint.h>

enum { TEXT_BYTES = 32 }; /* room for anything that the functions below write */

/* Each writes into `text` and returns it. */
const char *text_bytes(char text[TEXT_BYTES], size_t bytes);        /* "512 B", "1.50 MiB" */
const char *text_count(char text[TEXT_BYTES], uint64_t count);      /* "124,439,808" */
const char *text_duration(char text[TEXT_BYTES], double seconds); /* "1:02:03", "4:05", "850 ms" */

/* "a, b or c" for `last` = " or ", as far as there is room. Returns `text`. */
const char *text_list(char *text, size_t room, const char *const *names, size_t count,
                      const char *last);

/* The entry of names[0..count) nearest to `name`, or NULL if none is near: where more than a third
 * of the letters is wrong it is another word. Two letters that changed places are one mistake. */
const char *text_nearest(const char *name, const char *const *names, size_t count);

/* " (did you mean train.steps?)" for the nearest, or "". Returns `text`. */
enum { TEXT_HINT_BYTES = 96 };
const char *text_hint(char text[TEXT_HINT_BYTES], const char *name, const char *const *names,
                      size_t count);

#endif
