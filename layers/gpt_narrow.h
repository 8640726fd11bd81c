/*
 * What narrow recipes add to a GPT: which linear takes which recipe, the scale states of all
 * tensors in one flat array, the copies of the weights, and the memory of the other copies. Called
 * by the engine (states and weights) and by gpt_memory.c (activations).
 *
 * States: for each linear (four a block in the order of enum block_linear, then the head) and each
 * of its three tensors one for the row copy and one for the transposed copy. With one scale a
 * tensor the first serves both; a recipe without tensor scales uses none but for `draws`.
 */
#ifndef DEEPWELL_LAYERS_GPT_NARROW_H_
#define DEEPWELL_LAYERS_GPT_NARROW_H_

#include "kernels/arena.h"
#include "layers/gpt.h"

enum block_linear {
    LINEAR_QKV, LINEAR_ATTENTION_PROJECTION, LINEAR_FC, LINEAR_MLP_PROJECTION, BLOCK_LINEARS,
};
enum linear_tensor { TENSOR_INPUT, TENSOR_WEIGHT, TENSOR_OUT_GRADIENT, LINEAR_TENSORS };

/* One of a model's tensors: a block's, or the head's (layer = layers, any linear). */
struct tensor_place {
    size_t layer;
    enum block_linear linear;
    enum linear_tensor tensor;
};

/* Length of the array of states. */
size_t gpt_scale_count(const struct gpt *gpt);

/* The place whose states are at [index] (of 0 to gpt_scale_count) and, in `text`, its name:
 * "block.3.mlp.fc.input", "head.out_gradient"; the second state of a tensor ends in
 * "_transposed". */
enum { TENSOR_PLACE_BYTES = 64 };
struct tensor_place gpt_scale_place(const struct gpt *gpt, size_t index);
const char *gpt_scale_name(char text[TENSOR_PLACE_BYTES], const struct gpt *gpt, size_t index);

/* The starting states, in host memory: scale 1, nothing seen. */
void gpt_scales_initialise(const struct gpt *gpt, struct scale_state *states);

/* Sets the model's precision and lays the copies of the weights out in `arena` (measuring or real).
 * `states` (device memory, or NULL while measuring) must outlive the model. After gpt_bind. */
enum status gpt_narrow_open(struct gpt *gpt, const struct precision *precision,
                            struct scale_state *states, struct arena *arena);

/* Quantises all weights of narrow linears, each by its own amax: whenever the weights changed. */
enum status gpt_narrow_weights(struct gpt *gpt, struct device *device);

/* The recipe of the linear of a place. */
struct recipe gpt_recipe_at(const struct gpt *gpt, size_t layer);

/* Memory of one copy. */
struct copy_memory {
    void *codes, *scales;
};

/* Bytes of a copy, and memory for one of that size. */
struct copy_bytes {
    size_t codes, scales;
};
struct copy_bytes copy_bytes_of(const struct recipe_form *form, size_t rows, size_t columns);
struct copy_bytes copy_bytes_max(struct copy_bytes a, struct copy_bytes b);
enum status copy_take(struct arena *arena, struct copy_bytes bytes, struct copy_memory *out);

const struct recipe_form *recipe_form_of(const struct recipe *recipe, enum linear_tensor tensor);

/* The tensor (rows, columns) at `place` with its copies in this memory; codes NULL: not wanted. */
struct narrow gpt_narrow_tensor(const struct gpt *gpt, struct scale_state *states,
                                struct tensor_place place, size_t rows, size_t columns,
                                struct copy_memory row, struct copy_memory transposed);

#endif
