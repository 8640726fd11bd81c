/*
 * Finding and reading documents. Oracles: the order of the paths by bytes, written down; injected
 * changes between finding and reading, each of which must be refused, and the unchanged bytes.
 */
#include "tests/data/data_test.h"

#include <stdlib.h>
#include <string.h>

#include "data/documents.h"

struct collected {
    char text[64];
    size_t bytes;
};

static enum status collect(void *context, const unsigned char *text, size_t bytes) {
    struct collected *collected = context;
    assert_true(bytes <= sizeof collected->text - collected->bytes);
    memcpy(collected->text + collected->bytes, text, bytes);
    collected->bytes += bytes;
    return STATUS_OK;
}

static enum status fail_to_take(void *context, const unsigned char *text, size_t bytes) {
    (void)context;
    (void)text;
    return status_set(STATUS_IO, "cannot take %zu bytes", bytes);
}

static void changed_documents_are_refused(void **state) {
    static const struct {
        const char *text;
        size_t bytes;
    } changes[] = {{"as it is now", 12}, {"as it was befor", 15}, {"as it was before?", 17},
                   {"", 0}, {"as it was\0before", 16}};
    char path[PATH_BYTES];
    const char *const inputs[] = {path};
    struct document_list list;
    assert_int_equal(path_join(path, *state, "document"), STATUS_OK);
    write_text(path, "as it was before");
    assert_int_equal(documents_find(&list, inputs, 1, "no such folder"), STATUS_OK);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.items[0].bytes, 16);

    struct collected same = {.bytes = 0};
    assert_int_equal(document_read(&list.items[0], collect, &same), STATUS_OK);
    assert_int_equal(same.bytes, 16);
    assert_memory_equal(same.text, "as it was before", 16);
    assert_int_equal(document_read(&list.items[0], fail_to_take, NULL), STATUS_IO);
    assert_message("cannot take 16 bytes");

    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        struct collected other = {.bytes = 0};
        write_file(path, changes[i].text, changes[i].bytes);
        assert_int_equal(document_read(&list.items[0], collect, &other), STATUS_DATA);
        assert_message("document|changed while|16 bytes seen before");
    }
    assert_int_equal(folder_remove(path), STATUS_OK);
    assert_int_equal(document_read(&list.items[0], collect, &same), STATUS_IO);
    documents_release(&list);
}

/* '/' is above '.' and below any letter, so walking one folder after the other is not enough. */
static void documents_are_in_order_of_path(void **state) {
    static const char *const sorted[] = {"in/B", "in/b!/z", "in/b.txt", "in/b/c", "in/b/d/e",
                                         "in/b/da", "in/b0"};
    enum { COUNT = sizeof sorted / sizeof sorted[0] };
    struct document_list list;
    assert_int_equal(folder_create(in_folder(state, "in/b/d")), STATUS_OK);
    assert_int_equal(folder_create(in_folder(state, "in/b!")), STATUS_OK);
    for (size_t i = 0; i < COUNT; i++) write_text(in_folder(state, sorted[COUNT - 1 - i]), "text");
    const char *const inputs[] = {in_folder(state, "in/b0"), in_folder(state, "in")};
    assert_int_equal(documents_find(&list, inputs, 2, in_folder(state, "in/b!")), STATUS_OK);
    assert_int_equal(list.count, COUNT); /* one more, named by itself, and one in the output less */
    assert_string_equal(list.items[0].path, in_folder(state, "in/b0"));
    for (size_t i = 1, j = 0; i < COUNT; i++, j++) {
        if (j == 1) j++;
        assert_string_equal(list.items[i].path, in_folder(state, sorted[j]));
    }
    documents_release(&list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(changed_documents_are_refused, folder_setup,
                                        folder_teardown),
        cmocka_unit_test_setup_teardown(documents_are_in_order_of_path, folder_setup,
                                        folder_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
