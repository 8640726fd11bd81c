/*
 * Files as the rooms above need them: whole-file reads with a limit, read-only mappings, folders,
 * and durable writes. Every failure is STATUS_IO with the path, the reason and what to do.
 */
#ifndef DEEPWELL_BASE_FILE_H_
#define DEEPWELL_BASE_FILE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { PATH_BYTES = 4096 };

/* out = "folder/name"; STATUS_CONFIG if it is longer than PATH_BYTES. */
enum status path_join(char out[PATH_BYTES], const char *folder, const char *name);

/* out = path; STATUS_CONFIG if it is longer than PATH_BYTES. */
enum status path_copy(char out[PATH_BYTES], const char *path);

/* out = "PATH.PID.tmp", what a file is called until it is whole; STATUS_CONFIG as above. */
enum status path_temporary(char out[PATH_BYTES], const char *path);

bool path_is_file(const char *path);
bool path_is_folder(const char *path);

/* Creates the folder and its parents; an existing folder is fine, an existing file is an error. */
enum status folder_create(const char *path);

/* The names (not paths) in a folder but "." and "..", sorted by bytes. Release with names_free. */
enum status folder_list(const char *path, char ***names, size_t *count);
void names_free(char **names, size_t count);

/* Removes a folder and all in it (no symbolic link is followed). A missing folder is fine. */
enum status folder_remove(const char *path);

/* The whole file and a terminating NUL; release with free(). A file above `limit_bytes` is
 * refused. */
enum status file_read(const char *path, size_t limit_bytes, char **text, size_t *bytes);

/* A read-only private mapping of a whole file. An empty file maps to data NULL, bytes 0. */
struct file_map {
    const unsigned char *data;
    size_t bytes;
};
enum status file_map_open(const char *path, struct file_map *map);
void file_map_close(struct file_map *map);

/* Before long work whose result goes there: a new file can be made at `path`. STATUS_IO if its
 * folder is not there or not writable, STATUS_CONFIG for what is there already. Nothing is made. */
enum status file_check_output(const char *path);

/* Writes the text as PATH.PID.tmp, fsyncs, renames it to `path`, fsyncs the folder. */
enum status file_write_durable(const char *path, const void *data, size_t bytes);

/* The exclusive lock (flock) of the file at `path`, which is made if need be and stays, empty. It
 * keeps out other processes that ask for it, and ends with the process. STATUS_IO if it cannot be
 * had within `seconds`. */
enum status file_lock(const char *path, double seconds, int *lock);
void file_unlock(int lock);

/* fsync of a folder, so that the names in it survive a crash. */
enum status folder_sync(const char *path);

#endif
