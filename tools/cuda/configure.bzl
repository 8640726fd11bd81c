"""@local_cuda: the CUDA toolkit, cuDNN, its frontend, NCCL and MPI of this machine, each or none.

  //:cudart //:cublasLt //:cudnn //:cudnn_frontend //:nccl //:mpi
      cc_library with headers, library and HAVE_<NAME>=1 when found; empty when not
  //:build_info    <local_cuda/build_info.h>: DEEPWELL_<NAME>_VERSION, "" for what is absent
  //:config.bzl    HAVE_CUDA, HAVE_CUDNN_FRONTEND, HAVE_MPI, HAVE_NCCL, NVCC, ARCHS, VERSION for BUILD files and tools/cuda/cuda.bzl

A thing is found when its header and its library (for the toolkit nvcc too) lie where docs/build.md
says: a folder named by its variable, the toolkit, the system, Python wheels. One line says which.
"""

load("//tools/system:find.bzl", "defined", "exists", "first_file", "shared_object", "triple")

_ENV = [
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDNN_FRONTEND_PATH",
    "CUDNN_HOME",
    "DEEPWELL_CUDA",
    "DEEPWELL_CUDA_ARCHS",
    "DEEPWELL_PYTHON",
    "MPI_HOME",
    "NCCL_HOME",
    "PATH",
]

_DEFAULT_ARCHS = "90a,100a"

# The C and C++ compilers look here by themselves; naming them again would reorder their search.
_COMPILER_FOLDERS = ["/usr/include", "/usr/local/include"]

def _wheel_folders(rctx):
    """site-packages of the Python in use: wheels put CUDA below nvidia/ there."""
    chosen = rctx.os.environ.get("DEEPWELL_PYTHON")
    python = chosen or rctx.which("python3")
    if not python:
        return []
    code = "import sys; print('\\n'.join(p for p in sys.path if p.endswith('-packages')))"
    result = rctx.execute([python, "-c", code])
    if result.return_code == 0:
        return result.stdout.splitlines()
    if chosen:
        fail("DEEPWELL_PYTHON (%s) does not run: set it to a Python 3, or unset it.\n%s" % (python, result.stderr))
    return []  # a shim without a Python behind it has no wheels either

def _wheel_roots(rctx, site_folders):
    roots = []
    for site in site_folders:
        if exists(rctx, site + "/nvidia"):
            roots += sorted([str(p) for p in rctx.path(site + "/nvidia").readdir()])
    return roots

def _wrong_place(variable, place, what):
    fail("\n%s is %s, but there is no %s. Correct it or unset it." % (variable, place, what))

def _find(rctx, header, stem, roots, variable = None):
    """The first root that has both the header and the library: struct(header, include, lib, name).
    If the user's variable is set, it is the only root, and finding nothing there is an error."""
    arch = triple(rctx)
    home = rctx.os.environ.get(variable) if variable else None
    for root in [home] if home else roots:
        include = first_file(rctx, [
            root + "/include",
            root + "/include/" + arch,
            root + "/include/" + arch + "/mpi",
        ], header)
        if not include:
            continue
        for lib in ["/lib64", "/lib", "/lib/" + arch]:
            name = shared_object(rctx, root + lib, stem)
            if name:
                return struct(header = header, include = include, lib = root + lib, name = name)
    if home:
        _wrong_place(variable, home, "%s and %s in its include and library folders" % (header, stem))
    return None

def _find_nvcc(rctx, wheel_roots):
    for variable in ["CUDA_HOME", "CUDA_PATH"]:
        home = rctx.os.environ.get(variable)
        if home and not exists(rctx, home + "/bin/nvcc"):
            _wrong_place(variable, home, "bin/nvcc in it")
        if home:
            return home
    on_path = rctx.which("nvcc")
    roots = [str(on_path.dirname.dirname)] if on_path else []
    for root in roots + ["/usr/local/cuda"] + wheel_roots:
        if exists(rctx, root + "/bin/nvcc"):
            return root
    return None

