/* Patterns to sorted paths. */
#include "data/shard_paths.h"

#include <errno.h>
#include <glob.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

/* By bytes: glob's own order depends on the locale, and the order of the samples must not. */
static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Takes over `count` paths into a list of its own. */
static enum status copy_paths(char *const *from, size_t count, char ***paths) {
    char **list = calloc(count, sizeof *list);
    for (size_t i = 0; list != NULL && i < count; i++) {
        list[i] = strdup(from[i]);
        if (list[i] == NULL) {
            names_free(list, i);
            list = NULL;
        }
    }
    if (list == NULL) return status_set(STATUS_MEMORY, "out of memory for %zu file names", count);
    *paths = list;
    return STATUS_OK;
}

enum status shard_paths(const char *pattern, char ***paths, size_t *count) {
    if (path_is_folder(pattern)) {
        return status_set(STATUS_DATA, "expected a token shard or a pattern, found the folder %s: "
                          "give a pattern such as '%s/train*.bin'", pattern, pattern);
    }
    if (path_is_file(pattern)) { /* also a name that holds *, ? or [ */
        TRY(copy_paths((char *const *)&pattern, 1, paths));
        *count = 1;
        return STATUS_OK;
    }
    glob_t found;
    const int result = glob(pattern, GLOB_ERR | GLOB_NOSORT, NULL, &found);
    const bool no_folder = result == GLOB_ABORTED && (errno == ENOENT || errno == ENOTDIR);
    if (result == GLOB_NOMATCH || no_folder) {
        return status_set(STATUS_DATA, "expected token shards at '%s', found no such file: check "
                          "the path, or make shards with `deepwell data prepare`", pattern);
    }
    if (result == GLOB_NOSPACE) {
        return status_set(STATUS_MEMORY, "out of memory for the files of '%s'", pattern);
    }
    enum status status;
    if (result != 0) {
        status = status_set(STATUS_IO, "cannot read a folder of '%s': %s", pattern,
                            strerror(errno));
    } else {
        status = copy_paths(found.gl_pathv, found.gl_pathc, paths);
    }
    if (status == STATUS_OK) {
        *count = found.gl_pathc;
        qsort(*paths, *count, sizeof **paths, compare_paths);
    }
    globfree(&found);
    return status;
}
