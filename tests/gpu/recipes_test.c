/*
 * Narrow recipes on a GPU, native or emulated in BF16, against their emulation on the CPU. Oracle:
 * the CPU, with the same weights and data: the first step's gradients, then the losses of a curve.
 * Quantisers agree bit for bit (quantise_test.c) and products within the accumulation
 * (quantised_ops_test.c); here they are in a model.
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
 * The curve: the formula of engine_test.c, with the measured distance g of the gradients in place
 * of BF16's roundings: a token's loss off by g at random, six times g / 32 for the mean of a step,
 * and g of what was gained. Losses are FP32: 1e-6.
 *
 * BF16 is the control: its gradients differ by no more than their roundings, 8 in the block and 8
 * on the way back, sqrt(16) 2^-9.
 */
#include <math.h>
#include <stdio.h>

#include "base/clock.h"
#include "tests/gpu/engine_testing.h"
#include "tests/gpu/presence.h"

/* The CPU's gradients in BF16, which a recipe's errors are measured from. */
static float *wide;
static size_t count;

struct agreement {
    double own, others; /* |e|, |f|, of |BF16's| */
    double cosine;
    double distance; /* |e - f|, of the CPU's gradients */
};

static struct agreement compare_gradients(const float *mine, const float *theirs) {
    double size = 0.0, mine_size = 0.0, e2 = 0.0, f2 = 0.0, ef = 0.0, difference = 0.0;
    for (size_t i = 0; i < count; i++) {
        const double x = (double)mine[i], w = (double)wide[i];
        const double e = x - w, f = (double)theirs[i] - w;
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

static struct agreement first_gradients(struct variant v) {
    size_t also = 0;
    v.device = CONFIG_DEVICE_CPU;
    float *mine = variant_first_gradients(&v, &count);
    v.device = CONFIG_DEVICE_CUDA;
    float *theirs = variant_first_gradients(&v, &also);
    assert_int_equal(also, count);
    if (wide == NULL) { /* BF16 comes first */
        wide = test_memory(count * sizeof *wide);
        memcpy(wide, mine, count * sizeof *wide);
    }
    const struct agreement a = compare_gradients(mine, theirs);
    free(mine);
    free(theirs);
    return a;
}

/* Both curves; how far they are apart, of what is allowed, at the worst step. */
static void compare_curves(struct variant v, double distance) {
    double mine[STEPS], theirs[STEPS], worst = 0.0;
    size_t at = 0;
    v.device = CONFIG_DEVICE_CPU;
    struct saved a = variant_train(&v, 0, STEPS, NULL, mine);
    v.device = CONFIG_DEVICE_CUDA;
    struct saved b = variant_train(&v, 0, STEPS, NULL, theirs);
    for (size_t i = 0; i < STEPS; i++) {
        const double allowed = distance * (6.0 / 32.0 + mine[0] - mine[i]) + 1e-6;
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

static void recipes_are_those_of_the_cpu(void **state) {
    static const struct variant recipes[] = {
        {.name = "bf16", .recipe = CONFIG_RECIPE_BF16},
        {.name = "fp8 current", .recipe = CONFIG_RECIPE_FP8, .scaling = CONFIG_FP8_CURRENT},
        {.name = "fp8 delayed", .recipe = CONFIG_RECIPE_FP8},
        {.name = "fp8_block", .recipe = CONFIG_RECIPE_FP8_BLOCK},
        {.name = "mxfp8", .recipe = CONFIG_RECIPE_MXFP8},
        {.name = "nvfp4", .recipe = CONFIG_RECIPE_NVFP4},
    };
    (void)state;
    for (size_t r = 0; r < sizeof recipes / sizeof recipes[0]; r++) {
        struct variant v = recipes[r];
        const double begun = clock_seconds();
        const enum support support = variant_support(&v);
        v.layers = 1;
        printf("%s, %s here\n", v.name, support_name(support));
        if (support == SUPPORT_NONE) continue;
        const struct agreement a = first_gradients(v);
        printf("  gradients %.5f apart; error %.5f, here %.5f, cosine %.3f\n", a.distance, a.own,
               a.others, a.cosine);
        if (v.recipe == CONFIG_RECIPE_BF16) {
            assert_true(a.distance <= 4.0 * 0x1p-9);
        } else {
            assert_true(a.cosine > 0.5);
            assert_true(fabs(a.others - a.own) <= 0.1 * a.own);
        }
        compare_curves(v, a.distance);
        printf("  %.1f s\n", clock_seconds() - begun);
    }
    free(wide);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(recipes_are_those_of_the_cpu)};
    char folder[] = "/tmp/gpu_recipes_XXXXXX";
    if (gpu_missing()) return 0;
    if (mkdtemp(folder) == NULL) return 1;
    setenv("XDG_CACHE_HOME", folder, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
