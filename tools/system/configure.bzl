"""@local_system: OpenBLAS, and a check that the C libraries of docs/build.md are installed.

  //:openblas   cc_library: <cblas.h>, linked with a run path to the variant found here
  //:versions   cc_library: <local_system/versions.h> with DEEPWELL_OPENBLAS_VERSION

Everything missing is named at once, with the one command that installs it.
"""

load(":find.bzl", "defined", "exists", "first_file", "shared_object", "triple")

_ENV = ["DEEPWELL_OPENBLAS_HOME"]

_OPENBLAS_PACKAGE = "libopenblas-openmp-dev"

def _missing_headers(rctx):
    """(header, Debian package) of each header line of packages.txt that is not installed."""
    folders = ["/usr/include", "/usr/include/" + triple(rctx), "/usr/local/include"]
    missing = []
    for line in rctx.read(Label("//tools/system:packages.txt")).splitlines():
        words = [word for word in line.split(" ") if word]
        if words and words[0] == "header" and not first_file(rctx, folders, words[1]):
            missing.append((words[1], words[2]))
    return missing

def _openblas_places(rctx):
    """(include folder, library folder, library stem) in order of preference: OpenMP builds first,
    since a build on plain threads would compete with our own OpenMP threads."""
    home = rctx.os.environ.get("DEEPWELL_OPENBLAS_HOME")
    if home:
        return [
            (home + "/" + include, home + "/" + lib, stem)
            for stem in ["libopenblas.so", "libopenblaso.so"]
            for include in ["include", "include/openblas"]
            for lib in ["lib", "lib64", "lib/" + triple(rctx)]
        ]
    arch = triple(rctx)
    places = [("/usr/include/%s/openblas-openmp" % arch, "/usr/lib/%s/openblas-openmp" % arch, "libopenblas.so")]
    for root in ["/usr", "/usr/local"]:
        for lib in ["lib64", "lib/" + arch, "lib"]:
            for include in ["include/openblas", "include/" + arch, "include"]:
                for stem in ["libopenblaso.so", "libopenblas.so"]:
                    places.append((root + "/" + include, root + "/" + lib, stem))
    return places

def _find_openblas(rctx):
    for include, lib, stem in _openblas_places(rctx):
        has_headers = exists(rctx, include + "/cblas.h") and exists(rctx, include + "/openblas_config.h")
        if has_headers and shared_object(rctx, lib, stem):
            return struct(include = include, lib = lib, name = shared_object(rctx, lib, stem))
    return None

def _fail_missing(rctx, headers, packages):
    home = rctx.os.environ.get("DEEPWELL_OPENBLAS_HOME")
    fail("\n".join([
        "",
        "Missing for the build: " + ", ".join(headers) + ".",
        "On Debian and Ubuntu: sudo apt-get install -y " + " ".join(packages),
        "Elsewhere: install these libraries with their headers under /usr or /usr/local.",
    ] + (["DEEPWELL_OPENBLAS_HOME is %s: nothing else was searched for OpenBLAS." % home] if home else [])))

def _local_system_impl(rctx):
    missing = _missing_headers(rctx)
    openblas = _find_openblas(rctx)
    if not openblas:
        missing.append(("cblas.h and libopenblas.so (OpenBLAS)", _OPENBLAS_PACKAGE))
    if missing:
        _fail_missing(rctx, [header for header, _ in missing], [package for _, package in missing])

    for header in ["cblas.h", "openblas_config.h"]:
        rctx.symlink(openblas.include + "/" + header, "openblas/" + header)
    version = defined(rctx.read("openblas/openblas_config.h"), "OPENBLAS_VERSION")
    version = [w for w in version.replace('"', "").split(" ") if w and w != "OpenBLAS"]
    rctx.file("include/local_system/versions.h", "\n".join([
        "/* Written by tools/system/configure.bzl. */",
        "#pragma once",
        '#define DEEPWELL_OPENBLAS_VERSION "%s"' % " ".join(version),
        "",
    ]))
    rctx.file("BUILD.bazel", """load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "openblas",
    hdrs = glob(["openblas/*.h"]),
    includes = ["openblas"],
    linkopts = ["-L{lib}", "-Wl,-rpath,{lib}", "-l:{name}"],
)

cc_library(
    name = "versions",
    hdrs = ["include/local_system/versions.h"],
    includes = ["include"],
)
""".format(lib = openblas.lib, name = openblas.name))
    print("openblas %s: %s/%s" % (" ".join(version), openblas.lib, openblas.name))

local_system = repository_rule(
    implementation = _local_system_impl,
    environ = _ENV,
    local = True,
    configure = True,
)
