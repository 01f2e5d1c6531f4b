"""`kvdepot bench codec` on a dump of a real model, as a result file.

    codec.py --dump FILE.safetensors [--calibration FILE.binpb] [--device cpu] --json FILE

One row a codec and profile, named codec_error/CODEC/PROFILE_TOKENS; its value is the relative error of the
attention output. The last rows, codec_size/CODEC_TOKENS, compare a codec's size with KIVI's at the same error.
"""

import argparse
import json
import subprocess

from tests.bench import results

FIGURES = (
    "bits", "session_bits", "k_bits", "v_bits", "k_paper_bits", "v_paper_bits", "k_error", "v_error",
    "k_attention_error", "v_attention_error", "attention_error_mean", "not_beaten",
    "encode_bytes_per_second", "encode_spread", "encode_repeats",
    "decode_bytes_per_second", "decode_spread", "decode_repeats", "by_layer",
)
BASELINES = ("kivi 2-bit", "kivi 4-bit")


def error_row(row: dict, report: dict) -> dict:
    return {
        "name": f"codec_error/{row['codec']}/{row['profile']}_{int(report['tokens'])}",
        "value": row["attention_error"],
        "unit": "relative rms of the attention output",
        # Errors repeat; the rates have their own.
        "repeats": 1,
        "spread": 0.0,
        **{name: row[name] for name in FIGURES if name in row},
    }


def size_rows(report: dict) -> list[dict]:
    rows = []
    for found in report["equal_error"]:
        names = [name for name in found if name not in ("codec", "baseline")]
        rows.append({
            "name": f"codec_size/{found['codec']}_{int(report['tokens'])}",
            "unit": "times smaller at the same error of attention",
            "opponent": found["baseline"],
            "repeats": 1,
            "spread": 0.0,
            **{name: found[name] for name in names},
        })
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dump", required=True)
    parser.add_argument("--calibration", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", default="")
    parser.add_argument("--json", required=True)
    options = parser.parse_args()

    command = [results.program("client/cli/kvdepot"), "bench", "codec", "--json"]
    command += [f"--{name}={getattr(options, name)}" for name in ("dump", "calibration", "device", "plot")]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    rows = [error_row(row, report) for row in report["rows"]] + size_rows(report)
    layers = [int(layer) for layer in report["layers"]]
    for row in rows:
        row |= {"model": report["model"], "layers": layers, "tokens": int(report["tokens"])}
    results.write(options.json, rows)


if __name__ == "__main__":
    main()
