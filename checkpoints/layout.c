/* The names in a run folder: behind checkpoints/layout.h. */
#include "checkpoints/layout.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STEP_NAME_BYTES = 64, STEP_DIGITS_MAX = 15 };

static const char step_prefix[] = "step_";

static const struct {
    enum layout_kind kind;
    const char *infix; /* between the step and the process id */
} side_kinds[] = {
    {LAYOUT_TEMPORARY, ".tmp-"},
    {LAYOUT_DAMAGED, ".damaged-"},
    {LAYOUT_DELETING, ".deleting-"},
};
enum { SIDE_KINDS = sizeof side_kinds / sizeof side_kinds[0] };

static void step_name(char out[STEP_NAME_BYTES], int64_t step) {
    snprintf(out, STEP_NAME_BYTES, "%s%08" PRId64, step_prefix, step);
}

enum layout_kind layout_kind(const char *name, int64_t *step) {
    char canonical[STEP_NAME_BYTES];
    const size_t prefix = sizeof step_prefix - 1;
    if (strncmp(name, step_prefix, prefix) != 0) return LAYOUT_OTHER;
    const size_t digits = strspn(name + prefix, "0123456789");
    if (digits == 0 || digits > STEP_DIGITS_MAX) return LAYOUT_OTHER;
    const int64_t value = strtoll(name + prefix, NULL, 10);
    const char *rest = name + prefix + digits;
    step_name(canonical, value);
    if (strlen(canonical) != prefix + digits) return LAYOUT_OTHER; /* zeros too many or too few */
    *step = value;
    if (*rest == '\0') return LAYOUT_STEP;
    for (size_t i = 0; i < SIDE_KINDS; i++) {
        if (strncmp(rest, side_kinds[i].infix, strlen(side_kinds[i].infix)) == 0) {
            return side_kinds[i].kind;
        }
    }
    return LAYOUT_OTHER;
}

enum status layout_step_path(char out[PATH_BYTES], const char *run_folder, int64_t step) {
    char name[STEP_NAME_BYTES];
    step_name(name, step);
    return path_join(out, run_folder, name);
}

enum status layout_free_path(char out[PATH_BYTES], const char *run_folder, int64_t step,
                             enum layout_kind kind) {
    char name[STEP_NAME_BYTES], full[2 * STEP_NAME_BYTES];
    const char *infix = "";
    for (size_t i = 0; i < SIDE_KINDS; i++) {
        if (side_kinds[i].kind == kind) infix = side_kinds[i].infix;
    }
    step_name(name, step);
    /* The process id alone is not enough: in a container it is the same after every restart. */
    for (unsigned attempt = 0;; attempt++) {
        struct stat info;
        snprintf(full, sizeof full, "%s%s%ld-%u", name, infix, (long)getpid(), attempt);
        TRY(path_join(out, run_folder, full));
        if (lstat(out, &info) == 0) continue;
        if (errno == ENOENT) return STATUS_OK;
        return status_set(STATUS_IO, "cannot look at %s: %s", out, strerror(errno));
    }
}

static int newest_first(const void *a, const void *b) {
    const int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left < right) - (left > right);
}

enum status layout_steps(const char *run_folder, int64_t **steps, size_t *count) {
    char **names = NULL;
    size_t name_count = 0, used = 0;
    struct stat info;
    *steps = NULL;
    *count = 0;
    if (stat(run_folder, &info) != 0 && errno == ENOENT) return STATUS_OK;
    TRY(folder_list(run_folder, &names, &name_count));
    int64_t *list = malloc((name_count + 1) * sizeof *list);
    if (list == NULL) {
        names_free(names, name_count);
        return status_set(STATUS_MEMORY, "out of memory listing %s", run_folder);
    }
    for (size_t i = 0; i < name_count; i++) {
        if (layout_kind(names[i], &list[used]) == LAYOUT_STEP) used++;
    }
    names_free(names, name_count);
    qsort(list, used, sizeof *list, newest_first);
    *steps = list;
    *count = used;
    return STATUS_OK;
}

void layout_shard_name(char out[LAYOUT_SHARD_NAME_BYTES], size_t index, size_t count) {
    snprintf(out, LAYOUT_SHARD_NAME_BYTES, "optimizer-%05zu-of-%05zu.safetensors", index, count);
}

enum status layout_split(const char *path, char folder[PATH_BYTES], char name[PATH_BYTES]) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    if (length == 0 || length >= PATH_BYTES) {
        return status_set(STATUS_CONFIG, "expected a path of 1 to %d bytes, found %zu",
                          PATH_BYTES - 1, length);
    }
    memcpy(name, path, length);
    name[length] = '\0';
    char *slash = strrchr(name, '/');
    if (slash == NULL) {
        strcpy(folder, ".");
        return STATUS_OK;
    }
    const size_t above = slash == name ? 1 : (size_t)(slash - name);
    memcpy(folder, name, above);
    folder[above] = '\0';
    memmove(name, slash + 1, length - (size_t)(slash - name)); /* the NUL too */
    return STATUS_OK;
}

/* One level, in a folder that is there. */
static enum status create_level(const char *path) {
    char above[PATH_BYTES], name[PATH_BYTES];
    if (path_is_folder(path)) return STATUS_OK;
    TRY(layout_split(path, above, name));
    TRY(folder_create(path));
    return folder_sync(above);
}

enum status layout_create_durable(const char *path) {
    char part[PATH_BYTES];
    const size_t length = strlen(path);
    if (length == 0 || length >= sizeof part) {
        return status_set(STATUS_CONFIG, "expected a folder name of 1 to %d bytes, found %zu",
                          PATH_BYTES - 1, length);
    }
    memcpy(part, path, length + 1);
    for (char *slash = part + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        TRY(create_level(part));
        *slash = '/';
    }
    return create_level(part);
}
