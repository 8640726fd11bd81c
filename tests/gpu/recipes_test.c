/*
 * Narrow recipes on a GPU, native or emulated in BF16, against their emulation on the CPU. Oracle:
 * the CPU, with the same weights, data and scales: the second step's gradients, in which delayed
 * scales are in use (the first has none to go on from), from the state that the CPU's first step
 * left; then the losses of a curve. Quantisers agree bit for bit (quantise_test.c) and products
 * within the accumulation (quantised_ops_test.c); here they are in a model.
 *
 * What differs between the devices is the order and width of sums, and that cuDNN's attention
 * rounds probabilities to BF16: some 2^-10 of a number. An own rounding is a step q of the format
 * wide, 2^-4 to 2^-3 of the number in E4M3 and 2^-2 to 2^-1 in E2M1, off by q^2 / 12 in the mean
 * square. Numbers that differ by d fall on two sides of a border with probability d / q and then
 * differ by q: d q in the mean square, 12 d / q of the own error. That is 10 % for d = 2^-10 and
 * E4M3, but what comes out differs by more and is rounded again: the share grows with every
 * linear, towards two independent roundings. So the gradients cannot be compared to the bit; but
 * in one block most of the error that the recipe makes, gradient less BF16's, must be common. With
 * e the error on the CPU, f on the GPU:
 *   cosine(e, f) > 1/2    of independent roundings, and of products of BF16, 0; of fp8_block's
 *                         scales in place of mxfp8's, and of fp8's in place of fp8_block's, below
 *                         0.1 was seen
 *   |f| within 10 % of |e|: sums over 10^6 numbers, which differ far less
 * With the CPU's attention rounded as cuDNN's is and sums disturbed by 2^-20 (2^-12 where Hopper
 * adds fast) the CPU against itself gave cosines of 0.80 (fp8) to 0.90 (nvfp4), and |f| within 2 %.
 *
 * The curve: the formula of engine_test.c, with |e| in place of BF16's roundings: by the two bounds
 * above |e - f| is |e| at most, whatever the GPU does, and |e| is the CPU's alone. A token's loss
 * is off by it at random, six times |e| / 32 for the mean of a step, and |e| of what was gained.
 * Losses are FP32: 1e-6.
 *
 * BF16 is the control: its gradients differ by no more than their roundings, 8 in the block and 8
 * on the way back, sqrt(16) 2^-9, which is its curve's e too.
 *
 * With the name of a recipe, that one alone: recipes_test "fp8 delayed".
 */
#include <math.h>
#include <stdio.h>

#include "base/clock.h"
#include "tests/gpu/engine_testing.h"
#include "tests/gpu/presence.h"

static const double roundings = 4.0 * 0x1p-9; /* of BF16, above */

struct agreement {
    double own, others; /* |e|, |f|, of |BF16's| */
    double cosine;
    double distance; /* |e - f|, of the CPU's gradients */
};

/* `wide`: the CPU's in BF16, which a recipe's errors are measured from. */
static struct agreement compare_gradients(const struct gradients *wide,
                                          const struct gradients *mine,
                                          const struct gradients *theirs) {
    double size = 0.0, mine_size = 0.0, e2 = 0.0, f2 = 0.0, ef = 0.0, difference = 0.0;
    assert_int_equal(mine->count, wide->count);
    assert_int_equal(theirs->count, wide->count);
    for (size_t i = 0; i < wide->count; i++) {
        const double x = (double)mine->numbers[i], w = (double)wide->numbers[i];
        const double e = x - w, f = (double)theirs->numbers[i] - w;
        size += w * w;
        mine_size += x * x;
        e2 += e * e;
        f2 += f * f;
        ef += e * f;
        difference += (e - f) * (e - f);
    }
    return (struct agreement){
        .own = sqrt(e2 / size),
        .others = sqrt(f2 / size),
        .cosine = e2 > 0.0 && f2 > 0.0 ? ef / sqrt(e2 * f2) : 0.0,
        .distance = sqrt(difference / mine_size),
    };
}

/* Under delayed scaling a step works with the scales that it found, and under current scaling those
 * of activations and gradients are its own tensors'. */
static void expect_scaling(const struct variant *v, const struct saved *start,
                           const struct gradients *g) {
    const bool delayed = v->scaling == CONFIG_FP8_DELAYED;
    size_t seen = 0, kept = 0;
    if (v->recipe != CONFIG_RECIPE_FP8) return;
    assert_int_equal(g->scale_count, start->scale_count);
    for (size_t i = 0; i < g->scale_count; i++) {
        seen += start->scales[i].seen == 1;
        kept += g->scales[i].scale == start->scales[i].scale;
    }
    assert_int_equal(seen, delayed ? g->scale_count : 0);
    assert_int_equal(kept == g->scale_count, delayed);
}

