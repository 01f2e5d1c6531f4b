"""Python unit tests with Debian's interpreter."""

def py_unittest(name, src, data = [], deps_data = [], imports = [], tags = [], **kwargs):
    """Runs one unittest file as a Bazel test; its cases are reported one by one.

    Args:
      name: of the test.
      src: the test file, holding unittest.TestCase classes.
      data: files or programs that the test opens.
      deps_data: Python sources that the test imports (files or filegroups).
      imports: folders from the workspace root to import from. The root itself is always one.
      tags: of the test.
      **kwargs: passed on to sh_test (size, timeout, env, flaky and so on).
    """
    runner = "//deploy/bazel:py_unittest_main.py"
    native.sh_test(
        name = name,
        srcs = ["//deploy/bazel:py_unittest.sh"],
        args = ["$(rootpath %s)" % runner, "$(rootpath %s)" % src] + imports,
        data = [runner, src] + data + deps_data,
        tags = tags + ["python"],
        **kwargs
    )
