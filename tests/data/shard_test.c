/*
 * Token shards. Oracles: files made by hand byte by byte (reading), the bytes that were appended
 * (writing), and a table of malformed files with the words that the message must hold. Faults are
 * injected with a limit on the size of files, which fails writes as a full disk does.
 */
#include "tests/data/data_test.h"

#include <stdio.h>

#include "data/shard.h"

static void reads_uint16_made_by_hand(void **state) {
    /* 258 = 02 01, 65535 = FF FF: the bytes as they lie in the file */
    const unsigned char body[] = {0x02, 0x01, 0x00, 0x00, 0xFF, 0xFF, 0x39, 0x30};
    const int32_t expected[] = {258, 0, 65535, 12345};
    const char *path = in_folder(state, "hand.bin");
    struct shard shard;
    int32_t tokens[4];
    write_raw_shard(path, 20240520, 1, 4, body, sizeof body, 1024 + sizeof body);
    assert_int_equal(shard_open(&shard, path, 65536), STATUS_OK);
    assert_int_equal(shard.tokens, 4);
    assert_int_equal(shard.token_bytes, 2);
    assert_string_equal(shard.path, path);
    shard_read(&shard, 0, 4, tokens);
    assert_memory_equal(tokens, expected, sizeof expected);
    shard_read(&shard, 2, 1, tokens);
    assert_int_equal(tokens[0], 65535);
    assert_int_equal(shard_largest_token(&shard), 65535);
    shard_close(&shard);
}

static void reads_uint32_made_by_hand(void **state) {
    const unsigned char body[] = {0x40, 0x0D, 0x03, 0x00, 0x01, 0x00, 0x00, 0x00};
    const int32_t expected[] = {200000, 1};
    const char *path = in_folder(state, "hand.bin");
    struct shard shard;
    int32_t tokens[2];
    write_raw_shard(path, 20240801, 7, 2, body, sizeof body, 1024 + sizeof body);
    assert_int_equal(shard_open(&shard, path, 200001), STATUS_OK);
    assert_int_equal(shard.tokens, 2);
    assert_int_equal(shard.token_bytes, 4);
    shard_read(&shard, 0, 2, tokens);
    assert_memory_equal(tokens, expected, sizeof expected);
    assert_int_equal(shard_largest_token(&shard), 200000);
    shard_close(&shard);
}

static void a_shard_may_be_empty(void **state) {
    const char *path = in_folder(state, "empty.bin");
    struct shard shard;
    write_raw_shard(path, 20240520, 1, 0, NULL, 0, 1024);
    assert_int_equal(shard_open(&shard, path, 1), STATUS_OK);
    assert_int_equal(shard.tokens, 0);
    assert_int_equal(shard_largest_token(&shard), 0);
    shard_close(&shard);
}

struct malformed {
    const char *why;
    int32_t magic, version, count;
    size_t bytes; /* of the file; behind the header all are 0 */
    const char *words;
};

static const struct malformed malformed[] = {
    {"nothing in it", 0, 0, 0, 0, "expected a token shard|found 0 bytes"},
    {"zeros", 0, 0, 0, 2048, "20240520|20240801|2048 bytes|\\x00\\x00\\x00\\x00|prepare"},
    {"cut in the magic", 20240520, 1, 8, 3, "expected a token shard|found 3 bytes"},
    {"cut in the header", 20240520, 1, 8, 1023, "header of 1024 bytes|1023 bytes|cut off"},
    {"uint16 version", 20240520, 2, 8, 1040, "version 1|20240520|uint16|found version 2"},
    {"uint32 version", 20240801, 1, 8, 1056, "version 7|20240801|uint32|found version 1"},
    {"negative count", 20240520, 1, -5, 1024, "found -5|room for 0"},
    {"one token short", 20240520, 1, 100, 1222, "100 uint16 tokens|1224 bytes|1222 bytes|holds 99"},
    {"one token more", 20240520, 1, 100, 1226, "100 uint16 tokens|1226 bytes|holds 101"},
    {"half a token more", 20240520, 1, 100, 1225, "100 uint16 tokens|1224 bytes|1225 bytes"},
    {"uint32 taken for uint16", 20240801, 7, 100, 1224, "100 uint32 tokens|1424 bytes|holds 50"},
    {"largest count", 20240801, 7, INT32_MAX, 1028, "2147483647 uint32 tokens|holds 1"},
    {"big-endian", (int32_t)0x88D83401, 1 << 24, 0, 1024, "big-endian|20240520"},
    {"big-endian, short", (int32_t)0xA1D93401, 0, 0, 4, "big-endian|20240801"},
};

