/*
 * Models of other programs. Oracle: closed form. Every number is a function of its parameter, its
 * layer and its place; this test writes the files of Hugging Face and of llm.c from lists of its
 * own, and the program's tensor table must come out filled with the right ones. The numbers are
 * whole and below 128, so that FP16 and BF16 hold them exactly. That real files of transformers
 * look like these is tools/check_transformers.py's to show.
 */
#include "checkpoints/model_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/model_export.h"
#include "layers/gpt.h"
#include "tests/checkpoints/fixture.h"

enum { V = 5, T = 3, C = 4, L = 2, H = 2, ENTRIES_MAX = 64, NUMBERS_MAX = 4096 };

/* In llm.c's order; [out, in]; in 0: a vector. Hugging Face keeps matrices of blocks [in, out]. */
static const struct {
    const char *name;
    size_t out, in;
    bool block;
} kinds[] = {
    {"wte.weight", V, C, false},
    {"wpe.weight", T, C, false},
    {"ln_1.weight", C, 0, true},
    {"ln_1.bias", C, 0, true},
    {"attn.c_attn.weight", 3 * C, C, true},
    {"attn.c_attn.bias", 3 * C, 0, true},
    {"attn.c_proj.weight", C, C, true},
    {"attn.c_proj.bias", C, 0, true},
    {"ln_2.weight", C, 0, true},
    {"ln_2.bias", C, 0, true},
    {"mlp.c_fc.weight", 4 * C, C, true},
    {"mlp.c_fc.bias", 4 * C, 0, true},
    {"mlp.c_proj.weight", C, 4 * C, true},
    {"mlp.c_proj.bias", C, 0, true},
    {"ln_f.weight", C, 0, false},
    {"ln_f.bias", C, 0, false},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static float number(size_t kind, size_t layer, size_t out, size_t in) {
    return (float)((kind * 31 + layer * 17 + out * 5 + in * 3) % 128);
}

static void narrow(float value, enum safetensors_dtype dtype, unsigned char *to) {
    const uint16_t half = dtype == SAFETENSORS_BF16 ? bf16_from_float(value)
                                                    : f16_from_float(value);
    if (dtype == SAFETENSORS_F32)
        memcpy(to, &value, sizeof value);
    else
        memcpy(to, &half, sizeof half);
}

/* What is not usual about a folder of Hugging Face's. */
struct oddity {
    const char *prefix;
    enum safetensors_dtype dtype;
    size_t padding_rows; /* of the token embedding */
    bool masks;          /* attention masks as tensors */
    int head;            /* 1: stored and equal; -1: stored and different */
    const char *missing; /* leave this one out */
    const char *extra;   /* and add one of this name, of one number */
};

struct folder {
    char path[PATH_BYTES];
    struct safetensors_entry entries[ENTRIES_MAX];
    unsigned char *data[ENTRIES_MAX]; /* of each entry */
    size_t count;
};

static struct safetensors_entry *add(struct folder *folder, const char *name,
                                     enum safetensors_dtype dtype, int rank, size_t a, size_t b) {
    struct safetensors_entry *entry = &folder->entries[folder->count];
    *entry = (struct safetensors_entry){.dtype = dtype, .rank = rank, .shape = {a, b}};
    snprintf(entry->name, sizeof entry->name, "%s", name);
    folder->data[folder->count++] = calloc(1, NUMBERS_MAX);
    return entry;
}

static void add_kind(struct folder *folder, const struct oddity *odd, size_t k, size_t layer) {
    char name[SAFETENSORS_NAME_BYTES];
    const size_t padding = k == 0 ? odd->padding_rows : 0, in = kinds[k].in;
    if (kinds[k].block) {
        snprintf(name, sizeof name, "%sh.%zu.%s", odd->prefix, layer, kinds[k].name);
    } else {
        snprintf(name, sizeof name, "%s%s", odd->prefix, kinds[k].name);
    }
    if (odd->missing != NULL && strstr(name, odd->missing) != NULL) return;
    const bool transposed = kinds[k].block && in > 0;
    if (in == 0)
        add(folder, name, odd->dtype, 1, kinds[k].out, 0);
    else if (transposed)
        add(folder, name, odd->dtype, 2, in, kinds[k].out);
    else
        add(folder, name, odd->dtype, 2, kinds[k].out + padding, in);
    const size_t width = safetensors_dtype_bytes(odd->dtype), columns = in == 0 ? 1 : in;
    for (size_t o = 0; o < kinds[k].out + padding; o++) {
        for (size_t i = 0; i < columns; i++) {
            const size_t place = transposed ? i * kinds[k].out + o : o * columns + i;
            const float value = o < kinds[k].out ? number(k, layer, o, i) : 99.0f;
            narrow(value, odd->dtype, folder->data[folder->count - 1] + place * width);
        }
    }
}

static void fill(struct folder *folder, const struct oddity *odd) {
    char name[64];
    for (size_t k = 0; k < KINDS; k++) {
        for (size_t layer = 0; layer < (kinds[k].block ? L : 1); layer++) {
            add_kind(folder, odd, k, layer);
        }
    }
    for (size_t layer = 0; odd->masks && layer < L; layer++) {
        snprintf(name, sizeof name, "%sh.%zu.attn.bias", odd->prefix, layer);
        add(folder, name, SAFETENSORS_BOOL, 2, T, T);
        snprintf(name, sizeof name, "%sh.%zu.attn.masked_bias", odd->prefix, layer);
        add(folder, name, SAFETENSORS_F32, 0, 0, 0);
    }
    if (odd->head != 0) {
        struct safetensors_entry *head = add(folder, "lm_head.weight", odd->dtype, 2,
                                             V + odd->padding_rows, C);
        memcpy(folder->data[folder->count - 1], folder->data[0], NUMBERS_MAX);
        if (odd->head < 0) folder->data[folder->count - 1][head->shape[1]] ^= 0x40;
    }
    if (odd->extra != NULL) add(folder, odd->extra, SAFETENSORS_F32, 1, 1, 0);
}

/* Entries [first, end) as a file of the folder. */
static void write_part(struct folder *folder, const char *name, size_t first, size_t end) {
    char path[PATH_BYTES];
    struct safetensors_writer *writer = NULL;
    struct file_digest digest;
    assert_int_equal(path_join(path, folder->path, name), STATUS_OK);
    assert_int_equal(safetensors_writer_open(&writer, path, folder->entries + first, end - first,
                                             NULL, 0),
                     STATUS_OK);
    for (size_t i = first; i < end; i++) {
        assert_int_equal(safetensors_writer_append(writer, folder->data[i],
                                                   folder->entries[i].bytes),
                         STATUS_OK);
    }
    assert_int_equal(safetensors_writer_finish(writer, &digest), STATUS_OK);
}

static void write_file(const struct folder *folder, const char *name, const char *text) {
    char path[PATH_BYTES];
    assert_int_equal(path_join(path, folder->path, name), STATUS_OK);
    test_write_file(path, text, strlen(text));
}

static void write_config(const struct folder *folder, size_t vocabulary) {
    const struct hf_config model = {.vocab_size = vocabulary,
                                    .n_positions = T,
                                    .n_embd = C,
                                    .n_layer = L,
                                    .n_head = H,
                                    .bos_token_id = -1,
                                    .eos_token_id = -1};
    char *text = hf_config_text(&model, "float32");
    write_file(folder, "config.json", text);
    free(text);
}

/* Entry i goes to file i % files; the index names them all. */
static void write_sharded(struct folder *folder, size_t files) {
    char index[16384] = "{\"metadata\":{\"total_size\":1},\"weight_map\":{";
    for (size_t f = 0; f < files; f++) {
        char name[48];
        const size_t first = folder->count * f / files, end = folder->count * (f + 1) / files;
        snprintf(name, sizeof name, "part-%zu.safetensors", f);
        write_part(folder, name, first, end);
        for (size_t i = first; i < end; i++) {
            const size_t used = strlen(index);
            snprintf(index + used, sizeof index - used, "%s\"%s\":\"%s\"", i > 0 ? "," : "",
                     folder->entries[i].name, name);
        }
    }
    strcat(index, "}}");
    write_file(folder, HF_INDEX_NAME, index);
}

static void folder_open(struct folder *folder) {
    const char *base = getenv("TEST_TMPDIR");
    memset(folder, 0, sizeof *folder);
    assert_int_equal(path_join(folder->path, base == NULL ? "/tmp" : base, "model_XXXXXX"),
                     STATUS_OK);
    assert_non_null(mkdtemp(folder->path));
}

static void folder_close(struct folder *folder) {
    for (size_t i = 0; i < folder->count; i++) free(folder->data[i]);
    assert_int_equal(folder_remove(folder->path), STATUS_OK);
}

static struct gpt open_gpt(size_t vocabulary) {
    const struct gpt_config config = {.layers = L,
                                      .heads = H,
                                      .width = C,
                                      .context = T,
                                      .vocabulary = vocabulary};
    struct gpt gpt;
    assert_int_equal(gpt_open(&gpt, &config, 0), STATUS_OK);
    return gpt;
}

/* Every parameter of the table holds its own numbers; what is padding is zero. */
static void expect_numbers(const struct param_table *table, const float *masters) {
    size_t seen = 0;
    for (size_t p = 0; p < table->length; p++) {
        const struct param *param = &table->params[p];
        for (size_t k = 0; k < KINDS; k++) {
            char name[PARAM_NAME_BYTES];
            if (kinds[k].block != (param->layer >= 0)) continue;
            if (kinds[k].block)
                snprintf(name, sizeof name, "transformer.h.%d.%s", param->layer, kinds[k].name);
            else
                snprintf(name, sizeof name, "transformer.%s", kinds[k].name);
            if (strcmp(name, param->hf_name) != 0) continue;
            seen++;
            const size_t layer = param->layer < 0 ? 0 : (size_t)param->layer;
            for (size_t i = 0; i < param_count(param); i++) {
                const size_t in = kinds[k].in == 0 ? 1 : kinds[k].in;
                const float expected = number(k, layer, i / in, i % in);
                if (masters[param->offset + i] != expected) {
                    fail_msg("%s[%zu] is %g, expected %g", name, i,
                             (double)masters[param->offset + i], (double)expected);
                }
            }
            for (size_t i = param_count(param); i < param->count; i++) {
                assert_true(masters[param->offset + i] == 0.0f);
            }
        }
    }
    assert_int_equal(seen, table->length);
}

/* Opens and loads; the status of whichever refuses. The numbers must be right. */
static enum status load(const char *path, size_t vocabulary) {
    struct model_source source;
    struct gpt gpt = open_gpt(vocabulary);
    float *masters = malloc(gpt.table.elements * sizeof *masters);
    for (size_t i = 0; i < gpt.table.elements; i++) masters[i] = -1.0f;
    enum status status = model_source_open(&source, path, NULL);
    if (status == STATUS_OK) {
        status = model_source_load(&source, &gpt.table, masters);
        model_source_close(&source);
    }
    if (status == STATUS_OK) expect_numbers(&gpt.table, masters);
    free(masters);
    gpt_close(&gpt);
    return status;
}

static void expect_loads(const char *path) {
    if (load(path, V) != STATUS_OK) fail_msg("%s", status_message());
}

static void hugging_face_folders_load(void **state) {
    (void)state;
    static const struct oddity cases[] = {
        {.prefix = "transformer."},
        {.prefix = ""},
        {.prefix = "transformer.", .dtype = SAFETENSORS_BF16},
        {.prefix = "", .dtype = SAFETENSORS_F16, .masks = true},
        {.prefix = "transformer.", .masks = true, .head = 1},
        {.prefix = "transformer.", .padding_rows = 123, .head = 1},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (size_t files = 0; files < 4; files++) { /* 0: no index */
            struct folder folder;
            folder_open(&folder);
            fill(&folder, &cases[c]);
            write_config(&folder, V + cases[c].padding_rows);
            if (files == 0)
                write_part(&folder, "model.safetensors", 0, folder.count);
            else
                write_sharded(&folder, files);
            expect_loads(folder.path);
            folder_close(&folder);
        }
    }
}

static void other_models_are_refused(void **state) {
    (void)state;
    static const struct {
        struct oddity odd;
        const char *reason;
    } cases[] = {
        {{.prefix = "transformer.", .head = -1}, "not tied"},
        {{.prefix = "", .missing = "h.1.mlp.c_fc.bias"}, "has no tensor transformer.h.1.mlp.c_fc"},
        {{.prefix = "", .extra = "h.2.ln_1.bias"}, "h.2.ln_1.bias that the model does not"},
        {{.prefix = "", .extra = "transformer.wpe.weight"}, "stands twice"},
        {{.prefix = "", .padding_rows = 128}, "expected transformer.wte.weight of shape [5, 4]"},
        {{.prefix = "", .dtype = SAFETENSORS_U8}, "in U8"},
        {{.prefix = "gpt."}, "has no tensor transformer.wte.weight"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct folder folder;
        folder_open(&folder);
        fill(&folder, &cases[c].odd);
        write_config(&folder, V);
        write_part(&folder, "model.safetensors", 0, folder.count);
        expect_refused(load(folder.path, V), STATUS_CHECKPOINT, cases[c].reason);
        folder_close(&folder);
    }
}

static void bad_indices_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *index, *reason;
    } cases[] = {
        {"{", "expected JSON"},
        {"[]", "JSON object"},
        {"{}", "weight_map"},
        {"{\"weight_map\":{}}", "weight_map"},
        {"{\"weight_map\":[1]}", "weight_map"},
        {"{\"weight_map\":{\"a\":1}}", "expected a file's name for a"},
        {"{\"weight_map\":{\"a\":\"../x\"}}", "in its own folder"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "in its own folder"},
        {"{\"weight_map\":{\"a\":\"\"}}", "in its own folder"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "in its own folder"},
        {"{\"weight_map\":{\"a\":\"x\",\"a\":\"x\"}}", "listed twice"},
        {"{\"weight_map\":{\"\":\"x\"}}", "tensor names"},
        {"{\"weight_map\":{\"a\":\"absent.safetensors\"}}", "is missing or no file"},
        {"{\"weight_map\":{\"a\":\"folder\"}}", "is missing or no file"},
        {"{\"weight_map\":{\"a\":\"part-0.safetensors\"}}", "expected a in part-0.safetensors"},
        {"{\"weight_map\":{\"wte.weight\":\"part-0.safetensors\"}}", "do not belong together"},
    };
    struct folder folder;
    char path[PATH_BYTES];
    folder_open(&folder);
    fill(&folder, &(struct oddity){.prefix = ""});
    write_config(&folder, V);
    expect_refused(load(folder.path, V), STATUS_CHECKPOINT, "holds neither");
    write_sharded(&folder, 2);
    assert_int_equal(path_join(path, folder.path, "folder"), STATUS_OK);
    assert_int_equal(mkdir(path, 0777), 0);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        write_file(&folder, HF_INDEX_NAME, cases[c].index);
        expect_refused(load(folder.path, V), STATUS_CHECKPOINT, cases[c].reason);
    }
    write_part(&folder, "model.safetensors", 0, folder.count);
    expect_refused(load(folder.path, V), STATUS_CHECKPOINT, "holds both");
    folder_close(&folder);
}

