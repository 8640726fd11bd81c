/* /proc and /sys readings behind kernels/host.h. A file that is not there sets no limit. */
#include "kernels/host.h"

#include <omp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/checked.h"

enum { FILE_TEXT_BYTES = 8192, FOLDER_BYTES = 1024 };

/* The start of a kernel file, which has no size to ask for; false if it cannot be read. */
static bool read_text(char text[FILE_TEXT_BYTES], const char *folder, const char *name) {
    char path[FOLDER_BYTES + 64];
    const int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (length < 0 || (size_t)length >= sizeof path) return false;
    FILE *file = fopen(path, "re");
    if (file == NULL) return false;
    const size_t got = fread(text, 1, FILE_TEXT_BYTES - 1, file);
    text[got] = '\0';
    fclose(file);
    return got > 0;
}

/* The number after `key` at the start of a line; false if there is none. "max" is no number. */
static bool find_number(const char *text, const char *key, size_t *value) {
    const size_t length = strlen(key);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, length) != 0) continue;
        char *end = NULL;
        const unsigned long long number = strtoull(line + length, &end, 10);
        if (end == line + length) return false;
        *value = (size_t)number;
        return true;
    }
    return false;
}

static bool read_number(const char *folder, const char *name, size_t *value) {
    char text[FILE_TEXT_BYTES];
    return read_text(text, folder, name) && text[0] != '-' && find_number(text, "", value);
}

/* Processors by quota / period of one group, 0 if it sets none. */
static size_t group_processors(const char *folder) {
    char text[FILE_TEXT_BYTES];
    unsigned long long quota = 0, period = 0;
    size_t quota_us = 0, period_us = 0;
    if (read_text(text, folder, "cpu.max")) {
        if (sscanf(text, "%llu %llu", &quota, &period) != 2) return 0; /* "max 100000" */
        quota_us = (size_t)quota;
        period_us = (size_t)period;
    } else if (!read_number(folder, "cpu.cfs_quota_us", &quota_us) ||
               !read_number(folder, "cpu.cfs_period_us", &period_us)) {
        return 0;
    }
    return period_us == 0 ? 0 : size_max(1, ceil_div(quota_us, period_us));
}

/* Memory left to one group, SIZE_MAX if it sets no limit. File pages not used lately can be
 * dropped. */
static size_t group_memory(const char *folder) {
    char text[FILE_TEXT_BYTES];
    size_t limit = 0, used = 0, droppable = 0;
    const bool second = read_number(folder, "memory.max", &limit) &&
                        read_number(folder, "memory.current", &used);
    if (!second && !(read_number(folder, "memory.limit_in_bytes", &limit) &&
                     read_number(folder, "memory.usage_in_bytes", &used))) {
        return SIZE_MAX;
    }
    if (read_text(text, folder, "memory.stat")) {
        find_number(text, second ? "inactive_file " : "total_inactive_file ", &droppable);
    }
    used -= size_min(used, droppable);
    return limit - size_min(limit, used);
}

struct group_limits {
    size_t processors; /* 0: none set */
    size_t memory_bytes;
};

/* The tightest limits of a group and all above it. Inside a container the path may be the host's
 * and the groups missing; the mount's root, always visited, is then the container's own group. */
static void groups_visit(const char *mount, const char *path, struct group_limits *limits) {
    char folder[FOLDER_BYTES];
    const int length = snprintf(folder, sizeof folder, "%s%s", mount, path);
    if (length < 0 || (size_t)length >= sizeof folder) return;
    for (;;) {
        const size_t processors = group_processors(folder);
        if (processors > 0 && (limits->processors == 0 || processors < limits->processors)) {
            limits->processors = processors;
        }
        limits->memory_bytes = size_min(limits->memory_bytes, group_memory(folder));
        char *slash = strrchr(folder + strlen(mount), '/');
        if (slash == NULL) break;
        *slash = '\0';
    }
}

/* Each line of /proc/self/cgroup is "number:controllers:path"; version 2 names no controllers. */
static struct group_limits group_limits_read(void) {
    struct group_limits limits = {0, SIZE_MAX};
    char text[FILE_TEXT_BYTES], *rest = NULL;
    if (!read_text(text, "/proc/self", "cgroup")) return limits;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        char *controllers = strchr(line, ':');
        char *path = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        if (path == NULL) continue;
        *path++ = '\0';
        controllers++;
        if (controllers[0] == '\0') {
            groups_visit("/sys/fs/cgroup", path, &limits);
        } else if (strcmp(controllers, "memory") == 0 || strncmp(controllers, "cpu", 3) == 0) {
            char mount[FOLDER_BYTES];
            snprintf(mount, sizeof mount, "/sys/fs/cgroup/%s", controllers);
            groups_visit(mount, path, &limits);
        }
    }
    return limits;
}

int host_threads(void) {
    size_t threads = (size_t)omp_get_num_procs(); /* counts the affinity mask */
    const char *wanted = getenv("OMP_NUM_THREADS");
    const long wanted_threads = wanted == NULL ? 0 : strtol(wanted, NULL, 10);
    if (wanted_threads > 0) threads = size_min(threads, (size_t)wanted_threads);
    const size_t quota = group_limits_read().processors;
    if (quota > 0) threads = size_min(threads, quota);
    return (int)size_max(1, threads);
}

size_t host_memory_free_bytes(void) {
    char text[FILE_TEXT_BYTES];
    size_t free_bytes = SIZE_MAX, available_kib = 0;
    if (read_text(text, "/proc", "meminfo") && find_number(text, "MemAvailable:", &available_kib)) {
        free_bytes = available_kib * 1024;
    }
    return size_min(free_bytes, group_limits_read().memory_bytes);
}

void host_cpu_name(char *name, size_t name_bytes) {
    char text[FILE_TEXT_BYTES];
    struct utsname machine;
    if (read_text(text, "/proc", "cpuinfo")) {
        const char *line = strstr(text, "model name");
        const char *value = line == NULL ? NULL : strstr(line, ": ");
        if (value != NULL) {
            snprintf(name, name_bytes, "%.*s", (int)strcspn(value + 2, "\n"), value + 2);
            return;
        }
    }
    snprintf(name, name_bytes, "%s", uname(&machine) == 0 ? machine.machine : "unknown processor");
}
