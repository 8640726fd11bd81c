"""cuda_library: .cu files into one static archive that any cc_* target can put in its deps.
link_only: libraries without their headers."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@local_cuda//:config.bzl", "ARCHS", "NVCC")
load("@rules_cc//cc/common:cc_common.bzl", "cc_common")
load("@rules_cc//cc/common:cc_info.bzl", "CcInfo")

_MODE = {
    "opt": ["-O3", "-DNDEBUG"],
    "fastbuild": ["-O1"],
    "dbg": ["-O1", "-g"],
}

_FLAGS = [
    "-std=c++17",
    "-lineinfo",
    "-Xcompiler=-fPIC,-Wall,-Wextra",
    "-Xptxas=--warn-on-spills",
    "-I.",
]

def _compile(ctx, cc, headers, src):
    """One .cu file into one object with the code of every architecture. nvcc names its temporaries
    by process id, and sandboxes share /tmp, so it gets a TMPDIR of its own."""
    obj = ctx.actions.declare_file("_nvcc/%s/%s.o" % (ctx.label.name, src.basename))
    args = ctx.actions.args()
    args.add_all(["-c", src, "-o", obj, "-ccbin", cc.compiler_executable])
    args.add_all(_FLAGS)
    args.add_all(_MODE[ctx.var["COMPILATION_MODE"]])
    args.add_all(["-gencode=arch=compute_%s,code=sm_%s" % (arch, arch) for arch in ARCHS])
    args.add_all(headers.defines, format_each = "-D%s")
    args.add_all(headers.quote_includes, format_each = "-I%s")
    args.add_all(headers.includes, format_each = "-I%s")
    args.add_all(headers.system_includes, before_each = "-isystem")
    args.add_all(ctx.attr.copts)
    ctx.actions.run_shell(
        command = 'export TMPDIR=$(mktemp -d); trap \'rm -rf "$TMPDIR"\' EXIT; "$@"',
        arguments = [NVCC, args],
        inputs = depset([src], transitive = [headers.headers, cc.all_files]),
        outputs = [obj],
        mnemonic = "Nvcc",
        progress_message = "Compiling %s with nvcc" % src.short_path,
        use_default_shell_env = True,
    )
    return obj

def _cuda_library_impl(ctx):
    cc = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = cc,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    deps = [dep[CcInfo] for dep in ctx.attr.deps]
    own = cc_common.create_compilation_context(
        headers = depset(ctx.files.hdrs),
        defines = depset(ctx.attr.defines),
    )
    headers = cc_common.merge_cc_infos(
        direct_cc_infos = [CcInfo(compilation_context = own)],
        cc_infos = deps,
    ).compilation_context
    objects = [_compile(ctx, cc, headers, src) for src in ctx.files.srcs]
    linking, _ = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        name = ctx.label.name,
        feature_configuration = features,
        cc_toolchain = cc,
        compilation_outputs = cc_common.create_compilation_outputs(
            objects = depset(objects),
            pic_objects = depset(objects),
        ),
        linking_contexts = [dep.linking_context for dep in deps],
        disallow_dynamic_library = True,
    )
    return [
        DefaultInfo(files = depset(objects)),
        CcInfo(compilation_context = headers, linking_context = linking),
    ]

cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "defines": attr.string_list(),
        "copts": attr.string_list(),
        "_cc_toolchain": attr.label(default = Label("@bazel_tools//tools/cpp:current_cc_toolchain")),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

def _link_only_impl(ctx):
    linked = cc_common.merge_cc_infos(cc_infos = [dep[CcInfo] for dep in ctx.attr.deps])
    return [CcInfo(linking_context = linked.linking_context)]

# What deps link, without the headers they were compiled with: the toolkit has some thousand, and a
# sandbox that holds them takes longer to make than a source file takes to compile.
link_only = rule(
    implementation = _link_only_impl,
    attrs = {"deps": attr.label_list(providers = [CcInfo])},
)
