/* The live line; see train/progress.h. */
#include "train/progress.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/text.h"
#include "base/utf8.h"

/* A terminal over a slow line must not be flooded by steps of a millisecond. */
#define REDRAW_SECONDS 0.1
#define ERASE_LINE "\r\x1b[K"

struct progress progress_open(FILE *out, int64_t steps, int64_t log_every, bool show_loss_scale) {
    const int file = fileno(out);
    return (struct progress){
        .out = out,
        .terminal = file >= 0 && isatty(file),
        .steps = steps,
        .log_every = log_every,
        .show_loss_scale = show_loss_scale,
    };
}

static int columns_of(FILE *out) {
    struct winsize size = {0};
    if (ioctl(fileno(out), TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
    return size.ws_col;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median of the last steps: one slow step, a cold cache say, does not move the estimate. */
static double typical_step_ms(const struct progress *progress) {
    double sorted[PROGRESS_WINDOW];
    const size_t count = size_min((size_t)progress->seen, PROGRESS_WINDOW);
    memcpy(sorted, progress->recent_ms, count * sizeof sorted[0]);
    qsort(sorted, count, sizeof sorted[0], compare_doubles);
    return count % 2 == 1 ? sorted[count / 2] : 0.5 * (sorted[count / 2 - 1] + sorted[count / 2]);
}

static const char *skip_text(enum step_skip skip) {
    switch (skip) {
    case SKIP_NONE: return "";
    case SKIP_NONFINITE: return "  skipped: not finite";
    case SKIP_LOSS_OUTLIER: return "  skipped: loss outlier";
    case SKIP_NORM_OUTLIER: return "  skipped: norm outlier";
    case SKIP_HALTED: return "  skipped: halted";
    }
    return "";
}

const char *progress_line(const struct progress *progress, const struct step_record *record,
                          char line[PROGRESS_LINE_BYTES]) {
    char rate[TEXT_BYTES], mfu[MFU_TEXT_BYTES], left[TEXT_BYTES], scale[48] = "", tail[48] = "";
    char exposed[48] = "";
    const bool countable = record->tokens_per_s >= 0.0 && record->tokens_per_s < 1e18; /* no NaN */
    const double tokens_per_s = countable ? record->tokens_per_s : 0.0;
    const int decimals = record->tflops >= 100.0 ? 1 : record->tflops >= 1.0 ? 2 : 4;
    if (progress->show_loss_scale) {
        snprintf(scale, sizeof scale, "  scale %g", record->loss_scale);
    }
    if (record->ranks > 1) {
        snprintf(exposed, sizeof exposed, "  exposed %.1f ms", record->comm_exposed_ms);
    }
    if (progress->seen > 0 && record->step < progress->steps) {
        const double ms = typical_step_ms(progress) * (double)(progress->steps - record->step);
        snprintf(tail, sizeof tail, "  %s left", text_duration(left, 1e-3 * ms));
    }
    snprintf(line, PROGRESS_LINE_BYTES,
             "step %" PRId64 "/%" PRId64 "%s  loss %.4f  lr %.2e  norm %.3g%s  %s tokens/s%s  "
             "%.*f TFLOPS  %s%s",
             record->step, progress->steps, tail, record->loss, record->learning_rate,
             record->gradient_norm, skip_text(record->skip),
             text_count(rate, (uint64_t)(tokens_per_s + 0.5)), exposed, decimals, record->tflops,
             mfu_text(mfu, &record->mfu), scale);
    return line;
}

/* How much of the line stands in so many columns: whole fields, which two spaces part, for half a
 * number says something else. The last column stays free: a character there would make some
 * terminals wrap. */
static int fitting(const char *line, int columns) {
    int end = columns - 1;
    if (strlen(line) < (size_t)columns) return end;
    while (end > 0 && memcmp(line + end, "  ", 2) != 0) end--;
    return end > 0 ? end : columns - 1;
}

static void draw(struct progress *progress) {
    const int columns = columns_of(progress->out);
    fprintf(progress->out, ERASE_LINE "%.*s", fitting(progress->line, columns), progress->line);
    fflush(progress->out);
    progress->drawn_seconds = clock_seconds();
}

void progress_step(struct progress *progress, const struct step_record *record) {
    progress->recent_ms[progress->seen % PROGRESS_WINDOW] = record->step_ms;
    progress->seen++;
    progress_line(progress, record, progress->line);
    const bool end = progress->seen == 1 || record->step == progress->steps;
    if (progress->terminal) {
        if (end || clock_seconds() - progress->drawn_seconds >= REDRAW_SECONDS) draw(progress);
    } else if (end || record->step % progress->log_every == 0) {
        fprintf(progress->out, "%s\n", progress->line);
        fflush(progress->out);
    }
}

/* A terminal acts on control characters, and text of a model may hold any: they become '?'. `text`
 * is valid UTF-8, where U+0080 to U+009F, controls too, are C2 80 to C2 9F. */
static void print_safely(const char *text, FILE *out) {
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        const bool control = (*c < 0x20 && *c != '\n' && *c != '\t') || *c == 0x7F;
        const bool control_of_two_bytes = *c == 0xC2 && c[1] < 0xA0;
        if (control_of_two_bytes) c++;
        fputc(control || control_of_two_bytes ? '?' : *c, out);
    }
}

void progress_message(struct progress *progress, const char *format, ...) {
    char *text = NULL, *valid = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0) text = NULL;
    va_end(arguments);
    if (text != NULL) valid = utf8_repaired(text);
    if (progress->terminal && progress->line[0] != '\0') fputs(ERASE_LINE, progress->out);
    print_safely(valid != NULL ? valid : "(no memory for a message)", progress->out);
    fputc('\n', progress->out);
    if (progress->terminal && progress->line[0] != '\0') draw(progress);
    fflush(progress->out);
    free(valid);
    free(text);
}

void progress_close(struct progress *progress) {
    if (progress->terminal && progress->line[0] != '\0') {
        draw(progress);
        fputc('\n', progress->out);
        fflush(progress->out);
    }
    progress->line[0] = '\0';
}
