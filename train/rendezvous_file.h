/*
 * The file of `comm.rendezvous = file:PATH`: where rank 0 listens, for ranks that share storage but
 * know no address. Rank 0 writes it whole (a rename) under a lock that keeps out a second run that
 * starts through the same file, and removes it once all are in; one that a killed run left behind
 * is replaced, and who reads it before finds nobody with its number. Called by rendezvous.c.
 */
#ifndef DEEPWELL_TRAIN_RENDEZVOUS_FILE_H_
#define DEEPWELL_TRAIN_RENDEZVOUS_FILE_H_

#include <stddef.h>
#include <stdint.h>

#include "train/wire.h"

enum { RENDEZVOUS_ADDRESSES_MAX = 16, RENDEZVOUS_FILE_BYTES_MAX = 8192 };

struct rendezvous_file {
    uint64_t run; /* drawn by rank 0: a file of another run has another */
    struct wire_address addresses[RENDEZVOUS_ADDRESSES_MAX];
    size_t count;
};

/* Rank 0: locks, refuses to replace a file that is no rendezvous file (STATUS_CONFIG), and writes
 * all addresses of this host with `port`. */
enum status rendezvous_file_publish(const char *path, int port, uint64_t *run, int *lock);
void rendezvous_file_withdraw(const char *path, int lock);

/* The others. STATUS_RANKS if there is none yet, STATUS_CONFIG if it is something else. */
enum status rendezvous_file_read(const char *path, struct rendezvous_file *out);

/* The same from memory; `label` stands for the file in messages. Any bytes. */
enum status rendezvous_file_parse(const char *label, const char *text, size_t bytes,
                                  struct rendezvous_file *out);

#endif
