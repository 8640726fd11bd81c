/*
 * `plot`, the Python tool: runs plot_test.py, which names its oracles. Skipped, with a line, where
 * no Python has matplotlib: set DEEPWELL_PLOT_PYTHON (./deepwell test sets it when .venv has it).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *script, *tool;

static void the_tool_passes_its_tests(void **state) {
    (void)state;
    char command[8192];
    const char *python = getenv("DEEPWELL_PLOT_PYTHON");
    if (python == NULL || python[0] == '\0') python = "python3";
    snprintf(command, sizeof command, "'%s' -c 'import matplotlib' 2>/dev/null", python);
    if (system(command) != 0) {
        printf("%s lacks matplotlib: skipped\n", python);
        skip();
    }
    snprintf(command, sizeof command,
             "MPLCONFIGDIR=\"$TEST_TMPDIR\" PYTHONDONTWRITEBYTECODE=1 '%s' '%s' '%s'", python,
             script, tool);
    fflush(stdout);
    assert_int_equal(system(command), 0);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "expected the test script and the tool\n");
        return 1;
    }
    script = argv[1];
    tool = argv[2];
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_tool_passes_its_tests)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
