"""`kvdepot size` as a user types it; no daemon runs."""

import json
import re
import subprocess
import unittest

_CLI = "client/cli/kvdepot"


def run(*arguments):
    return subprocess.run([_CLI, "size", *arguments], capture_output=True, text=True, timeout=30)


class SizeCommandTest(unittest.TestCase):
    def rows(self, *arguments):
        done = run("--json", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return {(row["codec"], row["profile"]): row for row in json.loads(done.stdout)["rows"]}

    def test_every_codec_and_profile_has_a_line(self):
        done = run("--model-shape", "28x2x128", "--tokens=32768", "--memory-budget=80GiB")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.splitlines()
        self.assertEqual(lines[0], "28 layers of 2 KV heads of 128, 32,768 tokens")
        self.assertIn("SESSIONS IN 80 GiB", lines[2])
        self.assertEqual([tuple(line.split()[:2]) for line in lines[3:10]], [
            ("planes", "tiny"), ("planes", "compact"), ("planes", "balanced"), ("planes", "fine"),
            ("packkv", "defaults"), ("packkv", "normalize"), ("raw", "exact")])

    def test_the_readme_shows_what_is_printed(self):
        with open("README.md") as file:
            command, shown = re.search(r"\n\$ kvdepot size (.*?)\n(.*?)\n```", file.read(), re.DOTALL).groups()
        self.assertTrue(run(*command.split()).stdout.startswith(shown + "\n"), shown)

    def test_a_result_that_cannot_be_written_is_a_failure(self):
        for arguments in [], ["--json"], ["--help"]:
            with open("/dev/full", "w") as full:
                done = subprocess.run([_CLI, "size", "--model-shape=1x1x64", *arguments], stdout=full,
                                      stderr=subprocess.PIPE, text=True, timeout=30)
            self.assertEqual((done.returncode, done.stderr),
                             (1, "kvdepot: DATA_LOSS: cannot write the whole result to standard output\n"))

    def test_dashes_and_underscores_are_the_same(self):
        self.assertEqual(run("--model-shape=1x1x64").stdout, run("--model_shape=1x1x64").stdout)

    def test_raw_takes_what_bf16_does_and_its_headers(self):
        raw = self.rows("--model-shape=28x2x128", "--tokens=32768")["raw", "exact"]
        values = 28 * 2 * 2 * 128 * 32768
        self.assertEqual(raw["logical_bytes"], 2 * values)
        # 16 sinks, 31 segments of 1024, one of 896, and a tail of 112 in two blocks.
        self.assertEqual(raw["session_bytes"], 28 * (32 * 128 + 2 * 2 * 128 * 2 * (16 + 32640 + 128)))
        self.assertAlmostEqual(raw["bits_per_value"], 8 * raw["session_bytes"] / values)
        self.assertFalse(raw["is_bound"])

    def test_budgets_are_shared_by_what_a_session_takes(self):
        rows = self.rows("--model-shape=28x2x128", "--memory-budget=80GiB")
        for row in rows.values():
            whole = (80 << 30) / row["session_bytes"]
            self.assertLessEqual(row["sessions"], whole)
            self.assertGreater(row["sessions"], 0.9 * whole)

    def test_wide_types_are_compared_with_bf16_as_well(self):
        rows = self.rows("--model-shape=2x2x64", "--dtype=fp32")
        self.assertAlmostEqual(rows["raw", "exact"]["ratio_to_bf16"], 0.5, delta=0.01)

    def test_tokens_one_by_one_leave_more_exact(self):
        prompt, decoded = (
            self.rows("--model-shape=2x2x64", "--tokens=1000", *more)["planes", "compact"]["session_bytes"]
            for more in ((), ("--decoded=900",)))
        self.assertGreater(decoded, prompt)

    def test_what_is_wrong_is_said(self):
        for arguments, words in {
            (): "--model-shape: missing",
            ("--model-shape=28x2",): "'28x2': must be LAYERSxKV_HEADSxHEAD_DIM",
            ("--model-shape=1x1x64", "--dtype=int8"): "--dtype: 'int8'",
            ("--model-shape=1x1x64", "--tokens=0"): "--tokens: 0",
            ("--model-shape=1x1x64", "--tokens=9", "--decoded=10"): "--decoded: 10",
            ("--model-shape=1x1x64", "--memory-budget=lots"): "--memory-budget: 'lots'",
        }.items():
            done = run(*arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn(words, done.stderr)


if __name__ == "__main__":
    unittest.main()
