"""WORKSPACE only (Bazel 4 to 6, offline): local stand-ins for the rule sets that Bazel would download."""

def _re(names):
    return "\n".join(["%s = native.%s" % (n, n) for n in names]) + "\n"

_CC = _re([
    "cc_binary",
    "cc_import",
    "cc_libc_top_alias",
    "cc_library",
    "cc_proto_library",
    "cc_test",
    "cc_toolchain",
    "cc_toolchain_alias",
    "cc_toolchain_suite",
    "fdo_prefetch_hints",
    "fdo_profile",
    "objc_library",
]) + """
def compiler_flag(**kwargs): pass
def cc_flags_supplier(**kwargs): pass
"""
_JAVA = _re(["java_binary", "java_import", "java_library", "java_runtime", "java_toolchain"])

def _stub_impl(rctx):
    for path, text in rctx.attr.files.items():
        rctx.file(path, text)

_stub = repository_rule(implementation = _stub_impl, attrs = {"files": attr.string_dict()})

def old_bazel_repositories():
    _stub(name = "rules_cc", files = {
        "WORKSPACE": "", "BUILD": "", "cc/BUILD": "", "cc/common/BUILD": "",
        "cc/defs.bzl": _CC,
        "cc/common/native.bzl": "native_cc_common = cc_common\nNativeCcInfo = CcInfo\n",
        "cc/common/cc_common.bzl": 'load(":native.bzl", "native_cc_common")\ncc_common = native_cc_common\n',
        "cc/common/cc_info.bzl": 'load(":native.bzl", "NativeCcInfo")\nCcInfo = NativeCcInfo\n',
    })
    _stub(name = "rules_java", files = {
        "WORKSPACE": "",
        "BUILD": "",
        "java/BUILD": "",
        "java/defs.bzl": _JAVA,
    })
    _stub(name = "remote_coverage_tools", files = {
        "WORKSPACE": "",
        "BUILD": 'filegroup(name = "coverage_report_generator", visibility = ["//visibility:public"])',
    })
