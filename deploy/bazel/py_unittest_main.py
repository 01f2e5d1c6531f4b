"""Runs one unittest file and writes Bazel's XML report, so that single cases can be counted.

Usage: py_unittest_main.py TEST_FILE [IMPORT_FOLDER...]
"""

import importlib.util
import os
import sys
import time
import unittest
import xml.etree.ElementTree as ElementTree


class _Recorder(unittest.TextTestResult):
    """Keeps (name, seconds, kind, text) of each case; kind is None for a pass."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cases = []
        self._start = {}
        self._outcome = {}

    def startTest(self, test):
        self._start[test.id()] = time.monotonic()
        super().startTest(test)

    def stopTest(self, test):
        kind, text = self._outcome.pop(test.id(), (None, ""))
        seconds = time.monotonic() - self._start.pop(test.id())
        self.cases.append((test.id(), seconds, kind, text))
        super().stopTest(test)

    def _note(self, test, kind, text):
        if test.id() in self._start:
            self._outcome[test.id()] = (kind, text)
        else:  # A class or module fixture: it has no start of its own.
            self.cases.append((test.id(), 0.0, kind, text))

    def addError(self, test, err):
        self._note(test, "error", self._exc_info_to_string(err, test))
        super().addError(test, err)

    def addFailure(self, test, err):
        self._note(test, "failure", self._exc_info_to_string(err, test))
        super().addFailure(test, err)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._note(test, "failure", self._exc_info_to_string(err, test))
        super().addSubTest(test, subtest, err)

    def addSkip(self, test, reason):
        self._note(test, "skipped", reason)
        super().addSkip(test, reason)

    def addUnexpectedSuccess(self, test):
        self._note(test, "failure", "unexpected success")
        super().addUnexpectedSuccess(test)


def _write_report(path, name, cases):
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(cases)))
    for case, seconds, kind, text in cases:
        element = ElementTree.SubElement(suite, "testcase", name=case, time=f"{seconds:.3f}")
        if kind is not None:
            ElementTree.SubElement(element, kind).text = text
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def main():
    test_file, imports = sys.argv[1], sys.argv[2:]
    # The runner's own folder gives way to the workspace root and to the named folders.
    sys.path[:1] = [os.getcwd(), *map(os.path.abspath, imports)]
    name = os.path.splitext(os.path.basename(test_file))[0]
    spec = importlib.util.spec_from_file_location(name, test_file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = unittest.TextTestRunner(verbosity=2, resultclass=_Recorder).run(suite)
    report = os.environ.get("XML_OUTPUT_FILE")
    if report:
        _write_report(report, name, result.cases)
    if not result.cases:
        sys.exit(f"{test_file} holds no test")
    sys.exit(0 if result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
