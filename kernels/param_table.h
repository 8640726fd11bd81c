/*
 * The tensor table: one row for every parameter. Allocation, initialisation, optimizer groups,
 * weight decay, checkpoints, Hugging Face names, parameter and FLOP counts and gradient tests all
 * read it; there is no other list of parameters. A model (layers/gpt.c) adds the rows, the order is
 * the order of the flat buffers (master weights, gradients, moments), each row aligned to
 * PARAM_ALIGNMENT numbers.
 */
#ifndef DEEPWELL_KERNELS_PARAM_TABLE_H_
#define DEEPWELL_KERNELS_PARAM_TABLE_H_

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "kernels/tensor.h"

enum { PARAM_NAME_BYTES = 64, PARAM_ALIGNMENT = 128 };

enum param_role {
    ROLE_EMBEDDING, /* token embedding; also the head where tied: multiplied once a token */
    ROLE_POSITION,  /* position embedding: looked up only */
    ROLE_LINEAR,    /* [out, in] weight of a linear layer */
    ROLE_BIAS,
    ROLE_NORM,      /* scale or shift of a norm */
    ROLE_COUNT,
};
const char *param_role_name(enum param_role role);

enum param_init { INIT_ZERO, INIT_ONE, INIT_NORMAL };

struct param {
    char name[PARAM_NAME_BYTES];    /* ours: "h.0.attn.qkv.weight" */
    char hf_name[PARAM_NAME_BYTES]; /* Hugging Face's: "transformer.h.0.attn.c_attn.weight" */
    bool hf_transposed;             /* Hugging Face stores [in, out] (Conv1D) */
    enum param_role role;
    int layer;          /* block number, or -1 */
    size_t rows;        /* 1 for vectors */
    size_t columns;
    size_t padded_rows; /* rows in memory; those beyond `rows` are always zero and never saved */
    bool decay;         /* weight decay applies */
    enum param_init init;
    float init_std;     /* INIT_NORMAL */
    size_t offset;      /* of the first number in the flat buffers */
    size_t count;       /* padded_rows * columns */
};

/* Numbers [offset, offset + count) of the flat buffers that lie at `at` in a buffer that holds only
 * some of them. */
struct flat_range {
    size_t at, offset, count;
};

/* Several, in order and apart: what a rank has of the flat buffers. */
struct flat_ranges {
    const struct flat_range *items;
    size_t count;
};

struct param_table {
    struct param *params;
    size_t length;
    size_t capacity;
    size_t elements; /* length of the flat buffers, alignment gaps counted */
};

/* Appends a copy of *row and fills offset and count (row.padded_rows 0 means rows). */
enum status param_table_add(struct param_table *table, const struct param *row);

/* Lengthens the flat buffers to a multiple of `multiple` numbers (of zeros): what follows begins
 * there. */
enum status param_table_pad(struct param_table *table, size_t multiple);
void param_table_free(struct param_table *table);

const struct param *param_table_find(const struct param_table *table, const char *name);

/* Numbers that are really parameters: rows * columns, without padding. */
size_t param_count(const struct param *param);
size_t param_table_count(const struct param_table *table);

/* Writes the initial values of every parameter into `flat` (elements numbers, host memory): a pure
 * function of the seed and the row's place in the table. */
void param_table_initialise(const struct param_table *table, uint64_t seed, float *flat);

/* The same of row `row` alone: its `count` numbers into `values`. */
void param_initialise(const struct param_table *table, size_t row, uint64_t seed, float *values);

#endif
