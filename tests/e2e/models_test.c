/*
 * Models that go in and out: convert, train.init, eval of what another program left.
 * Oracle: bit equality of weights and losses with those of the run that they came from. That
 * transformers agrees is tools/check_transformers.py's to show.
 */
#include "tests/e2e/e2e.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *loss_of(const char *model, const char *options) {
    const struct outcome
        *outcome = e2e_expect(0, "",
                              "eval %s --data ../data/validation.bin --device cpu --train.batch 4 "
                              "--train.micro_batch 4 --precision.recipe fp32 %s",
                              model, options);
    const char *value = e2e_value(outcome->out, "loss");
    return strndup(value, strcspn(value, "\n"));
}

static void a_converted_model_computes_the_same(void **state) {
    (void)state;
    e2e_expect(0, "", "train ../tiny.conf");
    e2e_expect(0, "", "convert run out");
    e2e_assert_same_file("run/step_00000016/model.safetensors", "out/model.safetensors");
    e2e_expect(0, "", "convert out again");
    e2e_assert_same_file("out/model.safetensors", "again/model.safetensors");
    char *ours = loss_of("run", ""), *theirs = loss_of("out", "");
    assert_string_equal(ours, theirs);
    /* BF16 keeps 8 of 24 bits: near, not equal. */
    e2e_expect(0, "", "convert run narrow --to bf16");
    char *narrow = loss_of("narrow", "--logits narrow.safetensors");
    assert_true(strcmp(narrow, ours) != 0);
    assert_true(strtod(narrow, NULL) > strtod(ours, NULL) - 0.01 &&
                strtod(narrow, NULL) < strtod(ours, NULL) + 0.01);
    assert_true(path_is_file("narrow.safetensors"));
    e2e_expect(0, "", "sample out --tokens 4 --device cpu");
    e2e_expect(STATUS_CONFIG, "exists", "convert run out");
    /* said before the work, not behind it */
    const char *const late[] = {"eval run --logits nowhere/x",
                                "bench numerics ../tiny.conf --steps 1 --out nowhere/x"};
    for (size_t i = 0; i < sizeof late / sizeof late[0]; i++) {
        assert_string_equal(e2e_expect(STATUS_IO, "nowhere/x", "%s", late[i])->out, "");
    }
    e2e_expect(STATUS_CONFIG, "exists", "eval run --logits narrow.safetensors");
    e2e_expect(STATUS_CONFIG, "exists", "convert nowhere narrow");
    e2e_expect(STATUS_CONFIG, "fp32, bf16 or fp16", "convert run x --to int8");
    e2e_expect(STATUS_CHECKPOINT, "no model at nowhere", "convert nowhere x");
    e2e_expect(STATUS_CHECKPOINT, "holds no model", "convert ../data x");
    assert_false(path_is_folder("x"));
    free(ours);
    free(theirs);
    free(narrow);
}

/* Steps that change nothing show what a run began with; its own data, seed and steps count. */
static void a_run_starts_from_weights(void **state) {
    (void)state;
    static const char still[] = "--optimizer.learning_rate 0 --train.steps 2";
    e2e_expect(0, "", "train ../tiny.conf");
    const struct outcome
        *outcome = e2e_expect(0, "",
                              "train ../tiny.conf --init run --train.out tuned %s --train.seed 9 "
                              "--train.batch 2 --train.micro_batch 2",
                              still);
    e2e_assert_words("a run that starts from weights", outcome->out,
                     "weights from run/step_00000016|from step 0|step 2/2");
    e2e_assert_same_file("run/step_00000016/model.safetensors",
                         "tuned/step_00000002/model.safetensors");
    e2e_expect(0, "", "convert run out");
    e2e_expect(0, "", "train ../tiny.conf --init out --train.out tuned_too %s", still);
    e2e_assert_same_file("out/model.safetensors", "tuned_too/step_00000002/model.safetensors");
    /* The same command again, and without the option, continues. */
    e2e_expect(0, "",
               "train ../tiny.conf --init run --train.out tuned --train.seed 9 "
               "--train.batch 2 --train.micro_batch 2 --train.steps 3");
    e2e_expect(0, "",
               "train ../tiny.conf --train.out tuned --train.seed 9 --train.batch 2 "
               "--train.micro_batch 2 --train.steps 4");
    e2e_assert_steps("tuned", 4);
    e2e_expect(STATUS_CHECKPOINT, "--model.layers 2|--model.vocabulary 256|found 3",
               "train ../tiny.conf --init run --train.out odd --model.layers 3");
    e2e_expect(STATUS_CHECKPOINT, "train.init", "train ../tiny.conf --init none --train.out odd");
}

