"""The end of a daemon whose clients are slow to read what they asked for, or never do."""

import json
import re
import signal
import subprocess
import tempfile
import time
import unittest

from tests.integration.raw_http2 import DEFAULT_WINDOW, WINDOW_MAX, RawCall

TOKENS = "tests/data/qwen2.5-coder-1.5b_l23_4096.safetensors"
PAUSE_SECONDS = 2


class SlowReaderDrainTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvdepot-slow-", dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.socket = f"{folder.name}/socket"

    def start(self, drain_timeout: str) -> bytes:
        """Starts a daemon that holds 4 MiB of one layer, and returns the request that fetches them."""
        self.daemon = subprocess.Popen(
            ["server/kvdepotd", f"--listen=unix://{self.socket}", "--metrics_address=", "--device=cpu",
             f"--drain_timeout={drain_timeout}"], stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.daemon.kill)
        self.assertIn("event=started", self.daemon.stderr.readline())
        self.kvdepot("demo", f"--kv={TOKENS}", "--keep", "--json")
        session = json.loads(self.kvdepot("sessions", "--json"))["sessions"][0]["id"].encode()
        return b"\x0a" + bytes([len(session)]) + session  # FetchRequest.session_id

    def kvdepot(self, *arguments: str) -> str:
        return subprocess.run(["client/cli/kvdepot", *arguments, f"--target={self.socket}"], check=True,
                              capture_output=True, text=True, timeout=120).stdout

    def fetch(self, request: bytes, window: int) -> RawCall:
        call = RawCall(self.socket, "Fetch", request, window)
        self.addCleanup(call.close)
        # It was accepted: some of the answer is here.
        call.read_until(lambda: len(call.answer) >= min(window, DEFAULT_WINDOW))
        return call

    def end(self) -> str:
        _, log = self.daemon.communicate(timeout=60)
        self.assertEqual(self.daemon.returncode, 0, log)
        return log

    def test_who_pauses_and_goes_on_gets_all_of_it(self):
        request = self.start("20s")
        call = self.fetch(request, DEFAULT_WINDOW)
        self.daemon.send_signal(signal.SIGTERM)
        self.assertIn("event=draining", self.daemon.stderr.readline())
        # Longer than the daemon refuses calls when nothing is left to do.
        time.sleep(PAUSE_SECONDS)
        call.open_window()
        call.read_until(call.answer_is_whole)
        self.assertGreater(len(call.answer), 4 << 20)
        self.assertRegex(self.end(), r"event=drained seconds=\S+ calls_cut=0 ")

    def test_who_never_reads_is_cut_in_time_and_counted(self):
        for window in (DEFAULT_WINDOW, WINDOW_MAX):
            with self.subTest(window):
                request = self.start("1s")
                self.fetch(request, window)
                start = time.monotonic()
                self.daemon.send_signal(signal.SIGTERM)
                log = self.end()
                self.assertLess(time.monotonic() - start, 10)
                self.assertRegex(log, r"event=drained seconds=\S+ calls_cut=1 ")
                self.assertEqual(len(re.findall("event=drained", log)), 1)


if __name__ == "__main__":
    unittest.main()