static void refuses_malformed_files(void **state) {
    const char *path = in_folder(state, "bad.bin");
    for (size_t i = 0; i < sizeof malformed / sizeof malformed[0]; i++) {
        const struct malformed *bad = &malformed[i];
        struct shard shard;
        write_raw_shard(path, bad->magic, bad->version, bad->count, NULL, 0, bad->bytes);
        if (shard_open(&shard, path, 256) != STATUS_DATA) fail_msg("accepted: %s", bad->why);
        assert_message(bad->words);
        assert_message(path);
        assert_null(shard.map.data);
    }
}

static void names_what_it_got_instead(void **state) {
    const char *path = in_folder(state, "other");
    const char safetensors[] = "\x20\0\0\0\0\0\0\0{\"wte.weight\":{\"dtype\":\"F32\"}}       data";
    struct shard shard;
    write_text(path, "First Citizen:\nBefore we proceed any further, hear me speak.\n");
    assert_int_equal(shard_open(&shard, path, 256), STATUS_DATA);
    assert_message("First Citizen:\\x0A|looks like text|deepwell data prepare");
    write_file(path, safetensors, sizeof safetensors);
    assert_int_equal(shard_open(&shard, path, 256), STATUS_DATA);
    assert_message("safetensors|weights");
    assert_int_equal(shard_open(&shard, in_folder(state, "not there"), 256), STATUS_IO);
    assert_message("not there|No such file");
    assert_int_equal(shard_open(&shard, *state, 256), STATUS_IO);
}

/* Any place in and after the blocks of the search, both widths. */
static void finds_the_first_token_outside_the_vocabulary(void **state) {
    enum { TOKENS = 300 };
    const char *path = in_folder(state, "tokens.bin");
    for (size_t token_bytes = 2; token_bytes <= 4; token_bytes += 2) {
        for (size_t place = 0; place < TOKENS; place += 7) {
            unsigned char body[TOKENS * 4] = {0};
            char words[128];
            struct shard shard;
            body[place * token_bytes + 1] = 1;             /* 256 */
            body[(TOKENS - 1) * token_bytes + 1] = 2;      /* 512: larger, and later */
            write_raw_shard(path, token_bytes == 2 ? 20240520 : 20240801, token_bytes == 2 ? 1 : 7,
                            TOKENS, body, sizeof body, 1024 + TOKENS * token_bytes);
            assert_int_equal(shard_open(&shard, path, 256), STATUS_DATA);
            snprintf(words, sizeof words, "vocabulary of 256|token 256 at position %zu |largest is "
                     "512|513 or more", place);
            assert_message(words);
            assert_int_equal(shard_open(&shard, path, 512), STATUS_DATA);
            assert_int_equal(shard_open(&shard, path, 513), STATUS_OK);
            shard_close(&shard);
            assert_int_equal(shard_open(&shard, path, 0), STATUS_OK);
            assert_int_equal(shard_largest_token(&shard), 512);
            shard_close(&shard);
        }
    }
}

/* Appends 0, 1, ... in uneven pieces, so that blocks begin and end anywhere. */
static void writer_gives_the_bytes_made_by_hand(void **state) {
    enum { TOKENS = 20000 };
    static int32_t tokens[TOKENS];
    for (int32_t i = 0; i < TOKENS; i++) tokens[i] = i;
    for (size_t token_bytes = 2; token_bytes <= 4; token_bytes += 2) {
        const char *written = in_folder(state, token_bytes == 2 ? "w2.bin" : "w4.bin");
        const char *by_hand = in_folder(state, "hand.bin");
        struct shard_writer *writer = NULL;
        assert_int_equal(shard_writer_open(&writer, written, token_bytes), STATUS_OK);
        for (size_t done = 0, piece = 1; done < TOKENS; done += piece, piece = piece * 3 + 1) {
            if (piece > TOKENS - done) piece = TOKENS - done;
            assert_int_equal(shard_writer_append(writer, tokens + done, piece), STATUS_OK);
            assert_false(path_is_file(written)); /* no name before it is whole */
        }
        assert_int_equal(shard_writer_finish(writer), STATUS_OK);
        write_counting_shard(by_hand, token_bytes, 0, TOKENS);
        assert_true(files_equal(written, by_hand));
    }
    assert_int_equal(names_in(*state), 3); /* and nothing temporary */
}

