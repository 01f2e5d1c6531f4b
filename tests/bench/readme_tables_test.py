"""The README quotes what the committed results say."""

import unittest
from pathlib import Path

from tests.bench import readme_tables


class ReadmeTablesTest(unittest.TestCase):
    def test_readme_holds_the_committed_results(self):
        readme = Path("README.md").read_text()
        self.assertEqual(readme, readme_tables.updated(readme, Path("tests/bench/results")))

    def test_every_result_file_has_rows(self):
        self.assertGreater(readme_tables.table(Path("tests/bench/results")).count("\n| `"), 3)


if __name__ == "__main__":
    unittest.main()
