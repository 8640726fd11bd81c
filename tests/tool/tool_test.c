/*
 * A Python tool: runs its test script, which names its oracles. Skipped, with a line, where no
 * Python has what the tool imports: set the variable to one that has it (./deepwell test does when
 * .venv is there).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *variable, *modules, *script, *tool;

static void the_tool_passes_its_tests(void **state) {
    (void)state;
    char command[8192];
    const char *python = getenv(variable);
    if (python == NULL || python[0] == '\0') python = "python3";
    snprintf(command, sizeof command, "'%s' -c 'import %s' 2>/dev/null", python, modules);
    if (system(command) != 0) {
        printf("%s does not import %s (%s says which Python to take): skipped\n", python, modules,
               variable);
        skip();
    }
    snprintf(command, sizeof command,
             "MPLCONFIGDIR=\"$TEST_TMPDIR\" PYTHONDONTWRITEBYTECODE=1 '%s' '%s' '%s'", python,
             script, tool);
    fflush(stdout);
    assert_int_equal(system(command), 0);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "expected a variable, modules with commas, the test script and the tool\n");
        return 1;
    }
    variable = argv[1];
    modules = argv[2];
    script = argv[3];
    tool = argv[4];
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_tool_passes_its_tests)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
