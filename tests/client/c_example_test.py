"""The C client as programs get it that are built without Bazel: gcc, pkg-config, and a daemon to talk to."""

import os
import re
import shutil
import subprocess
import tempfile
import unittest

_DAEMON = "server/kvdepotd"
_LIBRARY = "client/libkvdepot_client.so"
_HEADER = "client/kvdepot.h"
_EXAMPLE = "client/example/decode.c"
_TWO_PROCESSES = "client/example/shared_session.c"
_INSTALL = "deploy/client_folder"


class CExampleTest(unittest.TestCase):
    def setUp(self):
        # Not TEST_TMPDIR: a socket's path is limited to 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="kvdepot-c-test.", dir="/tmp")
        self.installed = os.path.join(self.folder, "client")
        subprocess.run([_INSTALL, _LIBRARY, _HEADER, "0.1.0", self.installed], check=True)
        self.environment = dict(os.environ, PKG_CONFIG_PATH=os.path.join(self.installed, "lib/pkgconfig"))

    def tearDown(self):
        shutil.rmtree(self.folder)

    def compile(self, source, program):
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "kvdepot_client"],
            env=self.environment, check=True, capture_output=True, text=True,
        ).stdout.split()
        subprocess.run(
            ["gcc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", program, source, *flags,
             f"-Wl,-rpath,{self.installed}/lib"],
            check=True,
        )

    def test_the_example_decodes(self):
        program = os.path.join(self.folder, "decode")
        self.compile(_EXAMPLE, program)
        socket = os.path.join(self.folder, "socket")
        daemon = subprocess.Popen(
            [_DAEMON, f"--listen=unix://{socket}", "--metrics_address=", "--device=cpu"], stderr=subprocess.PIPE, text=True
        )
        try:
            daemon.stderr.readline()
            run = subprocess.run([program, socket], capture_output=True, text=True, timeout=60)
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertRegex(run.stdout, r"^400 tokens committed, output\[0\] -?0\.\d+\n$")
        finally:
            daemon.terminate()
            self.assertEqual(daemon.wait(timeout=30), 0)
            daemon.stderr.close()
        # Nobody listens any more: a code and a message, no crash.
        run = subprocess.run([program, socket], capture_output=True, text=True, timeout=60)
        self.assertEqual(run.returncode, 1)
        self.assertRegex(run.stderr, r"^lease: code (4|14): ")

    def test_the_example_of_two_processes_compiles(self):
        # tests/deploy/image_test.py runs it.
        self.compile(_TWO_PROCESSES, os.path.join(self.folder, "shared_session"))

    def test_soname_and_symbols(self):
        with open(_HEADER, encoding="utf-8") as file:
            header = file.read()
        abi = re.search(r"#define KVDEPOT_ABI_VERSION (\d+)", header).group(1)
        dynamic = subprocess.run(["readelf", "-d", _LIBRARY], check=True, capture_output=True, text=True).stdout
        self.assertIn(f"Library soname: [libkvdepot_client.so.{abi}]", dynamic)
        symbols = subprocess.run(["nm", "-D", "--defined-only", _LIBRARY], check=True, capture_output=True, text=True).stdout
        exported = {line.split()[-1].split("@")[0] for line in symbols.splitlines()} - {f"KVDEPOT_{abi}"}
        declared = set(re.findall(r"\b(kvdepot_\w+)\(", header))
        self.assertEqual(exported, declared)

    def test_the_example_is_short(self):
        with open(_EXAMPLE, encoding="utf-8") as file:
            self.assertLessEqual(len(file.readlines()), 65)


if __name__ == "__main__":
    unittest.main()
