/* flock(2) on RUN/.lock: behind checkpoints/run_lock.h. */
#include "checkpoints/run_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "checkpoints/layout.h"

enum { PID_TEXT_BYTES = 32 };

static enum status refuse(int file, const char *run_folder) {
    char text[PID_TEXT_BYTES] = "";
    const ssize_t got = pread(file, text, sizeof text - 1, 0);
    const long holder = got > 0 ? strtol(text, NULL, 10) : 0;
    if (holder <= 0) { /* it has the lock but has not written its number yet */
        return status_set(STATUS_IO,
                          "the run %s is in use by another process: stop it, or use another "
                          "folder",
                          run_folder);
    }
    return status_set(STATUS_IO,
                      "the run %s is in use by process %ld: stop it, or use another folder",
                      run_folder, holder);
}

enum status run_lock_acquire(struct run_lock *lock, const char *run_folder) {
    char path[PATH_BYTES], text[PID_TEXT_BYTES];
    enum status status = STATUS_OK;
    *lock = RUN_LOCK_NONE;
    TRY(layout_create_durable(run_folder));
    TRY(path_join(path, run_folder, ".lock"));
    const int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) return status_set(STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    if (flock(file, LOCK_EX | LOCK_NB) != 0) {
        status = errno == EWOULDBLOCK
                     ? refuse(file, run_folder)
                     : status_set(STATUS_IO, "cannot lock %s: %s", path, strerror(errno));
    } else {
        const int length = snprintf(text, sizeof text, "%ld\n", (long)getpid());
        if (ftruncate(file, 0) != 0 || pwrite(file, text, (size_t)length, 0) != length) {
            status = status_set(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
        }
    }
    if (status != STATUS_OK) {
        close(file);
        return status;
    }
    lock->file = file;
    return STATUS_OK;
}

void run_lock_release(struct run_lock *lock) {
    if (lock->file >= 0) close(lock->file);
    *lock = RUN_LOCK_NONE;
}