static void writer_refuses_what_does_not_fit(void **state) {
    const int32_t wide[] = {1, 2, 65536}, negative[] = {-1};
    const char *path = in_folder(state, "out.bin");
    struct shard_writer *writer = NULL;
    assert_int_equal(shard_writer_open(&writer, path, 2), STATUS_OK);
    assert_int_equal(shard_writer_append(writer, wide, 3), STATUS_DATA);
    assert_message("uint16|65535|found 65536|position 2");
    assert_int_equal(shard_writer_finish(writer), STATUS_DATA); /* what failed has no end */
    assert_int_equal(shard_writer_open(&writer, path, 4), STATUS_OK);
    assert_int_equal(shard_writer_append(writer, wide, 3), STATUS_OK);
    assert_int_equal(shard_writer_append(writer, negative, 1), STATUS_DATA);
    assert_message("uint32|found -1|position 3");
    shard_writer_abandon(writer);
    assert_int_equal(shard_writer_open(&writer, path, 2), STATUS_OK);
    assert_int_equal(shard_writer_append(writer, wide, 1), STATUS_OK);
    /* 2^31 in all; the tokens are not looked at once the number is too large */
    assert_int_equal(shard_writer_append(writer, wide, INT32_MAX), STATUS_DATA);
    assert_message("at most 2147483647|found 2147483648|several parts");
    shard_writer_abandon(writer);
    assert_int_equal(names_in(*state), 0);
}

static void writer_refuses_an_existing_file(void **state) {
    const char *path = in_folder(state, "out.bin");
    const int32_t token = 7;
    struct shard_writer *writer = NULL;
    write_text(path, "mine");
    assert_int_equal(shard_writer_open(&writer, path, 2), STATUS_IO);
    assert_message("out.bin|not to exist");
    assert_int_equal(folder_remove(path), STATUS_OK);
    /* and one that came up meanwhile */
    assert_int_equal(shard_writer_open(&writer, path, 2), STATUS_OK);
    assert_int_equal(shard_writer_append(writer, &token, 1), STATUS_OK);
    write_text(path, "mine");
    assert_int_equal(shard_writer_finish(writer), STATUS_IO);
    write_text(in_folder(state, "copy"), "mine");
    assert_true(files_equal(path, in_folder(state, "copy")));
    assert_int_equal(names_in(*state), 2);
    assert_int_equal(shard_writer_open(&writer, in_folder(state, "copy/below.bin"), 2), STATUS_IO);
    assert_message("below.bin|Not a directory");
}

/* The limit falls behind the end, into the middle, into the header, or before the first byte. */
static void a_full_disk_leaves_nothing(void **state) {
    static const int32_t tokens[50000];
    const size_t limits[] = {1024 + 2 * 50000 - 1, 60000, 1025, 512, 0};
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        struct shard_writer *writer = NULL;
        limit_file_bytes(limits[i]);
        enum status status = shard_writer_open(&writer, in_folder(state, "out.bin"), 2);
        if (status == STATUS_OK) {
            status = shard_writer_append(writer, tokens, 50000);
            if (status == STATUS_OK) {
                status = shard_writer_finish(writer);
            } else {
                shard_writer_abandon(writer);
            }
        }
        lift_file_limit();
        assert_int_equal(status, STATUS_IO);
        assert_message("out.bin|File too large");
        assert_int_equal(names_in(*state), 0);
    }
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        TEST(reads_uint16_made_by_hand),
        TEST(reads_uint32_made_by_hand),
        TEST(a_shard_may_be_empty),
        TEST(refuses_malformed_files),
        TEST(names_what_it_got_instead),
        TEST(finds_the_first_token_outside_the_vocabulary),
        TEST(writer_gives_the_bytes_made_by_hand),
        TEST(writer_refuses_what_does_not_fit),
        TEST(writer_refuses_an_existing_file),
        TEST(a_full_disk_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
