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
    r"(mapped|append|rpc)_attend/|prompt_append/|decode_sealing/|clients8/|"
    # packkv.py's.
    r"(kq|wv)(_g4)?/mean$|attend(_g4)?/b1_l131072$"
)
# tests/bench/codec.py names its rows so. Of packkv's sweeps the README shows the middle, the paper's setting with it.
CODEC_PREFIX = "codec_"
CODEC_ROW = re.compile(
    r"codec_error/(planes[a-z-]*|packkv-normalize[a-z-]*(?=/(1\.2|0\.8|0\.5)_)|"
    r"packkv-[a-z]+(?=/0\.(1/0\.2|05/0\.1)_)|kivi)/(?P<profile>.+)_\d+$"
)
CODEC_COLUMNS = (
    "codec", "profile", "bits", "K paper", "V paper", "K error", "V error", "attention", "K alone", "V alone",
    "encode GB/s", "decode GB/s", "not beaten",
)
SIZE_COLUMNS = ("codec", "KIVI 2 bit: K", "V", "both", "KIVI 4 bit: K", "V", "both")
# Beside more load of others rates say nothing; errors and sizes do not mind.
RATE_LOAD_MAX = 0.1
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


def codec_table(document: dict) -> str:
    rows, quiet = [], document["other_load"] <= RATE_LOAD_MAX
    for row in document["rows"]:
        if not (match := CODEC_ROW.match(row["name"])):
            continue
        errors = ("k_error", "v_error", "value", "k_attention_error", "v_attention_error")
        rates = (f"{way}_bytes_per_second" for way in ("encode", "decode"))
        rows.append((
            match[1], match["profile"], f"{row['bits']:.2f}", f"{row['k_paper_bits']:.2f}", f"{row['v_paper_bits']:.2f}",
            *(f"{row[name]:.3f}" for name in errors),
            *(number(row[name] / 1e9) if name in row and quiet else "-" for name in rates),
            "*" if row["not_beaten"] else "",
        ))
    some = document["rows"][0]
    layers = ("layers " if len(some["layers"]) > 1 else "layer ") + ", ".join(map(str, some["layers"]))
    return (
        f"\nEvery codec on {some['model']}, {layers}, {some['tokens']:,} tokens: bits all in of what is sealed,"
        f" errors relative (rms), rates only of an idle machine ({document['date'][:10]}, {document['commit']}, {document['machine']}, other load"
        f" {document['other_load']:.2f}, {command(document)}):\n\n{markdown(CODEC_COLUMNS, rows)}"
        f"\nHow many times smaller than KIVI at the same error of attention (>: smaller error at all its settings;"
        f" -: larger at all):\n\n{markdown(SIZE_COLUMNS, size_rows(document))}"
    )


def size_rows(document: dict) -> list[tuple[str, ...]]:
    codecs: dict[str, list[str]] = {}
    for row in document["rows"]:
        if match := re.match(r"codec_size/(.+)_\d+$", row["name"]):
            cells = codecs.setdefault(match[1], [])
            for name in ("k_ratio", "v_ratio", "ratio"):
                bound = ">" if row.get(f"{name}_is_lower_bound") else ""
                cells.append(f"{bound}{row[name]:.2f}" if name in row else "-")
    return [(codec, *cells) for codec, cells in codecs.items()]


def tables(folder: Path) -> str:
    timed, errors, codecs = [], "", ""
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        if document["rows"][0]["name"].startswith(ERROR_PREFIX):
            errors += error_table(document)
        elif document["rows"][0]["name"].startswith(CODEC_PREFIX):
            codecs += codec_table(document)
        else:
            rows = document["rows"]
            if len(rows) > ROWS_MAX:
                rows = [row for row in rows if CHOSEN_ROW.match(row["name"])]
            timed += [timed_row(row, document) for row in rows]
    return (
        "A ratio above 1 means that we are better; the spread is the distance between the quartiles over the median;\n"
        "other load is how many cores other programs kept busy meanwhile.\n"
        "`tests/bench/run_cpu` measures what needs no GPU; the tables of codecs name their own commands. `tests/bench/results/` holds more rows than are shown.\n\n"
        f"{markdown(COLUMNS, timed)}{errors}{codecs}"
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