def _find_toolkit(rctx, wheel_roots):
    """nvcc, the runtime and cuBLASLt; CUDA 12 wheels keep them in separate folders. None without all."""
    if rctx.os.environ.get("DEEPWELL_CUDA") == "0":
        return None
    root = _find_nvcc(rctx, wheel_roots)
    if not root:
        return None
    cudart = _find(rctx, "cuda_runtime.h", "libcudart.so", [root] + wheel_roots)
    cublas = _find(rctx, "cublasLt.h", "libcublasLt.so", [root] + wheel_roots)
    if not cudart or not cublas:
        fail("\n".join([
            "",
            "%s/bin/nvcc is there, but not %s." % (root, "cuBLASLt" if cudart else "the CUDA runtime"),
            "Install the toolkit's libraries and headers (docs/build.md), or set DEEPWELL_CUDA=0",
            "to build for the CPU alone.",
        ]))
    return struct(root = root, cudart = cudart, cublasLt = cublas)

def _find_frontend(rctx, site_folders):
    """Headers only: struct(header, include), or None."""
    header = "cudnn_frontend.h"
    env = rctx.os.environ.get("CUDNN_FRONTEND_PATH")
    places = [env, env + "/include"] if env else []
    for site in site_folders:
        places += [site + "/include", site + "/nvidia_cudnn_frontend/include"]
    include = first_file(rctx, places + ["/usr/include", "/usr/local/include"], header)
    if env and include not in [env, env + "/include"]:
        _wrong_place("CUDNN_FRONTEND_PATH", env, "%s in it or in its include folder" % header)
    return struct(header = header, include = include, lib = "", name = "") if include else None

def _find_all(rctx):
    site_folders = _wheel_folders(rctx)
    wheel_roots = _wheel_roots(rctx, site_folders)
    toolkit = _find_toolkit(rctx, wheel_roots)
    system = ["/usr", "/usr/local"]
    found = {name: None for name in ["cudart", "cublasLt", "cudnn", "cudnn_frontend", "nccl"]}
    if toolkit:
        roots = [toolkit.root] + system + wheel_roots
        cudnn = _find(rctx, "cudnn.h", "libcudnn.so", roots, "CUDNN_HOME")
        found = {
            "cudart": toolkit.cudart,
            "cublasLt": toolkit.cublasLt,
            "cudnn": cudnn,
            "cudnn_frontend": _find_frontend(rctx, site_folders) if cudnn else None,
            "nccl": _find(rctx, "nccl.h", "libnccl.so", roots, "NCCL_HOME"),
        }
    openmpi = "/usr/lib/" + triple(rctx) + "/openmpi"
    found["mpi"] = _find(rctx, "mpi.h", "libmpi.so", [openmpi] + system, "MPI_HOME")
    return toolkit, found

def _joined(rctx, path, names):
    """ "9.19.0" from the macros of a header; "" when the header lacks the first of them."""
    text = rctx.read(path) if exists(rctx, path) else ""
    values = [defined(text, name) for name in names]
    return ".".join(values) if values[0] else ""

