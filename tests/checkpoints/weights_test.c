/*
 * Weights in Hugging Face's layout and optimizer state in ranges.
 * Oracle: closed form. A number tells its parameter and its place; the file is read by a plain
 * parse of this test's own. For shards: bit equality with the state that was cut up.
 */
#include "checkpoints/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/random.h"
#include "checkpoints/moments.h"
#include "kernels/tensor.h"
#include "tests/checkpoints/fixture.h"

/* Number i, in our order, of parameter p. Exact in FP32: below 2^24 for every table here. */
static float number_at(size_t p, size_t i) { return (float)(p * 1000000 + i); }

/* Flat masters; what is padding holds a number that must not reach the file. */
static float *make_masters(const struct param_table *table) {
    float *masters = malloc(table->elements * sizeof *masters);
    assert_non_null(masters);
    for (size_t i = 0; i < table->elements; i++) masters[i] = -1.0f;
    for (size_t p = 0; p < table->length; p++) {
        const struct param *param = &table->params[p];
        for (size_t i = 0; i < param_count(param); i++) {
            masters[param->offset + i] = number_at(p, i);
        }
    }
    return masters;
}

static void add_row(struct param_table *table, const char *name, size_t rows, size_t columns,
                    bool transposed) {
    struct param row = {
        .role = ROLE_LINEAR, .rows = rows, .columns = columns, .hf_transposed = transposed};
    snprintf(row.name, sizeof row.name, "%s", name);
    snprintf(row.hf_name, sizeof row.hf_name, "hf.%s", name);
    assert_int_equal(param_table_add(table, &row), STATUS_OK);
}

/* The numbers of `name` in a file's text, which must have exactly this shape. */
static const char *plain_find(const char *text, const char *name, const char *shape) {
    char pattern[300];
    uint64_t header_bytes = 0;
    memcpy(&header_bytes, text, 8);
    snprintf(pattern, sizeof pattern, "\"%s\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[",
             name, shape);
    const char *at = strstr(text + 8, pattern);
    if (at == NULL) fail_msg("no %s in %.2000s", pattern, text + 8);
    return text + 8 + header_bytes + strtoull(at + strlen(pattern), NULL, 10);
}

/* The file at `path` has parameter p, stored with this shape, in the order of Hugging Face. */
static void expect_stored(const char *text, const struct param_table *table, size_t p,
                          const char *shape) {
    const struct param *param = &table->params[p];
    const char *numbers = plain_find(text, param->hf_name, shape);
    for (size_t row = 0; row < param->rows; row++) {
        for (size_t column = 0; column < param->columns; column++) {
            const size_t place =
                param->hf_transposed ? column * param->rows + row : row * param->columns + column;
            const float expected = number_at(p, row * param->columns + column);
            float found;
            memcpy(&found, numbers + place * sizeof found, sizeof found);
            if (found != expected) {
                fail_msg("%s row %zu column %zu: %g, expected %g", param->name, row, column,
                         (double)found, (double)expected);
            }
        }
    }
}

static void written_in_hugging_face_layout(void **state) {
    static const char *const shapes[ROWS] = {
        [ROW_WTE] = "[5,6]",   [ROW_WPE] = "[4,6]",     [ROW_NORM] = "[6]",
        [ROW_QKV] = "[6,18]",  [ROW_QKV_BIAS] = "[18]", [ROW_UP] = "[33,70]",
        [ROW_PLAIN] = "[3,7]", [ROW_ONE_ROW] = "[9,1]",
    };
    const char *path = *state;
    struct fixture fixture;
    struct file_digest digest;
    size_t bytes = 0;
    fixture_open(&fixture);
    float *masters = make_masters(&fixture.params);
    assert_int_equal(weights_write(path, &fixture.params, masters, SAFETENSORS_F32, &digest),
                     STATUS_OK);
    char *text = test_read_file(path, &bytes);
    assert_non_null(strstr(text + 8, "\"__metadata__\":{\"format\":\"pt\"}"));
    for (size_t p = 0; p < ROWS; p++) expect_stored(text, &fixture.params, p, shapes[p]);
    uint64_t header_bytes = 0;
    memcpy(&header_bytes, text, 8);
    assert_int_equal(bytes,
                     8 + header_bytes + 4 * param_table_count(&fixture.params)); /* no padding */
    free(text);
    free(masters);
    assert_int_equal(unlink(path), 0);
    fixture_close(&fixture);
}

/* Larger than the buffer between a transposed tensor and its file: many columns at a time, and a
 * column that is longer than the buffer on its own. */
