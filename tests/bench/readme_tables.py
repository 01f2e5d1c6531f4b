"""The README's tables of measured figures, made from tests/bench/results/*.json so that they cannot drift apart.

    python3 tests/bench/readme_tables.py            rewrites the tables in README.md
    python3 tests/bench/readme_tables.py --check    exits 1 where it would change something
"""

import json
import re
import sys
from pathlib import Path

BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"
COLUMNS = ("what", "ours", "opponent", "ratio", "repeats", "spread", "date, commit", "machine", "command", "other load")
# tests/golden/evaluate.py names its rows so. Its ablations stay in the file.
ERROR_ROW = re.compile(r"attention_error_([a-z]+)_(calibrated|own|own_q2)_(\d+)$")
ERROR_PREFIX = "attention_error_"
# Of a file with many rows the README shows these; the file holds them all.
ROWS_MAX = 8
# (Odd lengths are there for `neighbours`.)
CHOSEN_ROW = re.compile(
    r"attend/compact/(b\d+_l\d*[02468](_g[18])?|mixed\d+|neighbours)$|attend/exact/|(en|de)code/compact/|"
    r"(mapped|append|rpc)_attend/|prompt_append/|decode_sealing/|clients8/"
)
ERROR_COLUMNS = ("profile", "bits a value", "calibrated", "own", "own, with q²", "KIVI 2 bit")


def number(value: float) -> str:
    return f"{value:.3g}" if not 1000 <= abs(value) < 1e9 else f"{value:,.0f}"


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def command(document: dict) -> str:
    """Without where it wrote to."""
    return "`" + re.sub(r"^python3 | --(json|results)[ =]\S+", "", document["command"]) + "`"


def timed_row(row: dict, document: dict) -> tuple[str, ...]:
    note = "".join(f"; {key} {number(row[key])}" for key in row.get("shown", []))
    return (
        f"`{row['name']}`",
        f"{number(row['value'])} {row['unit']}{note}",
        f"{row['opponent']} {number(row['opponent_value'])}" if "opponent" in row else "-",
        f"{row['ratio']:.2f}" if "ratio" in row else "-",
        str(row["repeats"]),
        f"{row['spread']:.2f}",
        f"{document['date'][:10]}, {document['commit']}",
        document["machine"],
        command(document),
        f"{document['other_load']:.2f}" if "other_load" in document else "-",
    )


def error_table(document: dict) -> str:
    profiles: dict[str, dict[str, dict]] = {}
    for row in document["rows"]:
        if match := ERROR_ROW.match(row["name"]):
            profile, way, tokens = match.groups()
            profiles.setdefault(profile, {})[way] = row
    rows = []
    for profile, ways in profiles.items():
        some = next(iter(ways.values()))
        errors = [f"{ways[way]['value']:.3f}" if way in ways else "-" for way in ("calibrated", "own", "own_q2")]
        kivi = f"{some['opponent_value']:.3f} at {some['opponent_all_in_bits']:.2f}"
        rows.append((profile, f"{some['all_in_bits']:.2f}", *errors, kivi))
    return (
        f"\nError of attention at {int(tokens):,} tokens, mean of |o - o_exact| / |o_exact|, by who calibrated"
        f" ({document['date'][:10]}, {document['commit']}, {command(document)}):\n\n{markdown(ERROR_COLUMNS, rows)}"
    )


def tables(folder: Path) -> str:
    timed, errors = [], ""
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        if document["rows"][0]["name"].startswith(ERROR_PREFIX):
            errors += error_table(document)
        else:
            rows = document["rows"]
            if len(rows) > ROWS_MAX:
                rows = [row for row in rows if CHOSEN_ROW.match(row["name"])]
            timed += [timed_row(row, document) for row in rows]
    return (
        "A ratio above 1 means that we are better; the spread is the distance between the quartiles over the median;\n"
        "other load is how many cores other programs kept busy meanwhile.\n"
        "`tests/bench/run_cpu` measures what needs no GPU. `tests/bench/results/` holds more rows than are shown.\n\n"
        f"{markdown(COLUMNS, timed)}{errors}"
    )


def updated(readme: str, folder: Path) -> str:
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return before + BEGIN + tables(folder) + END + after


def main() -> int:
    root = Path(__file__).absolute().parents[2]
    readme = root / "README.md"
    old = readme.read_text()
    new = updated(old, root / "tests/bench/results")
    if "--check" in sys.argv:
        if new != old:
            print("README.md: the tables of measured figures are not what tests/bench/results holds")
        return int(new != old)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
