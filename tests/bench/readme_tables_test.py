"""The README quotes what the committed results say."""

import json
import unittest
from pathlib import Path

from tests.bench import readme_tables

RESULTS = Path("tests/bench/results")


class ReadmeTablesTest(unittest.TestCase):
    def test_readme_holds_the_committed_results(self):
        readme = Path("README.md").read_text()
        self.assertEqual(readme, readme_tables.updated(readme, RESULTS))

    def test_every_timed_row_of_a_short_file_is_shown(self):
        tables = readme_tables.tables(RESULTS)
        for path in RESULTS.glob("*.json"):
            rows = json.loads(path.read_text())["rows"]
            for row in rows if len(rows) <= readme_tables.ROWS_MAX else []:
                if not row["name"].startswith((readme_tables.ERROR_PREFIX, readme_tables.CODEC_PREFIX)):
                    self.assertIn(f"| `{row['name']}` |", tables, path)

    def test_of_a_long_file_the_chosen_rows_are_shown(self):
        tables = readme_tables.tables(RESULTS)
        self.assertIn("| `attend/compact/b1_l131072` |", tables)
        self.assertIn("| `encode/compact/l8192_x32` |", tables)
        self.assertNotIn("attend/compact/b1_l131072_q16", tables)

    def test_of_every_codec_rows_are_shown(self):
        tables = readme_tables.tables(RESULTS)
        self.assertIn("| planes-calibrated | compact |", tables)
        self.assertIn("| packkv-greedy | 0.1/0.2 |", tables)
        self.assertNotIn("0.00625", tables)


if __name__ == "__main__":
    unittest.main()
