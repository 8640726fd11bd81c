/* Beginning and end of a recording; see train/recording.h. */
#include "train/recording.h"

#include <stdio.h>

enum status recording_make(struct device *device, enum status (*ask)(void *context), void *context,
                           struct device_recording **out) {
    char first[2048];
    struct device_recording *recording = NULL;
    *out = NULL;
    TRY(device_record_begin(device));
    const enum status status = ask(context);
    if (status != STATUS_OK) snprintf(first, sizeof first, "%s", status_message());
    const enum status ended = device_record_end(device, &recording);
    if (status == STATUS_OK && ended == STATUS_OK) {
        *out = recording;
        return STATUS_OK;
    }
    device_recording_close(device, recording);
    return status == STATUS_OK ? ended : status_set(status, "%s", first);
}