static void large_tensors_are_transposed_in_parts(void **state) {
    const char *path = *state;
    struct param_table table = {0};
    struct safetensors file;
    struct file_digest digest;
    size_t bytes = 0;
    add_row(&table, "wide", 600, 1001, true);
    add_row(&table, "tall", 300001, 2, true);
    float *masters = make_masters(&table), *loaded = make_masters(&table);
    assert_int_equal(weights_write(path, &table, masters, SAFETENSORS_F32, &digest), STATUS_OK);
    char *text = test_read_file(path, &bytes);
    expect_stored(text, &table, 0, "[1001,600]");
    expect_stored(text, &table, 1, "[2,300001]");
    free(text);
    memset(loaded, 0, table.elements * sizeof *loaded);
    assert_int_equal(safetensors_open(&file, path), STATUS_OK);
    assert_int_equal(weights_load(&file, &table, loaded), STATUS_OK);
    for (size_t p = 0; p < 2; p++) {
        assert_memory_equal(loaded + table.params[p].offset, masters + table.params[p].offset,
                            param_count(&table.params[p]) * sizeof(float));
    }
    safetensors_close(&file);
    free(loaded);
    free(masters);
    param_table_free(&table);
    assert_int_equal(unlink(path), 0);
}

static void another_model_is_refused(void **state) {
    static const struct {
        const char *why;
        size_t rows, columns;
        bool transposed;
        const char *name, *reason;
    } cases[] = {
        {"other width", 3, 5, true, "a", "expected hf.a of shape [5, 3], found shape [4, 3]"},
        {"other way round", 4, 3, true, "a", "expected hf.a of shape [3, 4], found shape [4, 3]"},
        {"other name", 3, 4, true, "b", "has no tensor hf.b of shape [4, 3]"},
    };
    const char *path = *state;
    struct param_table table = {0};
    struct safetensors file;
    struct file_digest digest;
    add_row(&table, "a", 3, 4, true);
    float *masters = make_masters(&table);
    assert_int_equal(weights_write(path, &table, masters, SAFETENSORS_F32, &digest), STATUS_OK);
    assert_int_equal(safetensors_open(&file, path), STATUS_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct param_table other = {0};
        add_row(&other, cases[i].name, cases[i].rows, cases[i].columns, cases[i].transposed);
        float *loaded = make_masters(&other), *before = make_masters(&other);
        expect_refused(weights_load(&file, &other, loaded), STATUS_CHECKPOINT, cases[i].reason);
        assert_memory_equal(loaded, before, other.elements * sizeof *loaded);
        free(before);
        free(loaded);
        param_table_free(&other);
    }
    struct param_table fewer = {0};
    expect_refused(weights_load(&file, &fewer, masters), STATUS_CHECKPOINT,
                   "has a tensor hf.a that");
    safetensors_close(&file);
    free(masters);
    param_table_free(&table);
    assert_int_equal(unlink(path), 0);
}

/* Small integers are exact in all three types. */
static void half_precision_is_widened(void **state) {
    const char *path = *state;
    struct param_table table = {0};
    struct safetensors file;
    struct file_digest digest;
    struct safetensors_writer *writer = NULL;
    struct safetensors_entry entries[2] = {
        {.name = "hf.bf16", .dtype = SAFETENSORS_BF16, .rank = 2, .shape = {5, 3}},
        {.name = "hf.f16", .dtype = SAFETENSORS_F16, .rank = 2, .shape = {3, 5}},
    };
    add_row(&table, "bf16", 3, 5, true);
    add_row(&table, "f16", 3, 5, false);
    assert_int_equal(safetensors_writer_open(&writer, path, entries, 2, NULL, 0), STATUS_OK);
    for (size_t i = 0; i < 30; i++) {
        const float value = (float)i - 10.0f;
        const uint16_t bits = i < 15 ? bf16_from_float(value) : f16_from_float(value);
        assert_int_equal(safetensors_writer_append(writer, &bits, sizeof bits), STATUS_OK);
    }
    assert_int_equal(safetensors_writer_finish(writer, &digest), STATUS_OK);
    assert_int_equal(safetensors_open(&file, path), STATUS_OK);
    float *loaded = make_masters(&table);
    assert_int_equal(weights_load(&file, &table, loaded), STATUS_OK);
    for (size_t row = 0; row < 3; row++) {
        for (size_t column = 0; column < 5; column++) {
            const float bf16 = loaded[table.params[0].offset + row * 5 + column];
            const float f16 = loaded[table.params[1].offset + row * 5 + column];
            assert_true(bf16 == (float)(column * 3 + row) - 10.0f);
            assert_true(f16 == (float)(row * 5 + column + 15) - 10.0f);
        }
    }
    safetensors_close(&file);
    free(loaded);
    param_table_free(&table);
    assert_int_equal(unlink(path), 0);
}