/* A damaged checkpoint is no source either. */
static void a_damaged_source_is_refused(void **state) {
    (void)state;
    size_t bytes = 0;
    e2e_expect(0, "", "train ../tiny.conf --checkpoint.every 0");
    char *data = e2e_read("run/step_00000016/model.safetensors", &bytes);
    data[bytes - 1] = (char)(data[bytes - 1] ^ 1);
    e2e_write("run/step_00000016/model.safetensors", data, bytes);
    free(data);
    e2e_expect(STATUS_CHECKPOINT, "altered", "convert run out");
    e2e_expect(STATUS_CHECKPOINT, "altered", "convert run/step_00000016 out");
    e2e_expect(STATUS_CHECKPOINT, "altered",
               "train ../tiny.conf --train.out new --init run/step_00000016");
    assert_int_equal(remove("run/step_00000016/manifest.json"), 0);
    e2e_expect(STATUS_CHECKPOINT, "manifest.json is missing", "convert run/step_00000016 out");
    e2e_expect(STATUS_CHECKPOINT, "holds no checkpoint", "eval run/step_00000016");
    assert_false(path_is_folder("out"));
}

/* The least byte-level tokenizer: a token for each byte, written as GPT-2's printable stand-ins;
 * and `more` JSON members of its vocabulary. */
static void write_tokenizer(const char *path, const char *more) {
    char *text = NULL;
    size_t bytes = 0;
    unsigned stand_in = 256;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    fputs("{\"version\": \"1.0\", \"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": "
          "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"decoder\": {\"type\": "
          "\"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {",
          out);
    for (unsigned byte = 0; byte < 256; byte++) {
        const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        fprintf(out, "%s\"\\u%04x\": %u", byte > 0 ? ", " : "", printable ? byte : stand_in, byte);
        if (!printable) stand_in++;
    }
    fprintf(out, "%s}}}", more);
    assert_int_equal(fclose(out), 0);
    e2e_write(path, text, bytes);
    free(text);
}

static void a_tokenizer_goes_along(void **state) {
    (void)state;
    size_t bytes = 0;
    assert_int_equal(folder_create("words"), STATUS_OK);
    write_tokenizer("words/tokenizer.json", "");
    e2e_expect(0, "", "train ../tiny.conf --data.tokenizer words");
    e2e_assert_same_file("words/tokenizer.json", "run/step_00000016/tokenizer.json");
    char *config = e2e_read("run/step_00000016/tokenizer_config.json", &bytes);
    e2e_assert_words("the configuration that was made", config, "PreTrainedTokenizerFast");
    free(config);
    e2e_expect(0, "", "convert run out");
    e2e_assert_same_file("words/tokenizer.json", "out/tokenizer.json");
    e2e_expect(0, "", "checkpoint verify run");
    assert_int_equal(folder_create("larger"), STATUS_OK);
    write_tokenizer("larger/tokenizer.json", ", \"zz\": 256");
    e2e_expect(STATUS_CONFIG, "at most 256 tokens|found 257",
               "convert run refused --tokenizer larger");
    assert_false(path_is_folder("refused"));
    e2e_expect(0, "", "train ../tiny.conf --train.out padded --model.vocabulary 260");
    e2e_expect(0, "256 tokens, the model 260|--vocabulary leaves out padding",
               "convert padded cut --tokenizer words");
    e2e_write("larger/tokenizer.json", "{}", 2);
    e2e_expect(0, "not compared", "convert run unread --tokenizer larger");
    e2e_expect(STATUS_IO, "data.tokenizer|nowhere",
               "train ../tiny.conf --train.out new --data.tokenizer nowhere");
}

/* Two questions of bytes: in the run and afterwards the same shares. */
static void choices_are_scored(void **state) {
    (void)state;
    static const uint16_t body[] = {65535, 22, 0, 1, 2, 1,   't', 1, 'h', 1, 'z', 65535,
                                    24,    1,  0, 2, 2, 't', 'h', 1, 'e', 1, 'q'};
    const int32_t header[] = {20240522, 1, 2, 24};
    char file[1024 + sizeof body] = {0};
    memcpy(file, header, sizeof header);
    memcpy(file + 1024, body, sizeof body);
    e2e_write("choices.bin", file, sizeof file);
    const struct outcome *run = e2e_expect(
        0, "", "train ../tiny.conf --eval.file choices.bin --eval.every 10 --data.validation=");
    e2e_assert_words("a run with choices", run->out, "step 10  choices: |step 16  choices: |of 2");
    cJSON *metrics = e2e_metrics("run");
    const cJSON *last = e2e_record(metrics, "choices", 1);
    assert_int_equal((int)e2e_number(last, "step"), 16);
    char words[64];
    snprintf(words, sizeof words, "2 questions|right       %.4f", e2e_number(last, "accuracy"));
    cJSON_Delete(metrics);
    const struct outcome *eval = e2e_expect(0, "", "eval run --choices choices.bin");
    e2e_assert_words("eval", eval->out, words);
    e2e_expect(STATUS_DATA, "20240522", "eval run --choices ../data/train.bin");
    e2e_expect(STATUS_DATA, "20240522",
               "train ../tiny.conf --train.out new --eval.file ../data/train.bin");
}

