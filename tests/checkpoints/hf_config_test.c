/*
 * config.json, read and written, and the JSON helpers underneath.
 * Oracle: closed form. Each case changes one key of a valid file and must be refused with that key
 * named; numbers must come back with the same bits.
 */
#include "checkpoints/hf_config.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "checkpoints/json.h"
#include "tests/checkpoints/fixture.h"

static const struct hf_config small = {.vocab_size = 50257,
                                       .n_positions = 1024,
                                       .n_embd = 768,
                                       .n_layer = 12,
                                       .n_head = 12,
                                       .bos_token_id = 50256,
                                       .eos_token_id = -1};

static void written_for_transformers(void **unused) {
    (void)unused;
    static const char *const parts[] = {
        "\"architectures\":\t[\"GPT2LMHeadModel\"]",
        "\"model_type\":\t\"gpt2\"",
        "\"vocab_size\":\t50257",
        "\"n_positions\":\t1024",
        "\"n_embd\":\t768",
        "\"n_layer\":\t12",
        "\"n_head\":\t12",
        "\"n_inner\":\tnull",
        "\"activation_function\":\t\"gelu_new\"",
        "\"layer_norm_epsilon\":\t1e-05",
        "\"tie_word_embeddings\":\ttrue",
        "\"resid_pdrop\":\t0",
        "\"embd_pdrop\":\t0",
        "\"attn_pdrop\":\t0",
        "\"bos_token_id\":\t50256",
        "\"eos_token_id\":\tnull",
        "\"torch_dtype\":\t\"float32\"",
    };
    char *text = hf_config_text(&small, "float32");
    assert_non_null(text);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (strstr(text, parts[i]) == NULL) fail_msg("no %s in %s", parts[i], text);
    }
    free(text);
}

static void read_as_written(void **state) {
    const char *path = *state;
    struct hf_config found;
    char *text = hf_config_text(&small, "float32");
    test_write_file(path, text, strlen(text));
    free(text);
    memset(&found, 0xFF, sizeof found);
    assert_int_equal(hf_config_read(path, &found), STATUS_OK);
    assert_memory_equal(&found, &small, sizeof small);
}

/* What a published file may leave out, and what it may have more. */
static void absent_keys_have_defaults(void **state) {
    const char *path = *state;
    const char *text = "{\"model_type\":\"gpt2\",\"vocab_size\":10,\"n_positions\":8,\"n_embd\":4,"
                       "\"n_layer\":1,\"n_head\":2,\"n_inner\":16,\"n_ctx\":8,\"resid_pdrop\":0.1,"
                       "\"task_specific_params\":{\"a\":[1]}}";
    struct hf_config found;
    test_write_file(path, text, strlen(text));
    assert_int_equal(hf_config_read(path, &found), STATUS_OK);
    assert_int_equal(found.n_head, 2);
    assert_int_equal(found.bos_token_id, -1);
    assert_int_equal(found.eos_token_id, -1);
}

static void one_wrong_key(void **state) {
    static const struct {
        const char *key, *value; /* NULL: removed */
        const char *reason;
    } cases[] = {
        {"model_type", "\"llama\"", "model_type \"gpt2\", found \"llama\""},
        {"model_type", NULL, "model_type"},
        {"model_type", "7", "model_type"},
        {"activation_function", "\"gelu\"", "activation_function"},
        {"layer_norm_epsilon", "1e-6", "layer_norm_epsilon"},
        {"layer_norm_epsilon", "\"1e-5\"", "layer_norm_epsilon"},
        {"tie_word_embeddings", "false", "tie_word_embeddings to be true"},
        {"tie_word_embeddings", "1", "tie_word_embeddings"},
        {"scale_attn_weights", "false", "scale_attn_weights"},
        {"scale_attn_by_inverse_layer_idx", "true", "scale_attn_by_inverse_layer_idx to be false"},
        {"reorder_and_upcast_attn", "true", "reorder_and_upcast_attn"},
        {"add_cross_attention", "true", "add_cross_attention"},
        {"n_inner", "3071", "4 n_embd = 3072, found 3071"},
        {"n_inner", "\"3072\"", "n_inner"},
        {"vocab_size", NULL, "\"vocab_size\""},
        {"vocab_size", "0", "from 1 to 16777216, found 0"},
        {"vocab_size", "1e12", "found 1000000000000"},
        {"n_positions", "-1024", "found -1024"},
        {"n_embd", "768.5", "found 768.5"},
        {"n_embd", "1e999", "found inf"},
        {"n_layer", "null", "found null"},
        {"n_layer", "[12]", "found an array"},
        {"n_head", "\"12\"", "found a string"},
        {"n_head", "7", "n_head to divide n_embd 768, found 7"},
        {"bos_token_id", "50257", "bos_token_id to be a token below vocab_size 50257"},
        {"eos_token_id", "-1", "eos_token_id"},
        {"eos_token_id", "[1, 2]", "eos_token_id"},
    };
    const char *path = *state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct hf_config found;
        char *text = hf_config_text(&small, "float32");
        cJSON *root = cJSON_Parse(text);
        cJSON_DeleteItemFromObjectCaseSensitive(root, cases[i].key);
        if (cases[i].value != NULL) cJSON_AddRawToObject(root, cases[i].key, cases[i].value);
        char *changed = cJSON_Print(root);
        test_write_file(path, changed, strlen(changed));
        expect_refused(hf_config_read(path, &found), STATUS_CHECKPOINT, cases[i].reason);
        free(changed);
        cJSON_Delete(root);
        free(text);
    }
}