static struct agreement second_gradients(struct variant v) {
    v.device = CONFIG_DEVICE_CPU;
    struct saved start = variant_train(&v, 0, 1, NULL, NULL);
    struct variant wide_variant = v;
    wide_variant.recipe = CONFIG_RECIPE_BF16;
    struct gradients wide = variant_gradients_from(&wide_variant, 1, &start);
    struct gradients mine = variant_gradients_from(&v, 1, &start);
    v.device = CONFIG_DEVICE_CUDA;
    struct gradients theirs = variant_gradients_from(&v, 1, &start);
    expect_scaling(&v, &start, &mine);
    expect_scaling(&v, &start, &theirs);
    const struct agreement a = compare_gradients(&wide, &mine, &theirs);
    gradients_free(&wide);
    gradients_free(&mine);
    gradients_free(&theirs);
    saved_free(&start);
    return a;
}

/* Both curves; how far they are apart, of what is allowed, at the worst step. */
static void compare_curves(struct variant v, double error) {
    double mine[STEPS], theirs[STEPS], worst = 0.0;
    size_t at = 0;
    v.device = CONFIG_DEVICE_CPU;
    struct saved a = variant_train(&v, 0, STEPS, NULL, mine);
    v.device = CONFIG_DEVICE_CUDA;
    struct saved b = variant_train(&v, 0, STEPS, NULL, theirs);
    for (size_t i = 0; i < STEPS; i++) {
        const double allowed = error * (6.0 / 32.0 + mine[0] - mine[i]) + 1e-6;
        const double share = fabs(theirs[i] - mine[i]) / allowed;
        if (!(share <= worst)) worst = share, at = i;
    }
    printf("  losses %.5f to %.5f, here %.5f to %.5f; furthest apart at step %zu: %.5f, here %.5f, "
           "%.2f of what is allowed\n",
           mine[0], mine[STEPS - 1], theirs[0], theirs[STEPS - 1], at + 1, mine[at], theirs[at],
           worst);
    assert_true(mine[STEPS - 1] < mine[0] - 1.0);
    assert_true(worst <= 1.0);
    saved_free(&a);
    saved_free(&b);
}

static void recipe_is_that_of_the_cpu(void **state) {
    struct variant v = *(const struct variant *)*state;
    const double begun = clock_seconds();
    const enum support support = variant_support(&v);
    v.layers = 1;
    printf("%s, %s here\n", v.name, support_name(support));
    if (support == SUPPORT_NONE) return;
    const struct agreement a = second_gradients(v);
    printf("  gradients %.5f apart; error %.5f, here %.5f, cosine %.3f\n", a.distance, a.own,
           a.others, a.cosine);
    if (v.recipe == CONFIG_RECIPE_BF16) {
        assert_true(a.distance <= roundings);
    } else {
        assert_true(a.cosine > 0.5);
        assert_true(fabs(a.others - a.own) <= 0.1 * a.own);
    }
    compare_curves(v, v.recipe == CONFIG_RECIPE_BF16 ? roundings : a.own);
    printf("  %.1f s\n", clock_seconds() - begun);
}

int main(int argc, char **argv) {
    static struct variant recipes[] = {
        {.name = "bf16", .recipe = CONFIG_RECIPE_BF16},
        {.name = "fp8 current", .recipe = CONFIG_RECIPE_FP8, .scaling = CONFIG_FP8_CURRENT},
        {.name = "fp8 delayed", .recipe = CONFIG_RECIPE_FP8, .scaling = CONFIG_FP8_DELAYED},
        {.name = "fp8_block", .recipe = CONFIG_RECIPE_FP8_BLOCK},
        {.name = "mxfp8", .recipe = CONFIG_RECIPE_MXFP8},
        {.name = "nvfp4", .recipe = CONFIG_RECIPE_NVFP4},
    };
    struct CMUnitTest tests[sizeof recipes / sizeof recipes[0]] = {0};
    for (size_t i = 0; i < sizeof recipes / sizeof recipes[0]; i++) {
        tests[i].name = recipes[i].name;
        tests[i].test_func = recipe_is_that_of_the_cpu;
        tests[i].initial_state = &recipes[i];
    }
    if (!CHOOSE_TEST(argc, argv, tests)) return 2;
    if (gpu_missing()) return 0;
    gpu_test_folder_make();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