/* A model file of llm.c; returns its length. */
static size_t make_llmc(unsigned char *file, int32_t version, size_t rows) {
    const int32_t header[] = {20240326, version, T, V, L, H, C, (int32_t)rows};
    const enum safetensors_dtype dtype = version == 3 ? SAFETENSORS_F32 : SAFETENSORS_BF16;
    size_t used = 1024;
    memset(file, 0, used);
    memcpy(file, header, sizeof header);
    for (size_t k = 0; k < KINDS; k++) {
        const size_t in = kinds[k].in == 0 ? 1 : kinds[k].in;
        const size_t out = k == 0 ? rows : kinds[k].out;
        for (size_t layer = 0; layer < (kinds[k].block ? L : 1); layer++) {
            for (size_t i = 0; i < out * in; i++) {
                const float value = i / in < kinds[k].out ? number(k, layer, i / in, i % in)
                                                          : 99.0f;
                narrow(value, dtype, file + used);
                used += safetensors_dtype_bytes(dtype);
            }
        }
    }
    return used;
}

static void models_of_llmc_load(void **state) {
    (void)state;
    struct folder folder;
    char path[PATH_BYTES];
    unsigned char file[16384];
    folder_open(&folder);
    assert_int_equal(path_join(path, folder.path, "model.bin"), STATUS_OK);
    for (int32_t version = 3; version <= 5; version += 2) {
        for (size_t rows = V; rows <= 128; rows += 123) {
            const size_t bytes = make_llmc(file, version, rows);
            test_write_file(path, file, bytes);
            expect_loads(path);
            test_write_file(path, file, bytes - 1);
            expect_refused(load(path, V), STATUS_CHECKPOINT, "cut short");
            test_write_file(path, file, bytes);
            assert_int_equal(truncate(path, (off_t)bytes + 1), 0);
            expect_refused(load(path, V), STATUS_CHECKPOINT, "bytes");
        }
    }
    folder_close(&folder);
}