/* The same questions as text are the same tokens, an ending being what stands behind a space. */
static void choices_as_text_are_the_same(void **state) {
    (void)state;
    static const uint16_t body[] = {65535, 32, 0, 1, 2, 1,   't', 3, ' ', 'h', 'e', 4,
                                    ' ',   'z', 'q', 'x', 65535, 26, 1, 0, 2, 2, 't', 'h',
                                    2,     ' ', 'e', 1, ' '};
    static const char lines[] = "{\"ctx\": \"t\", \"endings\": [\"he\", \"zqx\"], \"label\": 1}\n"
                                "{\"ctx\": \"th\", \"endings\": [\"e\", \"\"], \"label\": \"0\"}\n";
    static const char cut[] = "{\"ctx\": \"t\", \"endings\": [\"h\", \"z\"], \"label\": 1}\n{\"ctx";
    static const char long_ending[] = "\n{\"ctx\": \"t\", \"endings\": [\"h\", \"an ending too long"
                                      " for it\"], \"label\": 1}";
    const int32_t header[] = {20240522, 1, 2, 32};
    char file[1024 + sizeof body] = {0};
    memcpy(file, header, sizeof header);
    memcpy(file + 1024, body, sizeof body);
    e2e_write("choices.bin", file, sizeof file);
    e2e_write("choices.jsonl", lines, strlen(lines));
    e2e_write("cut.jsonl", cut, strlen(cut));
    e2e_write("long.jsonl", long_ending, strlen(long_ending));
    e2e_expect(0, "", "train ../tiny.conf --eval.file choices.bin --data.validation=");
    e2e_expect(0, "",
               "train ../tiny.conf --eval.file choices.jsonl --data.validation= --train.out text");
    const char *const runs[] = {"run", "text"}, *const files[] = {"choices.bin", "choices.jsonl"};
    double accuracy[2], accuracy_norm[2];
    char *shares[2];
    for (size_t i = 0; i < 2; i++) {
        cJSON *metrics = e2e_metrics(runs[i]);
        const cJSON *record = e2e_record(metrics, "choices", 0);
        accuracy[i] = e2e_number(record, "accuracy");
        accuracy_norm[i] = e2e_number(record, "accuracy_norm");
        cJSON_Delete(metrics);
        const struct outcome *eval = e2e_expect(0, "", "eval run --choices %s", files[i]);
        const char *value = e2e_value(eval->out, "right");
        shares[i] = strndup(value, (size_t)(strstr(value, "took") - value));
    }
    assert_true(accuracy[0] == accuracy[1] && accuracy_norm[0] == accuracy_norm[1]);
    assert_string_equal(shares[0], shares[1]);
    free(shares[0]);
    free(shares[1]);
    e2e_expect(STATUS_DATA, "cut.jsonl:2: expected a JSON object", "eval run --choices cut.jsonl");
    e2e_expect(STATUS_DATA, "cut.jsonl:2: expected a JSON object",
               "train ../tiny.conf --train.out new --eval.file cut.jsonl");
    e2e_expect(STATUS_DATA, "long.jsonl:2: completion 1 has 26 tokens, more than the sequences of "
               "16", "eval run --choices long.jsonl");
    e2e_expect(STATUS_CONFIG, "eval.file is choices.jsonl|data.tokenizer",
               "train ../tiny.conf --train.out new --model.vocabulary 300 --eval.file "
               "choices.jsonl");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(a_converted_model_computes_the_same),
        E2E_TEST(a_run_starts_from_weights),
        E2E_TEST(a_damaged_source_is_refused),
        E2E_TEST(a_tokenizer_goes_along),
        E2E_TEST(choices_are_scored),
        E2E_TEST(choices_as_text_are_the_same),
    };
    return E2E_MAIN(argc, argv, tests);
}
