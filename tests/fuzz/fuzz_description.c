/* Any bytes as dataset.json. Oracle: no crash and no report; what is accepted names a tokenizer in
 * its own folder and numbers that are none below 0. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/description.h"

/* A folder for this process, with a dataset.json that is a link to the input in memory. */
static const char *folder_once(void) {
    static char folder[PATH_BYTES];
    if (folder[0] != '\0') return folder;
    const char *base = getenv("TEST_TMPDIR");
    snprintf(folder, sizeof folder, "%s/fuzz_description-XXXXXX", base == NULL ? "/tmp" : base);
    if (mkdtemp(folder) == NULL) abort();
    return folder;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[PATH_BYTES], shard[PATH_BYTES];
    struct fuzz_file file;
    struct description description;
    bool known = false;
    if (path_join(path, folder_once(), "dataset.json") != STATUS_OK) abort();
    if (path_join(shard, folder_once(), "a.bin") != STATUS_OK) abort();
    fuzz_file_open(&file, data, size);
    (void)unlink(path);
    if (symlink(file.path, path) != 0) abort();
    if (description_open(&description, shard) == STATUS_OK) {
        if (description.vocabulary < 0 || description.end_of_text < 0) abort();
        if (strncmp(description.tokenizer, folder_once(), strlen(folder_once())) != 0 &&
            description.tokenizer[0] != '\0') {
            abort();
        }
        (void)description_check_shard(&description, shard, &known);
        (void)description_check_tokenizer(&description);
        description_close(&description);
    }
    fuzz_file_close(&file);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char *const texts[] = {
        "{\"tokenizer\":\"bytes\",\"vocabulary\":256,\"end_of_text\":0,\"shards\":["
        "{\"name\":\"a.bin\",\"split\":\"train\",\"tokens\":10,\"xxh3_128\":\"00\"}]}",
        "{\"tokenizer\":\"tokenizer.json\",\"tokenizer_xxh3_128\":\"00\",\"vocabulary\":50257,"
        "\"end_of_text\":50256}",
    };
    if (index >= sizeof texts / sizeof texts[0] || strlen(texts[index]) > capacity) return 0;
    memcpy(seed, texts[index], strlen(texts[index]));
    return strlen(texts[index]);
}
