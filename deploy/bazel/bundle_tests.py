#!/usr/bin/python3 -B
"""Runs the tests of a bundle (deploy/bundle) and ends with the line "N passed, N failed, N skipped".

  ./run-tests [--device=cuda:0] [--timeout=600] [--list] [WORD...]

WORDs select the tests whose path holds one of them. --device is what tests that need one use; the
default is the first GPU where there is one, else the CPU. Counted are single cases, as GoogleTest
and unittest report them; a test without a report counts as one.
"""

import argparse
import glob
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree


def default_device():
    return "cuda:0" if glob.glob("/dev/nvidia[0-9]*") else "cpu"


def command(test):
    """How one test is started; Python tests go through the runner that Bazel uses."""
    if os.path.exists(test + ".py"):
        return [sys.executable, "-B", "deploy/bazel/py_unittest_main.py", test + ".py"]
    return ["./" + test]


def count(report):
    """(passed, failed, skipped) of a JUnit file, None if there is none."""
    try:
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return None
    failed = sum(1 for case in cases if case.find("failure") is not None
                 or case.find("error") is not None)
    skipped = sum(1 for case in cases if case.find("skipped") is not None)
    return len(cases) - failed - skipped, failed, skipped


def run(test, environment, timeout_seconds):
    """(passed, failed, skipped) of one test; the output of one that fails is shown."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-") as folder:
        report = os.path.join(folder, "test.xml")
        environment = dict(environment, XML_OUTPUT_FILE=report, TEST_TMPDIR=folder)
        start = time.monotonic()
        try:
            done = subprocess.run(command(test), env=environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=timeout_seconds)
            code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as late:
            code, output = f"none after {timeout_seconds} s", late.stdout or b""
        passed, failed, skipped = count(report) or (int(code == 0), int(code != 0), 0)
        if code != 0 and failed == 0:
            failed = 1  # It crashed, or ended badly after its last case.
        seconds = time.monotonic() - start
        print(f"{test}: {passed} passed, {failed} failed, {skipped} skipped, {seconds:.1f} s",
              flush=True)
        if failed:
            print(output.decode(errors="replace")[-6000:], f"{test}: exit code {code}", sep="\n",
                  flush=True)
        return passed, failed, skipped


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    os.chdir(os.path.dirname(os.path.realpath(__file__)))
    with open("tests.txt", encoding="utf-8") as file:
        tests = [test for test in file.read().split()
                 if not arguments.words or any(word in test for word in arguments.words)]
    if arguments.list:
        print("\n".join(tests))
        return 0
    environment = dict(os.environ, KVDEPOT_TEST_DEVICE=arguments.device)
    totals = [sum(column) for column in
              zip(*(run(test, environment, arguments.timeout) for test in tests), (0, 0, 0))]
    print(f"device {arguments.device}")
    print("{} passed, {} failed, {} skipped".format(*totals))
    return 1 if totals[1] or not totals[0] else 0


if __name__ == "__main__":
    sys.exit(main())