/* One optimizer file of the given ranges. */
struct range {
    char name[SAFETENSORS_NAME_BYTES];
    const float *numbers;
    size_t count;
};
static void write_ranges(const char *path, const struct range *ranges, size_t count) {
    struct safetensors_writer *writer = NULL;
    struct file_digest digest;
    struct safetensors_entry *entries = calloc(count + 1, sizeof *entries);
    for (size_t i = 0; i < count; i++) {
        entries[i].rank = 1;
        entries[i].shape[0] = ranges[i].count;
        memcpy(entries[i].name, ranges[i].name, sizeof entries[i].name);
    }
    assert_int_equal(safetensors_writer_open(&writer, path, entries, count, NULL, 0), STATUS_OK);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(
            safetensors_writer_append(writer, ranges[i].numbers, ranges[i].count * sizeof(float)),
            STATUS_OK);
    }
    assert_int_equal(safetensors_writer_finish(writer, &digest), STATUS_OK);
    free(entries);
}

enum { SHARDS_MAX = 5, RANGES_MAX = 2000 };

/* Cuts both moments of the fixture into random ranges, dealt out to `shards` files. */
static void write_shards(const struct fixture *fixture, const char *path, size_t shards,
                         uint64_t seed) {
    struct range *dealt[SHARDS_MAX];
    size_t counts[SHARDS_MAX] = {0};
    uint64_t rolls = 0;
    for (size_t s = 0; s < shards; s++) dealt[s] = calloc(RANGES_MAX, sizeof *dealt[s]);
    for (size_t i = 0; i < 2 * ROWS; i++) {
        const struct param *param = &fixture->params.params[i / 2];
        const float *flat = (i % 2 == 0 ? fixture->moments1 : fixture->moments2) + param->offset;
        for (size_t begin = 0, end = 0; begin < param_count(param); begin = end) {
            uint32_t words[4];
            random_words(seed, RANDOM_TEST, rolls++, words);
            const size_t left = param_count(param) - begin;
            end = begin + 1 + words[0] % (left < 100 ? left : 100);
            struct range *range = &dealt[words[1] % shards][counts[words[1] % shards]++];
            snprintf(range->name, sizeof range->name, "%s:%s:%zu-%zu",
                     i % 2 == 0 ? "exp_avg" : "exp_avg_sq", param->name, begin, end);
            range->numbers = flat + begin;
            range->count = end - begin;
        }
    }
    for (size_t s = 0; s < shards; s++) {
        char shard_path[PATH_BYTES + 8];
        snprintf(shard_path, sizeof shard_path, "%s%zu", path, s);
        write_ranges(shard_path, dealt[s], counts[s]);
        free(dealt[s]);
    }
}

static void any_cut_is_put_together(void **state) {
    struct fixture fixture;
    fixture_open(&fixture);
    fixture_fill(&fixture, 11);
    const size_t bytes = fixture.params.elements * sizeof(float);
    float *moments1 = malloc(bytes), *moments2 = malloc(bytes);
    assert_true(moments1 && moments2);
    for (size_t shards = 1; shards <= SHARDS_MAX; shards++) {
        struct safetensors files[SHARDS_MAX];
        char path[PATH_BYTES + 8];
        write_shards(&fixture, *state, shards, shards);
        for (size_t s = 0; s < shards; s++) {
            snprintf(path, sizeof path, "%s%zu", (const char *)*state, s);
            assert_int_equal(safetensors_open(&files[s], path), STATUS_OK);
            assert_int_equal(unlink(path), 0);
        }
        memset(moments1, 0x7F, bytes);
        memset(moments2, 0x7F, bytes);
        assert_int_equal(moments_load(files, shards, &fixture.params, all_of(&fixture.params),
                                      moments1, moments2),
                         STATUS_OK);
        assert_memory_equal(moments1, fixture.moments1, bytes); /* padding: zero in both */
        assert_memory_equal(moments2, fixture.moments2, bytes);
        if (shards > 1) {
            expect_refused(moments_load(files, shards - 1, &fixture.params, all_of(&fixture.params),
                                        moments1, moments2),
                           STATUS_CHECKPOINT, "lacks the numbers");
        }
        for (size_t s = 0; s < shards; s++) safetensors_close(&files[s]);
    }
    free(moments2);
    free(moments1);
    fixture_close(&fixture);
}

