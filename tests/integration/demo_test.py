"""kvdepotd and kvdepot together, as deploy/demo uses them, with its data."""

import json
import os
import shutil
import struct
import subprocess
import tempfile
import unittest

_DAEMON = "server/kvdepotd"
_CLI = "client/cli/kvdepot"
_DATA = "tests/data/qwen2.5-coder-1.5b_l23"
_TOKENS = 4096


def _write_first_tokens(source, path, token_count):
    """The same file with its keys and values cut off after some tokens."""
    with open(source, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    shortened = b""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if not name.endswith(".q"):
            end = begin + (end - begin) // entry["shape"][0] * token_count
            entry["shape"][0] = token_count
        entry["data_offsets"] = [len(shortened), len(shortened) + end - begin]
        shortened += data[begin:end]
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + shortened)


class DemoTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # Not TEST_TMPDIR: a socket's path is limited to 107 bytes.
        cls.folder = tempfile.mkdtemp(prefix="kvdepot-demo-test.", dir="/tmp")
        cls.socket = os.path.join(cls.folder, "socket")
        cls.kv = f"{_DATA}_4096.safetensors"
        cls.daemon = subprocess.Popen(
            [
                _DAEMON,
                f"--listen=unix://{cls.socket}",
                "--metrics_address=127.0.0.1:0",
                # The same tests run on a GPU where this names one.
                f"--device={os.environ.get('KVDEPOT_TEST_DEVICE', 'cpu')}",
            ]
        )
        cls.run_cli("info", "--wait", "--timeout=60s", check=True)

    @classmethod
    def tearDownClass(cls):
        cls.daemon.terminate()
        code = cls.daemon.wait(timeout=30)
        shutil.rmtree(cls.folder)
        assert code == 0, f"kvdepotd ended with {code} after SIGTERM"

    @classmethod
    def run_cli(cls, *arguments, check=False):
        return subprocess.run(
            [_CLI, *arguments, f"--target={cls.socket}"],
            capture_output=True, text=True, timeout=120, check=check,
        )

    def json_of(self, *arguments):
        result = self.run_cli(*arguments, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_demo_json_is_one_object_within_the_stated_bounds(self):
        result = self.json_of("demo", f"--kv={self.kv}", f"--calibration={_DATA}.calibration.binpb")
        self.assertEqual(result["tokens"], _TOKENS)
        self.assertLessEqual(result["bits_per_value"], 2.60)
        self.assertAlmostEqual(result["ratio"], 16 / result["bits_per_value"], places=6)
        self.assertGreater(result["relative_error"], 0)
        self.assertLessEqual(result["relative_error"], result["reference_relative_error"])
        self.assertGreater(result["append_bytes_per_second"], 0)
        self.assertGreater(result["attend_p50_seconds"], 0)
        self.assertGreaterEqual(result["attend_p99_seconds"], result["attend_p50_seconds"])
        self.assertEqual(result["missed_bounds"], [])

    def test_demo_that_misses_a_bound_says_which_and_fails(self):
        few = os.path.join(self.folder, "few.safetensors")
        _write_first_tokens(self.kv, few, 600)
        result = self.run_cli("demo", f"--kv={few}", "--json")
        self.assertEqual(result.returncode, 1)
        self.assertIn("bits_per_value", json.loads(result.stdout)["missed_bounds"][0])
        self.assertIn("bound missed: bits_per_value", result.stderr)

    def test_demo_table_ends_with_three_metrics(self):
        result = self.run_cli("demo", f"--kv={self.kv}")
        self.assertEqual(result.returncode, 0, result.stderr)
        metrics = [line for line in result.stdout.splitlines() if line.startswith("  kvdepot_")]
        self.assertEqual(len(metrics), 3, result.stdout)

    def test_demo_leaves_nothing_unless_it_is_told_to(self):
        before = len(self.json_of("sessions")["sessions"])
        self.run_cli("demo", f"--kv={self.kv}")
        self.assertEqual(len(self.json_of("sessions")["sessions"]), before)

    def test_life_of_a_kept_session(self):
        name = self.json_of("demo", f"--kv={self.kv}", "--keep")["session"]
        self.assertIn(name, [session["name"] for session in self.json_of("sessions")["sessions"]])
        session = self.json_of("show", name)
        self.assertEqual(session["committed_token_count"], str(_TOKENS))
        self.assertEqual(self.json_of("show", session["id"])["name"], name)
        self.assertIn("made its own calibration", self.run_cli("show", name).stdout)
        sealed = self.json_of("seal", name)
        self.assertGreaterEqual(int(sealed["layer_states"][0]["sealed_end"]), _TOKENS - 128)
        self.assertEqual(self.json_of("delete", name)["id"], session["id"])
        gone = self.run_cli("show", name)
        self.assertEqual(gone.returncode, 1)
        self.assertIn("NOT_FOUND", gone.stderr)

    def test_doctor_finds_nothing(self):
        report = self.json_of("doctor")
        self.assertTrue(report["ok"], report)
        self.assertEqual(len(report["checks"]), 13)

    def test_bench_with_several_clients(self):
        for profile in ("compact", "exact"):
            result = self.json_of(
                "bench", "--clients=3", "--tokens=512", "--rounds=5", f"--profile={profile}"
            )
            self.assertGreater(result["append_bytes_per_second"], 0)
            self.assertGreater(result["attend_p50_seconds"], 0)
        self.assertNotIn("bench-", self.run_cli("sessions").stdout)

    def test_exit_codes(self):
        self.assertEqual(self.run_cli("info").returncode, 0)
        self.assertEqual(self.run_cli("health").stdout, "serving\n")
        self.assertEqual(self.json_of("health"), {"serving": True})
        self.assertEqual(self.run_cli("show", "no such session").returncode, 1)
        self.assertEqual(self.run_cli("show").returncode, 2)
        self.assertEqual(self.run_cli("info", "--rounds=1").returncode, 2)
        self.assertEqual(self.run_cli("bench", "--clients=0").returncode, 2)
        self.assertEqual(subprocess.run([_CLI, "health", "--target=/tmp/kvdepot-nobody"], timeout=60).returncode, 1)
        nobody = subprocess.run([_CLI, "doctor", "--json", "--target=/tmp/kvdepot-nobody"],
                                capture_output=True, text=True, timeout=60)
        self.assertEqual(nobody.returncode, 1)
        self.assertIn("--target", json.loads(nobody.stdout)["checks"][0]["hint"])


if __name__ == "__main__":
    unittest.main()