static void bad_models_of_llmc_are_refused(void **state) {
    (void)state;
    static const struct {
        size_t at;
        int32_t value;
        const char *reason;
    } cases[] = {
        {0, 20240520, "found 20240520 and 3"}, /* a token shard */
        {1, 1, "expected a model of llm.c"},
        {2, -1, "at least 1, found -1"},
        {2, 4, "expected"},
        {3, 0, "at least 1, found 0"},
        {3, V + 1, "padded vocabulary"},
        {4, INT32_MAX, "n_layer"},
        {5, 3, "head"},
        {6, INT32_MAX, "n_embd"},
        {6, 1 << 20, "bytes"},
        {7, V - 1, "padded vocabulary"},
        {7, INT32_MAX, "padded vocabulary"},
    };
    struct folder folder;
    char path[PATH_BYTES];
    unsigned char file[16384];
    folder_open(&folder);
    assert_int_equal(path_join(path, folder.path, "model.bin"), STATUS_OK);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        const size_t bytes = make_llmc(file, 3, V);
        memcpy(file + 4 * cases[c].at, &cases[c].value, sizeof cases[c].value);
        test_write_file(path, file, bytes);
        expect_refused(load(path, V), STATUS_CHECKPOINT, cases[c].reason);
    }
    test_write_file(path, file, 1000);
    expect_refused(load(path, V), STATUS_CHECKPOINT, "a header of 1024");
    test_write_file(path, file, 0);
    expect_refused(load(path, V), STATUS_CHECKPOINT, "a header of 1024");
    folder_close(&folder);
}

