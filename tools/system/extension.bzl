"""Bazel 7 and later: the same @local_system and @local_cuda, declared through MODULE.bazel."""

load("//tools/cuda:configure.bzl", "local_cuda")
load(":configure.bzl", "local_system")

def _local_impl(_ctx):
    local_system(name = "local_system")
    local_cuda(name = "local_cuda")

local = module_extension(implementation = _local_impl)
