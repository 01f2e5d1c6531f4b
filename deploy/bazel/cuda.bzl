"""CUDA sources, compiled by nvcc for the host compiler's linker.

rules_cuda does not load on this Bazel, and all that is needed is small: every source becomes one
object with its own kernels (no device linking), and the objects become an ordinary library.
"""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@cuda//:defs.bzl", "CUDA_VERSION_FILE", "HAVE_CUDA", "NVCC")

# Machine code for Hopper, and code for the driver's compiler that serves whatever comes after it.
_ARCHITECTURES = ["-gencode=arch=compute_90,code=[sm_90,compute_90]"]

_COPTS = [
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",
    # Less than a third of the default's size, and every program holds the kernels.
    "--compress-mode=size",
    "-Werror=all-warnings",
    "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror",
]

# CPU and GPU must write identical bytes: see KVDEPOT_CODEC_COPTS.
KVDEPOT_CUDA_CODEC_COPTS = [
    "--fmad=false",
    "-Xcompiler=-ffp-contract=off",
]

def _object(ctx, source, context):
    """Compiles one source; what it includes are the headers of `context` and of the system."""
    output = ctx.actions.declare_file("_nvcc/%s/%s.o" % (ctx.label.name, source.basename))
    arguments = ctx.actions.args()
    arguments.add_all(_COPTS + _ARCHITECTURES)
    arguments.add_all(context.defines, format_each = "-D%s")
    arguments.add_all(context.includes, before_each = "-I")
    arguments.add_all(context.system_includes, before_each = "-isystem")
    arguments.add_all(context.quote_includes, format_each = "-Xcompiler=-iquote,%s")
    arguments.add_all(ctx.attr.copts)
    arguments.add("-c", source)
    arguments.add("-o", output)
    ctx.actions.run(
        executable = NVCC,
        arguments = [arguments],
        # The toolkit is no input, as the host compiler is none; its version is.
        inputs = depset([source] + ctx.files._version, transitive = [context.headers]),
        outputs = [output],
        mnemonic = "CudaCompile",
        progress_message = "Compiling %s with nvcc" % source.short_path,
        use_default_shell_env = True,
    )
    return output

def _cuda_library_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    infos = [dep[CcInfo] for dep in ctx.attr.deps]
    own = cc_common.create_compilation_context(
        headers = depset(ctx.files.hdrs),
        quote_includes = depset([".", ctx.bin_dir.path]),
    )
    private = cc_common.create_compilation_context(
        headers = depset([f for f in ctx.files.srcs if f.extension in ["h", "cuh"]]),
    )
    exported = cc_common.merge_cc_infos(
        cc_infos = [CcInfo(compilation_context = own)] + infos,
    ).compilation_context
    context = cc_common.merge_cc_infos(
        cc_infos = [
            CcInfo(compilation_context = private),
            CcInfo(compilation_context = exported),
        ],
    ).compilation_context
    objects = depset([
        _object(ctx, source, context)
        for source in ctx.files.srcs
        if source.extension not in ["h", "cuh"]
    ])
    linking, _ = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        cc_toolchain = toolchain,
        compilation_outputs = cc_common.create_compilation_outputs(
            objects = objects,
            pic_objects = objects,
        ),
        disallow_dynamic_library = True,
        feature_configuration = features,
        linking_contexts = [info.linking_context for info in infos],
        name = ctx.label.name,
    )
    return [
        DefaultInfo(files = objects),
        CcInfo(compilation_context = exported, linking_context = linking),
    ]

_cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = {
        "copts": attr.string_list(),
        "deps": attr.label_list(providers = [CcInfo]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "srcs": attr.label_list(allow_files = [".cu", ".cc", ".h", ".cuh"]),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
        "_version": attr.label(default = CUDA_VERSION_FILE, allow_single_file = True),
    },
    fragments = ["cpp"],
    incompatible_use_toolchain_transition = True,
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

# target_compatible_with of whatever needs a toolkit: where there is none, it and all that depends on
# it is left out of `//...` instead of failing there.
KVDEPOT_CUDA_ONLY = [] if HAVE_CUDA else ["//deploy/bazel:cuda_toolkit"]

def kvdepot_cuda_library(name, srcs, hdrs = [], deps = [], copts = [], **kwargs):
    """A cc_library whose sources nvcc compiles. It depends on cudart, linked statically.

    Args:
      name: of the library.
      srcs: .cu files, .cc files that call the CUDA runtime, and private headers.
      hdrs: headers for others. Those that hold no device code need no nvcc to be included.
      deps: libraries; their headers are what the sources may include.
      copts: for nvcc, for instance KVDEPOT_CUDA_CODEC_COPTS.
      **kwargs: passed on to the rule (visibility, testonly and so on).
    """
    _cuda_library(
        name = name,
        srcs = srcs,
        hdrs = hdrs,
        copts = copts,
        target_compatible_with = KVDEPOT_CUDA_ONLY,
        deps = deps + ["@cuda//:cudart"],
        **kwargs
    )