def _version(rctx, name, include):
    if name == "cudart":
        number = int(defined(rctx.read(include + "/cuda_runtime_api.h"), "CUDART_VERSION"))
        return "%d.%d" % (number // 1000, number % 1000 // 10)
    header, macros = {
        "cudnn": ("cudnn_version.h", ["CUDNN_MAJOR", "CUDNN_MINOR", "CUDNN_PATCHLEVEL"]),
        "cudnn_frontend": ("cudnn_frontend_version.h", [
            "CUDNN_FRONTEND_MAJOR_VERSION",
            "CUDNN_FRONTEND_MINOR_VERSION",
            "CUDNN_FRONTEND_PATCH_VERSION",
        ]),
        "cublasLt": ("cublas_api.h", ["CUBLAS_VER_MAJOR", "CUBLAS_VER_MINOR", "CUBLAS_VER_PATCH"]),
        "nccl": ("nccl.h", ["NCCL_MAJOR", "NCCL_MINOR", "NCCL_PATCH"]),
        "mpi": ("mpi.h", ["MPI_VERSION", "MPI_SUBVERSION"]),
    }[name]
    return _joined(rctx, include + "/" + header, macros)

def _headers(rctx, folders, include):
    """The name of the library of the headers in that folder, and its text where it is a new one: one
    library a folder, linked into the repository so that sandboxes hold it."""
    if include in folders:
        return folders[include], ""
    name = "headers_%d" % len(folders)
    folders[include] = name
    rctx.symlink(include, name + "/include")  # cuDNN's frontend asks for "../include/..."
    attributes = 'name = "{0}", hdrs = glob(["{0}/include/**"]), includes = ["{0}/include"]'.format(name)
    return name, "cc_library(%s)\n" % attributes

def _target(rctx, folders, name, thing):
    """The text of one cc_library."""
    attributes = ['name = "%s"' % name]
    headers = ""
    if thing:
        attributes.append('defines = ["HAVE_%s=1"]' % name.upper())
    if thing and thing.include not in _COMPILER_FOLDERS:
        library, headers = _headers(rctx, folders, thing.include)
        attributes.append('deps = [":%s"]' % library)
    if thing and thing.lib:
        attributes.append('linkopts = ["-L{0}", "-Wl,-rpath,{0}", "-l:{1}"]'.format(thing.lib, thing.name))
    return headers + "cc_library(%s)" % ", ".join(attributes)

def _headers_of(thing):
    """The same without the library: for code that opens it at run time."""
    return struct(header = thing.header, include = thing.include, lib = "", name = "") if thing else None

def _local_cuda_impl(rctx):
    toolkit, found = _find_all(rctx)
    versions = {n: _version(rctx, n, found[n].include) if found[n] else "" for n in found}
    archs = rctx.os.environ.get("DEEPWELL_CUDA_ARCHS") or _DEFAULT_ARCHS
    folders = {}  # include folder: the library of its headers

    rctx.file("BUILD.bazel", "\n".join([
        'load("@rules_cc//cc:defs.bzl", "cc_library")',
        'package(default_visibility = ["//visibility:public"])',
        'cc_library(name = "build_info", hdrs = ["include/local_cuda/build_info.h"],',
        '           includes = ["include"], deps = ["@local_system//:versions"])',
    ] + [_target(rctx, folders, name, found[name]) for name in sorted(found)] + [
        _target(rctx, folders, "cudnn_headers", _headers_of(found["cudnn"])),
    ]) + "\n")
    macros = {
        "CUDA": versions["cudart"],
        "CUBLASLT": versions["cublasLt"],
        "CUDNN": versions["cudnn"],
        "CUDNN_FRONTEND": versions["cudnn_frontend"],
        "NCCL": versions["nccl"],
        "MPI": versions["mpi"],
    }
    rctx.file("include/local_cuda/build_info.h", "\n".join([
        "/* Written by tools/cuda/configure.bzl: what was found at build time; \"\" is absent. */",
        "#pragma once",
        "#include <local_system/versions.h>",
    ] + ['#define DEEPWELL_%s_VERSION "%s"' % (n, macros[n]) for n in sorted(macros)] + [
        '#define DEEPWELL_CUDA_ARCHS "%s"' % (archs if toolkit else ""),
    ]) + "\n")
    rctx.file("config.bzl", "\n".join([
        "HAVE_CUDA = %s" % bool(toolkit),
        "HAVE_CUDNN_FRONTEND = %s" % bool(found["cudnn_frontend"]),
        "HAVE_MPI = %s" % bool(found["mpi"]),
        "HAVE_NCCL = %s" % bool(found["nccl"]),
        "NVCC = %r" % (toolkit.root + "/bin/nvcc" if toolkit else ""),
        "ARCHS = %r" % archs.split(","),
        "VERSION = %r" % versions["cudart"],
    ]) + "\n")
    print("cuda: %s; " % ("%s in %s" % (versions["cudart"], toolkit.root) if toolkit else "no") +
          "; ".join(["%s: %s" % (n, versions[n] or "no") for n in sorted(found) if n != "cudart"]))

local_cuda = repository_rule(
    implementation = _local_cuda_impl,
    environ = _ENV,
    local = True,
    configure = True,
)
