"""Finds a CUDA toolkit on this machine and makes the repository @cuda of it.

It takes the first of $CUDA_HOME, /usr/local/cuda and .tools/cuda (the wheels that deploy/install
puts there when a machine has no toolkit). Without any, @cuda says so and CUDA targets are absent.
"""

# The first release whose API the sources use.
_VERSION_MIN = 13000

_BUILD = """
package(default_visibility = ["//visibility:public"])

exports_files(["version.txt"])

# The runtime's headers for host code. Device code is compiled by nvcc, which knows where its own are.
cc_library(
    name = "cudart",
    hdrs = glob(["include/*.h", "include/*.hpp", "include/crt/*"]),
    includes = ["include"],
    linkopts = %s,
)
"""

_DEFS = """
HAVE_CUDA = %s
NVCC = "%s"
CUDA_VERSION_FILE = "@cuda//:version.txt"
"""

def _version(repository, folder):
    """CUDART_VERSION of a whole toolkit in `folder`, 0 if there is none."""
    header = folder.get_child("include").get_child("cuda_runtime_api.h")
    needed = [header, folder.get_child("bin").get_child("nvcc"), _cudart(folder)]
    for path in needed:
        if path == None or not path.exists:
            return 0
    for line in repository.read(header).split("\n"):
        words = [word for word in line.split(" ") if word]
        if words[:2] == ["#define", "CUDART_VERSION"]:
            return int(words[2])
    return 0

def _cudart(folder):
    """The runtime's archive: installers disagree on the folder's name."""
    for name in ["lib64", "lib"]:
        archive = folder.get_child(name).get_child("libcudart_static.a")
        if archive.exists:
            return archive
    return None

def _cuda_toolkit_impl(repository):
    workspace = repository.path(Label("@//:WORKSPACE")).dirname
    candidates = [repository.path("/usr/local/cuda"), workspace.get_child(".tools").get_child("cuda").get_child("nvidia").get_child("cu13")]
    home = repository.os.environ.get("CUDA_HOME")
    if home:
        candidates.insert(0, repository.path(home))
    for folder in candidates:
        version = _version(repository, folder)
        if version < _VERSION_MIN:
            continue
        repository.symlink(folder.get_child("include"), "include")
        archive = _cudart(folder)
        repository.file("version.txt", "%s %d\n" % (folder, version))
        repository.file("defs.bzl", _DEFS % (True, folder.get_child("bin").get_child("nvcc")))
        repository.file("BUILD", _BUILD % repr([str(archive), "-ldl", "-lrt", "-lpthread"]))
        return
    repository.file("version.txt", "none\n")
    repository.file("defs.bzl", _DEFS % (False, ""))
    repository.file("BUILD", _BUILD % "[]")

cuda_toolkit = repository_rule(
    implementation = _cuda_toolkit_impl,
    environ = ["CUDA_HOME"],
    # Looked for anew by every Bazel server: deploy/install may have put one there meanwhile.
    local = True,
)