/* What is exported loads again, in each type; a tokenizer goes along. */
static void exported_models_load(void **state) {
    (void)state;
    static const enum safetensors_dtype dtypes[] = {SAFETENSORS_F32, SAFETENSORS_F16,
                                                    SAFETENSORS_BF16};
    struct folder folder;
    struct model_source source;
    struct tokenizer_files tokenizer;
    char path[PATH_BYTES], out[PATH_BYTES], inside[PATH_BYTES];
    unsigned char file[16384];
    folder_open(&folder);
    assert_int_equal(path_join(path, folder.path, "model.bin"), STATUS_OK);
    test_write_file(path, file, make_llmc(file, 3, V));
    write_file(&folder, "tokenizer.json", "{}");
    assert_int_equal(tokenizer_files_read(&tokenizer, folder.path), STATUS_OK);
    struct gpt gpt = open_gpt(V);
    float *masters = calloc(gpt.table.elements, sizeof *masters);
    assert_int_equal(model_source_open(&source, path, NULL), STATUS_OK);
    assert_int_equal(model_source_load(&source, &gpt.table, masters), STATUS_OK);
    struct model_export model = {.model = source.model,
                                 .params = &gpt.table,
                                 .masters = masters,
                                 .tokenizer = &tokenizer};
    assert_int_equal(path_join(out, folder.path, "out"), STATUS_OK);
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        model.dtype = dtypes[d];
        assert_int_equal(model_export_write(out, &model), STATUS_OK);
        expect_loads(out);
        assert_int_equal(path_join(inside, out, "tokenizer_config.json"), STATUS_OK);
        assert_true(path_is_file(inside)); /* made: there was none */
        expect_refused(model_export_write(out, &model), STATUS_CONFIG, "exists");
        assert_int_equal(folder_remove(out), STATUS_OK);
    }
    masters[1] = 70000.0f; /* FP16 ends at 65504 */
    model.dtype = SAFETENSORS_F16;
    expect_refused(model_export_write(out, &model), STATUS_NUMERICS, "token_embedding holds 70000");
    assert_false(path_is_folder(out));
    free(masters);
    gpt_close(&gpt);
    model_source_close(&source);
    tokenizer_files_free(&tokenizer);
    folder_close(&folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hugging_face_folders_load),
        cmocka_unit_test(other_models_are_refused),
        cmocka_unit_test(bad_indices_are_refused),
        cmocka_unit_test(models_of_llmc_load),
        cmocka_unit_test(bad_models_of_llmc_are_refused),
        cmocka_unit_test(exported_models_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
