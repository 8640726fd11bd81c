/* The two devices of tests/gpu/gpu_testing.h, one of each for all files of a test. */
#include "tests/gpu/gpu_testing.h"

struct device cpu, gpu;