static void ranges_that_lie_are_refused(void **state) {
    /* One parameter p of 10 numbers; exp_avg_sq of it is whole and comes first. */
    static const struct {
        const char *why;
        struct {
            const char *key;
            size_t count;
        } ranges[4];
        const char *reason;
    } cases[] = {
        {"whole", {{"exp_avg:p:0-10", 10}}, NULL},
        {"two", {{"exp_avg:p:4-10", 6}, {"exp_avg:p:0-4", 4}}, NULL},
        {"none", {{0}}, "exp_avg of p lacks the numbers from 0 to 10"},
        {"gap in front", {{"exp_avg:p:1-10", 9}}, "from 0 to 1"},
        {"gap", {{"exp_avg:p:0-4", 4}, {"exp_avg:p:6-10", 4}}, "from 4 to 6"},
        {"gap at the end", {{"exp_avg:p:0-9", 9}}, "from 9 to 10"},
        {"overlap", {{"exp_avg:p:0-6", 6}, {"exp_avg:p:5-10", 5}}, "overlaps"},
        {"inside another", {{"exp_avg:p:0-10", 10}, {"exp_avg:p:5-6", 1}}, "overlaps"},
        {"behind the end",
         {{"exp_avg:p:0-10", 10}, {"exp_avg:p:10-11", 1}},
         "within the 10 numbers"},
        {"too long a range", {{"exp_avg:p:0-11", 11}}, "within the 10 numbers"},
        {"empty", {{"exp_avg:p:0-10", 10}, {"exp_avg:p:3-3", 0}}, "within the 10 numbers"},
        {"backwards", {{"exp_avg:p:10-0", 10}}, "within the 10 numbers"},
        {"shorter than its range", {{"exp_avg:p:0-10", 9}}, "found F32 of shape [9]"},
        {"longer than its range", {{"exp_avg:p:0-10", 11}}, "found F32 of shape [11]"},
        {"no such parameter", {{"exp_avg:q:0-10", 10}}, "q, which is no parameter"},
        {"no such moment", {{"exp_avg_cube:p:0-10", 10}}, "expected keys like"},
        {"part of a moment's name", {{"exp:p:0-10", 10}}, "expected keys like"},
        {"no range", {{"exp_avg:p", 10}}, "expected keys like"},
        {"no end", {{"exp_avg:p:0-", 10}}, "expected keys like"},
        {"text behind the range", {{"exp_avg:p:0-10x", 10}}, "expected keys like"},
        {"a sign", {{"exp_avg:p:-0-10", 10}}, "expected keys like"},
        {"leading zero", {{"exp_avg:p:00-10", 10}}, "expected keys like"},
        {"wraps", {{"exp_avg:p:0-18446744073709551626", 10}}, "expected keys like"},
    };
    static const float numbers[16];
    const char *path = *state;
    struct param_table table = {0};
    add_row(&table, "p", 2, 5, false);
    float *moments1 = make_masters(&table), *moments2 = make_masters(&table);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct range ranges[5] = {{.name = "exp_avg_sq:p:0-10", .numbers = numbers, .count = 10}};
        struct safetensors file;
        size_t count = 1;
        for (; cases[i].ranges[count - 1].key != NULL; count++) {
            ranges[count].numbers = numbers;
            ranges[count].count = cases[i].ranges[count - 1].count;
            snprintf(ranges[count].name, sizeof ranges[count].name, "%s",
                     cases[i].ranges[count - 1].key);
        }
        write_ranges(path, ranges, count);
        assert_int_equal(safetensors_open(&file, path), STATUS_OK);
        const enum status status = moments_load(&file, 1, &table, all_of(&table), moments1,
                                                moments2);
        if (cases[i].reason == NULL) {
            if (status != STATUS_OK) fail_msg("%s: %s", cases[i].why, status_message());
        } else {
            expect_refused(status, STATUS_CHECKPOINT, cases[i].reason);
        }
        safetensors_close(&file);
        assert_int_equal(unlink(path), 0);
    }
    free(moments2);
    free(moments1);
    param_table_free(&table);
}

int main(void) {
    struct fixture fixture;
    char path[PATH_BYTES];
    fixture_open(&fixture);
    if (path_join(path, fixture.folder, "file.safetensors") != STATUS_OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(written_in_hugging_face_layout, path),
        cmocka_unit_test_prestate(large_tensors_are_transposed_in_parts, path),
        cmocka_unit_test_prestate(another_model_is_refused, path),
        cmocka_unit_test_prestate(half_precision_is_widened, path),
        cmocka_unit_test_prestate(any_cut_is_put_together, path),
        cmocka_unit_test_prestate(ranges_that_lie_are_refused, path),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_close(&fixture);
    return failed;
}
