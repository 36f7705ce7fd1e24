"""The GPU's tables of `docs/mixers.md`, from the record that `mixers.py` prints last.

    python benchmarks/mixers_table.py RECORD.json [PART.json ...] [--join WHOLE.json]

Parts that ran apart (`mixers.py --parts`) are joined.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import layer_peers as peers
from mixers import COLUMNS, cell, print_cells

SUMMARY = [
    "mixer",
    "fwd+bwd over fla's GLA, T 1,024",
    "T 8,192",
    "32K over 8K",
    "first call s, kernels as they come",
    "compiled ahead",
    "new length s",
    "output error",
    "gradient error",
]
OVER_FLA = "forward_backward_over_fla_gla"
LENGTHS = ["1024", "8192"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--join", type=Path, help="write all parts as one record here")
    options = parser.parse_args()
    record: dict[str, Any] = {}
    for path in options.records:
        record |= {key: part for key, part in json.loads(path.read_text()).items() if part}
    if options.join:
        options.join.write_text(json.dumps(record, indent=1) + "\n")
    layers = record["layers"]
    ours = list(record["growth"])
    header(SUMMARY)
    for name in sorted(ours, key=lambda name: layers[name]["8192"][OVER_FLA]):
        print_cells([f"`{name}`", *summary(record, name)], True)
    print()
    columns = [key for key in COLUMNS if key not in (OVER_FLA, "first_call_s")]
    header(["layer", "T", *(COLUMNS[key] for key in columns)])
    for name in ours:
        peer = peers.PEERS.get(name, (None, None))[0]
        for length in LENGTHS:
            for label, row in ((f"`{name}`", layers[name]), (f"- {peer}", layers.get(peer))):
                if row is not None:
                    values = (row[length].get(key, "") for key in columns)
                    print_cells([label, f"{int(length):,}", *map(shown, values)], True)


def summary(record: dict[str, Any], name: str) -> list[str]:
    row, calls = record["layers"][name], record["first_calls"][name]
    ratios = (row[length][OVER_FLA] for length in LENGTHS)
    errors = (row["check"][key] for key in ("output_error", "gradient_error"))
    return [
        *(f"{ratio:.2f}" for ratio in ratios),
        f"{record['growth'][name]['growth_4x']:.1f}",
        *(f"{calls[kind]['first_call_s']:.1f}" for kind in ("plain", "ahead")),
        f"{calls['plain']['odd_length_s']:.2f}",
        *(f"{error:.1e}".replace("e-0", "e-") for error in errors),
    ]


def shown(value: Any) -> str:
    if isinstance(value, str):
        return value.partition(" GPU 0 ")[0].rstrip(".").removeprefix("TimeoutError: ")
    return f"{value / 1e6:.2f} M" if value >= 1e6 else cell(value)


def header(labels: list[str]) -> None:
    print_cells(labels, True)
    print_cells(["---"] * len(labels), True)


if __name__ == "__main__":
    main()
