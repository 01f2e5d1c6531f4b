"""The README's table of measured figures, made from tests/bench/results/*.json so that the two cannot drift apart.

    python3 tests/bench/readme_tables.py            rewrites the table in README.md
    python3 tests/bench/readme_tables.py --check    exits 1 where it would change something
"""

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"
HEADER = "| what | ours | opponent | ratio | repeats, spread | date, machine, commit |\n|---|---|---|---|---|---|\n"


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def line(row: dict, document: dict) -> str:
    opponent = row.get("opponent", "-")
    if "opponent_value" in row:
        opponent += f" {number(row['opponent_value'])}"
    ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
    repeats = str(row.get("repeats", "-"))
    if row.get("spread"):
        repeats += f", {row['spread']:.2f}"
    note = "".join(f"; {key} {number(row[key])}" for key in row.get("shown", []))
    made = f"{document['date']}, {document['machine']}, {document['commit']}"
    return f"| `{row['name']}` | {number(row['value'])} {row['unit']}{note} | {opponent} | {ratio} | {repeats} | {made} |\n"


def table(folder: Path) -> str:
    """Ratio above 1: we are better."""
    text, commands = HEADER, []
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        commands.append(f"`{document['command']}`")
        text += "".join(line(row, document) for row in document["rows"])
    return f"{text}\nA ratio above 1 means that we are better. Commands: {'; '.join(commands)}.\n"


def updated(readme: str, folder: Path) -> str:
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return before + BEGIN + table(folder) + END + after


def main() -> int:
    root = Path(__file__).absolute().parents[2]
    readme = root / "README.md"
    old = readme.read_text()
    new = updated(old, root / "tests/bench/results")
    if "--check" in sys.argv:
        if new != old:
            print("README.md: the table of measured figures is not what tests/bench/results holds")
        return int(new != old)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