static void not_even_json(void **state) {
    static const char *const texts[] = {"",      "{",  "[]", "7", "{\"model_type\":\"gpt2\"",
                                        "{} {}", "nul"};
    const char *path = *state;
    struct hf_config found;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        test_write_file(path, texts[i], strlen(texts[i]));
        expect_refused(hf_config_read(path, &found), STATUS_CHECKPOINT, "JSON");
    }
    const char *twice = "{\"model_type\":\"gpt2\",\"model_type\":\"llama\"}";
    test_write_file(path, twice, strlen(twice));
    expect_refused(hf_config_read(path, &found), STATUS_CHECKPOINT, "\"model_type\" stands twice");
    char *large = malloc((1 << 20) + 1);
    memset(large, ' ', (1 << 20) + 1);
    test_write_file(path, large, (1 << 20) + 1);
    expect_refused(hf_config_read(path, &found), STATUS_IO, "at most");
    free(large);
}

/* Every double with random bits, and those that printing with 15 digits gets wrong by its last
 * bit. */
static void numbers_keep_their_bits(void **unused) {
    (void)unused;
    enum { NUMBERS = 20000 };
    cJSON *root = cJSON_CreateObject(), *array = cJSON_AddArrayToObject(root, "numbers"),
          *back = NULL;
    double *numbers = malloc(NUMBERS * sizeof *numbers);
    for (size_t i = 0; i < NUMBERS; i++) {
        uint32_t words[4];
        random_words(3, RANDOM_TEST, i, words);
        memcpy(&numbers[i], words, sizeof numbers[i]);
        if (i % 2 == 0 || !isfinite(numbers[i])) { /* near a number of few digits */
            const double near = (double)(words[2] % 100000) / 1000.0;
            numbers[i] = words[3] % 2 == 0 ? nextafter(near, INFINITY) : near;
        }
        cJSON_AddItemToArray(array, cJSON_CreateNumber(numbers[i]));
    }
    char *text = NULL;
    assert_int_equal(json_text_exact("numbers", root, &text), STATUS_OK);
    assert_int_equal(json_parse("numbers", text, strlen(text), &back), STATUS_OK);
    const cJSON *item = cJSON_GetObjectItem(back, "numbers")->child;
    for (size_t i = 0; i < NUMBERS; i++, item = item->next) {
        assert_memory_equal(&item->valuedouble, &numbers[i], sizeof(double));
    }
    assert_null(item);
    cJSON_Delete(back);
    free(text);
    cJSON_AddItemToArray(array, cJSON_CreateNumber((double)INFINITY));
    expect_refused(json_text_exact("numbers", root, &text), STATUS_NUMERICS, "not finite");
    cJSON_Delete(root);
    free(numbers);
}

int main(void) {
    struct fixture fixture;
    char path[PATH_BYTES];
    fixture_open(&fixture);
    if (path_join(path, fixture.folder, "config.json") != STATUS_OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(written_for_transformers),
        cmocka_unit_test_prestate(read_as_written, path),
        cmocka_unit_test_prestate(absent_keys_have_defaults, path),
        cmocka_unit_test_prestate(one_wrong_key, path),
        cmocka_unit_test_prestate(not_even_json, path),
        cmocka_unit_test(numbers_keep_their_bits),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_close(&fixture);
    return failed;
}
