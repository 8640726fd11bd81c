/* What rendezvous.c (every rank) and rendezvous_first.c (rank 0) share, and nobody else needs. */
#ifndef DEEPWELL_TRAIN_RENDEZVOUS_PARTS_H_
#define DEEPWELL_TRAIN_RENDEZVOUS_PARTS_H_

#include <stddef.h>

#include "train/rendezvous.h"
#include "train/wire.h"

enum { RENDEZVOUS_PROTOCOL = 3, RENDEZVOUS_MESSAGE_BYTES = 768 };
static const uint64_t greeting_magic = 0x6c6c657770656564, verdict_magic = 0x74636964726576;
static const double
    greeting_seconds = 5.0, /* for a connection to say who it is */
    verdict_seconds = 5.0,  /* for a verdict to travel, and for clocks that differ */
    retry_seconds = 0.1;

/* What each rank says. Little-endian, as all of this program is. All up to `host` stays as it is in
 * every protocol, so that a rank of another build is told from a stranger. */
struct greeting {
    uint64_t magic, run, protocol;
    int32_t rank, world;
    char host[RENDEZVOUS_NAME_BYTES];
    char device[RENDEZVOUS_NAME_BYTES];
    uint64_t program;
};
/* What rank 0 answers. All up to `message` stays as it is; what is behind counts where all is well,
 * and so between equal builds. */
struct verdict {
    uint64_t magic;
    uint32_t status, blob_bytes;
    char host[RENDEZVOUS_NAME_BYTES];
    char message[RENDEZVOUS_MESSAGE_BYTES];
    unsigned char blob[RENDEZVOUS_BLOB_BYTES];
};
enum {
    GREETING_FROZEN_BYTES = offsetof(struct greeting, device),
    VERDICT_FROZEN_BYTES = offsetof(struct verdict, blob),
};
_Static_assert(GREETING_FROZEN_BYTES == 96 && VERDICT_FROZEN_BYTES == 848, "as ever");
_Static_assert(sizeof(struct greeting) == 32 + 128 + 8, "no padding travels");
_Static_assert(sizeof(struct verdict) ==
                   16 + 64 + RENDEZVOUS_MESSAGE_BYTES + RENDEZVOUS_BLOB_BYTES,
               "no padding travels");

struct greeting rendezvous_greeting(const struct rendezvous_options *options, uint64_t run);

/* Text from the network as it can stand in a message. */
void rendezvous_printable(char *text, size_t room);

/* The path of "file:PATH", or NULL. */
const char *rendezvous_file_of(const char *place);

void rendezvous_pause(void);

/* Rank 0's side of rendezvous_open(). */
enum status rendezvous_open_first(struct rendezvous *r, const struct rendezvous_options *options,
                                  void *blob, size_t blob_bytes);

#endif
