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

    def test_every_timed_row_is_shown(self):
        tables = readme_tables.tables(RESULTS)
        for path in RESULTS.glob("*.json"):
            for row in json.loads(path.read_text())["rows"]:
                if not row["name"].startswith(readme_tables.ERROR_PREFIX):
                    self.assertIn(f"| `{row['name']}` |", tables, path)


if __name__ == "__main__":
    unittest.main()
