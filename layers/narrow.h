/*
 * A tensor that a linear multiplies in a narrow recipe: its copies, and how they are made.
 * Activation structures hold one beside every tensor that a linear reads; all zero, the linear
 * multiplies the tensor as it is.
 *
 * Copies come into being in one of two ways, and the layers ask for both in the same words:
 *   struct some_forward op = {..., .quantise = narrow_output(&tensor)};
 *   run op (with narrow_values() as its result)
 *   narrow_make(device, &tensor, values, true)
 * Where the scale is known beforehand (fp8, delayed), the operation writes the copies itself and
 * narrow_make has nothing left to do.
 */
#ifndef DEEPWELL_LAYERS_NARROW_H_
#define DEEPWELL_LAYERS_NARROW_H_

#include "layers/recipe.h"

struct narrow {
    struct quantised copies; /* row.codes NULL: not narrow */
    struct recipe_form form;
    enum scaling scaling;    /* of this pass */
    bool keep_values;        /* the operation writes its BF16 result too: somebody looks at it */
    uint64_t seed;           /* of stochastic rounding */
    uint32_t number;         /* of the tensor in the model */
};

static inline bool narrow_active(const struct narrow *tensor) {
    return tensor->copies.row.codes != NULL;
}

/* The same for fewer rows, in the same memory: the last chunk of the head. */
struct narrow narrow_rows(const struct narrow *tensor, size_t rows);

/* What the operation that makes the tensor does for it. */
struct quantise_output narrow_output(const struct narrow *tensor);

/* Where that operation writes its result: `values`, without memory if only the copies are
 * wanted. */
struct tensor narrow_values(const struct narrow *tensor, struct tensor values);

/* The copies from `values`, unless the operation has written them; nothing if the tensor is not
 * narrow. `after_output`: that operation was given narrow_output. */
enum status narrow_make(struct device *device, const struct narrow *tensor, struct tensor values,
                        bool after_output);

/* The same of an out_gradient that came without copies: with its column sums (+)= bias_gradient. */
enum status narrow_make_gradient(struct device *device, const struct narrow *tensor,
                                 struct tensor values, float *bias_gradient, bool accumulate);

/* The quantisation of `values` as narrow_make asks for it. */
struct quantise narrow_quantise(const struct narrow *tensor, struct tensor values,
                                bool after_output);

#endif
