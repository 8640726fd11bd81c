/* Numbers for files; see train/encode.h. */
#include "train/encode.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

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
