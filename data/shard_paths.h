/* The shards that a pattern stands for. Used by the dataset and by `deepwell data info`. */
#ifndef DEEPWELL_DATA_SHARD_PATHS_H_
#define DEEPWELL_DATA_SHARD_PATHS_H_

#include <stddef.h>

#include "base/status.h"

/* `pattern`: a file, or a glob ("data/train_*.bin"). The paths are sorted by bytes, at least one;
 * release with names_free (base/file.h). STATUS_DATA if nothing matches or it is a folder. */
enum status shard_paths(const char *pattern, char ***paths, size_t *count);

#endif
