/* Fuzz entry for checkpoints/hf_config.h. A configuration that is accepted must read back from its
 * own text. */
#include <stdlib.h>
#include <string.h>

#include "checkpoints/hf_config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_file input;
    struct hf_config config, again;
    fuzz_file_open(&input, data, size);
    const enum status status = hf_config_read(input.path, &config);
    fuzz_file_close(&input);
    if (status != STATUS_OK) return 0;
    char *text = hf_config_text(&config, "float32");
    if (text == NULL) abort();
    fuzz_file_open(&input, (const uint8_t *)text, strlen(text));
    if (hf_config_read(input.path, &again) != STATUS_OK || again.n_embd != config.n_embd ||
        again.vocab_size != config.vocab_size || again.eos_token_id != config.eos_token_id) {
        abort();
    }
    fuzz_file_close(&input);
    free(text);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    const struct hf_config configs[] = {
        {.vocab_size = 50257,
         .n_positions = 1024,
         .n_embd = 768,
         .n_layer = 12,
         .n_head = 12,
         .bos_token_id = 50256,
         .eos_token_id = 50256},
        {.vocab_size = 1,
         .n_positions = 1,
         .n_embd = 1,
         .n_layer = 1,
         .n_head = 1,
         .bos_token_id = -1,
         .eos_token_id = 0},
    };
    if (index >= sizeof configs / sizeof configs[0]) return 0;
    char *text = hf_config_text(&configs[index], "float32");
    if (text == NULL || strlen(text) > capacity) abort();
    const size_t size = strlen(text);
    memcpy(seed, text, size);
    free(text);
    return size;
}
