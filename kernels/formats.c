/* Names of number formats, behind kernels/formats.h. */
#include "kernels/formats.h"

const char *format_name(enum number_format format) {
    switch (format) {
    case FORMAT_E4M3: return "e4m3";
    case FORMAT_E5M2: return "e5m2";
    case FORMAT_E2M1: return "e2m1";
    }
    return "unknown";
}
