/* The tensor table behind kernels/param_table.h. */
#include "kernels/param_table.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* Row numbers and element numbers share the 64 bits of a random index (param_init.c). */
static const size_t PARAM_COUNT_MAX = (size_t)1 << 40;

const char *param_role_name(enum param_role role) {
    static const char *const names[ROLE_COUNT] = {"embedding", "position", "linear", "bias",
                                                  "norm"};
    return names[role];
}

static enum status row_check(const struct param_table *table, const struct param *row) {
    if (memchr(row->name, '\0', sizeof row->name) == NULL ||
        memchr(row->hf_name, '\0', sizeof row->hf_name) == NULL || row->name[0] == '\0') {
        return status_set(STATUS_INTERNAL, "tensor table: expected names of 1 to %d bytes, found "
                          "\"%.*s\"", PARAM_NAME_BYTES - 1, PARAM_NAME_BYTES, row->name);
    }
    if (row->rows == 0 || row->columns == 0 ||
        (row->padded_rows > 0 && row->padded_rows < row->rows)) {
        return status_set(STATUS_INTERNAL,
                          "tensor table: %s has %zu rows of %zu padded to %zu rows", row->name,
                          row->rows, row->columns, row->padded_rows);
    }
    if (param_table_find(table, row->name) != NULL) {
        return status_set(STATUS_INTERNAL, "tensor table: %s is there already", row->name);
    }
    return STATUS_OK;
}

enum status param_table_add(struct param_table *table, const struct param *row) {
    size_t end = 0;
    TRY(row_check(table, row));
    struct param added = *row;
    if (added.padded_rows == 0) added.padded_rows = added.rows;
    added.offset = table->elements;
    if (!size_mul(added.padded_rows, added.columns, &added.count) ||
        added.count > PARAM_COUNT_MAX || !size_add(added.offset, added.count, &end) ||
        end > SIZE_MAX / sizeof(double)) {
        return status_set(STATUS_MEMORY,
                          "tensor table: %s of %zu x %zu is more than any machine can "
                          "hold: use a smaller model",
                          row->name, added.padded_rows, added.columns);
    }
    if (table->length == table->capacity) {
        const size_t capacity = table->capacity == 0 ? 64 : table->capacity * 2;
        struct param *grown = realloc(table->params, capacity * sizeof *grown);
        if (grown == NULL) {
            return status_set(STATUS_MEMORY, "out of memory for a tensor table of %zu rows",
                              capacity);
        }
        table->params = grown;
        table->capacity = capacity;
    }
    table->params[table->length] = added;
    table->elements = align_up(end, PARAM_ALIGNMENT);
    table->length++;
    return STATUS_OK;
}

enum status param_table_pad(struct param_table *table, size_t multiple) {
    if (multiple == 0 || table->elements > SIZE_MAX / sizeof(double) - multiple) {
        return status_set(STATUS_MEMORY, "tensor table: %zu numbers cannot be padded to a multiple "
                          "of %zu", table->elements, multiple);
    }
    const size_t over = table->elements % multiple;
    if (over > 0) table->elements += multiple - over;
    return STATUS_OK;
}

void param_table_free(struct param_table *table) {
    free(table->params);
    *table = (struct param_table){0};
}

const struct param *param_table_find(const struct param_table *table, const char *name) {
    for (size_t i = 0; i < table->length; i++) {
        if (strcmp(table->params[i].name, name) == 0) return &table->params[i];
    }
    return NULL;
}

size_t param_count(const struct param *param) { return param->rows * param->columns; }

size_t param_table_count(const struct param_table *table) {
    size_t count = 0;
    for (size_t i = 0; i < table->length; i++) count += param_count(&table->params[i]);
    return count;
}
