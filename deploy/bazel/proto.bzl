"""C++ code from this project's protos, made by the installed protoc."""

_ROOT = "proto"
_OUT = "cc"

def _sources_of(label):
    """The .proto files behind a kvdepot_cc_proto target, needed by whoever imports them."""
    return label + "_srcs" if ":" in label else label + ":" + label.split("/")[-1] + "_srcs"

def kvdepot_cc_proto(name, srcs, deps = [], grpc = False, visibility = None, **kwargs):
    """A cc_library of the generated code of `srcs`, plus the filegroup `<name>_srcs`.

    The proto file proto/kvdepot/v1/depot.proto is imported as kvdepot/v1/depot.proto and its
    header is included as kvdepot/v1/depot.pb.h (and .grpc.pb.h).

    Args:
      name: of the library.
      srcs: .proto files of this package, which lies under proto/.
      deps: kvdepot_cc_proto targets that are imported, or @googleapis//:error_details_cc_proto.
      grpc: whether to generate services too.
      visibility: of the library and of its sources.
      **kwargs: passed on to the library.
    """
    package = native.package_name()
    if package != _ROOT and not package.startswith(_ROOT + "/"):
        fail("kvdepot_cc_proto belongs under //%s, not in //%s" % (_ROOT, package))

    native.filegroup(
        name = name + "_srcs",
        srcs = srcs + [_sources_of(dep) for dep in deps],
        visibility = visibility,
    )

    # Generated files get a folder of their own that repeats the path from the root: so it can be
    # an include path without going above this package.
    path = package[len(_ROOT):].strip("/")
    prefix = "/".join([_OUT, path] if path else [_OUT])
    kinds = ["pb"] + (["grpc.pb"] if grpc else [])
    stems = [prefix + "/" + src[:-len(".proto")] for src in srcs]
    headers = ["%s.%s.h" % (stem, kind) for stem in stems for kind in kinds]
    sources = ["%s.%s.cc" % (stem, kind) for stem in stems for kind in kinds]

    out = "$(RULEDIR)/" + _OUT
    flags = ["-I" + _ROOT, "--cpp_out=" + out]
    if [dep for dep in deps if dep.startswith("@googleapis//")]:
        flags.append("-Iexternal/googleapis")
    if grpc:
        flags.append("--plugin=protoc-gen-grpc=$$(command -v grpc_cpp_plugin)")
        flags.append("--grpc_out=" + out)
    native.genrule(
        name = name + "_gen",
        srcs = [":" + name + "_srcs"],
        outs = headers + sources,
        cmd = " ".join(["protoc"] + flags + ["$(location %s)" % src for src in srcs]),
        message = "Generating C++ from protos",
        tools = srcs,
        visibility = ["//visibility:private"],
    )

    native.cc_library(
        name = name,
        srcs = sources,
        hdrs = headers,
        copts = ["-w"],
        # A system include path: warnings inside generated headers are not ours to fix.
        includes = [_OUT],
        deps = deps + ["@com_google_protobuf//:protobuf"] + (["@grpc//:grpc++"] if grpc else []),
        visibility = visibility,
        **kwargs
    )
