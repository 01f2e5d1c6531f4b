"""A device that fails: clients are told, probes see it, the process ends with the reason."""

import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

_DAEMON = "tests/integration/faulty_kvdepotd"
_CLI = "client/cli/kvdepot"
# The same tests run on a GPU where this names one.
_DEVICE = os.environ.get("KVDEPOT_TEST_DEVICE", "cpu")
_REASON = "cpu: made to fail" if _DEVICE == "cpu" else "cuda: "


class DeviceFaultTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvdepot-fault-", dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.socket = f"{folder.name}/socket"
        self.daemon = subprocess.Popen(
            [_DAEMON, f"--listen=unix://{self.socket}", "--metrics_address=127.0.0.1:0",
             f"--device={_DEVICE}"],
            stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.daemon.kill)
        self.pages = "http://" + re.search(r"metrics=(\S+)", self.daemon.stderr.readline()).group(1)

    def bench(self):
        return subprocess.run(
            [_CLI, "bench", "--tokens=512", "--rounds=3", f"--target={self.socket}"],
            capture_output=True, text=True, timeout=60)

    def ready(self):
        try:
            with urllib.request.urlopen(self.pages + "/readyz", timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None  # gone

    def test_a_fault_ends_the_daemon_with_its_reason(self):
        self.assertEqual(self.bench().returncode, 0)
        self.assertEqual(self.ready(), 200)
        self.daemon.send_signal(signal.SIGUSR1)
        failed = subprocess.Popen(
            [_CLI, "bench", "--tokens=512", "--rounds=3", f"--target={self.socket}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        seen = set()
        while self.daemon.poll() is None:
            seen.add(self.ready())
            time.sleep(.02)
        self.assertIn(503, seen)
        _, error = failed.communicate(timeout=60)
        self.assertEqual(failed.returncode, 1)
        self.assertIn("INTERNAL: " + _REASON, error)
        self.assertEqual(self.daemon.returncode, 3)
        lines = self.daemon.stderr.read().splitlines()
        self.assertTrue(any("event=device_failed" in line and _REASON in line for line in lines),
                        lines)
        self.assertTrue(lines[-1].startswith("kvdepotd: " + _REASON), lines)
        self.assertFalse(os.path.exists(self.socket))


if __name__ == "__main__":
    unittest.main()
