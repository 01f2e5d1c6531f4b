"""Compiler options for this project's own code. Generated and installed code gets none of them."""

KVDEPOT_COPTS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wnon-virtual-dtor",
    "-Woverloaded-virtual",
    "-Wshadow",
    "-Wvla",
    "-Wwrite-strings",
]

# CPU and GPU must write identical bytes, so a multiply followed by an add stays two roundings:
# both compilers would otherwise fuse them where the machine can.
KVDEPOT_CODEC_COPTS = KVDEPOT_COPTS + ["-ffp-contract=off"]

# For code written with Highway, which vectorises by hand: the compiler's own vectoriser is off (see
# deploy/bazel/overlays/hwy.BUILD), its loop unrolling, which keeps arrays of sums in registers, is on.
_VECTOR_COPTS = [
    "-O3",
    "-fno-tree-vectorize",
]
KVDEPOT_VECTOR_COPTS = KVDEPOT_COPTS + _VECTOR_COPTS
KVDEPOT_VECTOR_CODEC_COPTS = KVDEPOT_CODEC_COPTS + _VECTOR_COPTS
