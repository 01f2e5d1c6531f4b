"""Messages that are never sent whole, by somebody without a token: what the daemon holds of them has a limit."""

import hashlib
import re
import subprocess
import tempfile
import unittest

from tests.integration.raw_http2 import HalfSentCalls

MIB = 1 << 20
MESSAGE_BYTES = 31 * MIB
CONNECTIONS, CALLS = 4, 8  # Together 992 MiB.
RPC_MEMORY_BYTES = 128 * MIB
# What of the daemon is not messages, and what a message takes beside its bytes.
REST_BYTES = 96 * MIB
SEND_SECONDS = 3


class HalfSentMessagesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvdepot-half-", dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.socket = f"{folder.name}/socket"
        with open(f"{folder.name}/tokens", "w") as file:
            file.write(f"alice {hashlib.sha256(b'abc').hexdigest()}\n")
        with open(f"{folder.name}/token", "w") as file:
            file.write("abc")

    def memory_bytes(self) -> int:
        with open(f"/proc/{self.daemon.pid}/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+) kB", status.read()).group(1)) << 10

    def test_what_they_hold_has_a_limit_and_others_are_served(self):
        self.daemon = subprocess.Popen(
            ["server/kvdepotd", f"--listen=unix://{self.socket}", "--metrics_address=", "--device=cpu",
             "--memory_budget=64MiB", f"--tokens_file={self.folder}/tokens",
             f"--rpc_memory_bytes_max={RPC_MEMORY_BYTES}"], stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.daemon.communicate)
        self.addCleanup(self.daemon.terminate)
        self.assertIn("event=started", self.daemon.stderr.readline())
        before = self.memory_bytes()
        connections = [HalfSentCalls(self.socket, "GetServerInfo", CALLS, MESSAGE_BYTES) for _ in range(CONNECTIONS)]
        for connection in connections:
            self.addCleanup(connection.close)
            connection.send_for(SEND_SECONDS)
        self.assertGreater(sum(connection.sent_bytes for connection in connections), RPC_MEMORY_BYTES // 2)
        self.assertLess(self.memory_bytes() - before, RPC_MEMORY_BYTES + REST_BYTES)
        subprocess.run(["client/cli/kvdepot", "sessions", f"--target={self.socket}", f"--token_file={self.folder}/token"],
                       check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    unittest.main()
