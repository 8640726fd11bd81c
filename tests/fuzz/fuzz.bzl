"""One line per fuzz entry: the deterministic smoke run of fuzz_<thing>.c as a test, or, with
--config=fuzz, the same entry under libFuzzer."""

load("@rules_cc//cc:defs.bzl", "cc_test")

def fuzz_smoke_test(name, deps):
    """Tests <name>.c, which provides LLVMFuzzerTestOneInput and fuzz_seeds (see fuzz.h).

    Args:
      name: fuzz_<thing>; the source is <name>.c.
      deps: the libraries under test.
    """
    cc_test(
        name = name,
        srcs = [
            name + ".c",
            "fuzz.h",
            "fuzz_file.c",
            "small_tokenizer.h",
        ] + select({
            "//tests/fuzz:libfuzzer": [],  # brings its own main
            "//conditions:default": ["fuzz_smoke.c"],
        }),
        linkopts = [
            "-Wl,--wrap=file_map_open",
            "-Wl,--wrap=file_map_close",
        ],
        deps = deps + ["//base"],
    )
