"""Fuzz targets: one source, two drivers."""

load(":copts.bzl", "KVDEPOT_COPTS")

def kvdepot_fuzz(name, src, deps = [], corpus = [], tags = [], **kwargs):
    """Makes the libFuzzer program `<name>` and the ordinary test `<name>_replay_test`.

    The replay runs the corpus, then seeded pseudo-random inputs and mutations of the corpus, so
    that every test run covers the target without clang. The program is for
    `bazel build --config=fuzz`; deploy/soak finds it by its tag.

    Args:
      name: of the program.
      src: defines extern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t).
      deps: of the source.
      corpus: files (a glob) to start from; they must not be executable.
      tags: of both targets, for instance notsan.
      **kwargs: passed on to both.
    """
    native.cc_test(
        name = name + "_replay_test",
        srcs = [src, "//deploy/bazel:fuzz_replay_main.cc"],
        args = ["$(rootpath %s)" % file for file in corpus],
        copts = KVDEPOT_COPTS,
        data = corpus,
        tags = tags + ["fuzz_replay"],
        deps = deps,
        **kwargs
    )
    native.cc_binary(
        name = name,
        testonly = True,
        srcs = [src],
        copts = KVDEPOT_COPTS,
        data = corpus,
        linkopts = ["-fsanitize=fuzzer"],
        tags = tags + ["fuzz", "manual"],
        deps = deps,
        **kwargs
    )
