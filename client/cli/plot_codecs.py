"""Draws what `kvdepot bench codec --json` prints, read from standard input, as a picture.

    kvdepot bench codec --dump=FILE --json | python3 plot_codecs.py codecs.png

`kvdepot bench codec --plot` runs this same file, which is compiled into it.
"""

import io
import json
import sys

import matplotlib

matplotlib.use("Agg")  # No display.

from matplotlib import pyplot  # noqa: E402

# (title, bits, error)
PANELS = [
    ("K and V", "bits", "attention_error"),
    ("K alone, V exact", "k_bits", "k_attention_error"),
    ("V alone, K exact", "v_bits", "v_attention_error"),
]
MARKERS = "osD^v<>PX*"
# The exact baseline: its bits would squeeze all others into a corner, its error is rounding.
EXACT = "raw"


def curves(report: dict) -> dict[str, list[dict]]:
    """Rows by codec, in the order of the report."""
    found: dict[str, list[dict]] = {}
    for row in report["rows"]:
        if row["codec"] != EXACT:
            found.setdefault(row["codec"], []).append(row)
    return found


def label_profiles(axis, report: dict, bits: str, error: str) -> None:
    """Each name once, at its fewest bits: codecs that share a profile have about the same error there."""
    leftmost: dict[str, dict] = {}
    for row in report["rows"]:
        name = row["profile"]
        if row["codec"] != EXACT and (name not in leftmost or row[bits] < leftmost[name][bits]):
            leftmost[name] = row
    for name, row in leftmost.items():
        axis.annotate(
            name, (row[bits], row[error]), fontsize=8, ha="right", va="top",
            xytext=(-4, -4), textcoords="offset points",
        )


def draw(report: dict) -> bytes:
    """The picture as PNG."""
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(7 * len(PANELS), 6.5), sharey=True)
    for axis, (title, bits, error) in zip(axes, PANELS):
        for number, (codec, rows) in enumerate(curves(report).items()):
            rows = sorted(rows, key=lambda row: row[bits])
            axis.plot(
                [row[bits] for row in rows],
                [row[error] for row in rows],
                marker=MARKERS[number % len(MARKERS)],
                linestyle="--" if codec == "kivi" else "-",
                label=codec,
                alpha=0.8,
            )
        label_profiles(axis, report, bits, error)
        axis.margins(x=0.12)
        axis.set_title(title)
        axis.set_xlabel("bits a value, all in")
        axis.set_yscale("log")
        axis.grid(True, which="both", alpha=0.25)
    axes[0].set_ylabel("relative error of the attention output")
    if curves(report):
        axes[0].legend()
    layers = ", ".join(str(int(layer)) for layer in report["layers"])
    figure.suptitle(
        f"{report['model']}, layers {layers}, {int(report['tokens']):,} tokens, {report['backend']}"
    )
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getvalue()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: plot_codecs.py PICTURE.png < REPORT.json")
    path, picture = sys.argv[1], draw(json.load(sys.stdin))
    try:
        with open(path, "wb") as file:
            file.write(picture)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")


if __name__ == "__main__":
    main()
