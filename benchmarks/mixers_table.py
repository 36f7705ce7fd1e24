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

OVER_FLA = "forward_backward_over_fla_gla"
LATER = [
    "32K over 8K",
    "first call s, kernels as they come",
    "compiled ahead",
    "new length s",
    "output error",
    "gradient error",
]
"""Columns of the summary after those by length."""

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--join", type=Path, help="write all parts as one record here")
    options = parser.parse_args()
    record: Record = {}
    for path in options.records:
        record |= {key: part for key, part in json.loads(path.read_text()).items() if part}
    if options.join:
        options.join.write_text(json.dumps(record, indent=1) + "\n")
    names = list(record["growth"])
    lengths = [key for key in record["layers"][names[0]] if key.isdigit()]
    print_summary(record, names, lengths)
    print()
    print_layers(record["layers"], names, lengths)


def print_summary(record: Record, names: list[str], lengths: list[str]) -> None:
    layers, growth, calls = (record[part] for part in ("layers", "growth", "first_calls"))
    header(["mixer", *(f"over fla's GLA, T {int(length):,}" for length in lengths), *LATER])
    for name in sorted(names, key=lambda name: layers[name][lengths[-1]][OVER_FLA]):
        errors = (layers[name]["check"][key] for key in ("output_error", "gradient_error"))
        cells = [
            *(f"{layers[name][length][OVER_FLA]:.2f}" for length in lengths),
            f"{growth[name]['growth_4x']:.1f}",
            *(f"{calls[name][kind]['first_call_s']:.1f}" for kind in ("plain", "ahead")),
            f"{calls[name]['plain']['odd_length_s']:.2f}",
            *(f"{error:.1e}".replace("e-0", "e-") for error in errors),
        ]
        print_cells([f"`{name}`", *cells], True)


def print_layers(layers: Record, names: list[str], lengths: list[str]) -> None:
    columns = [key for key in COLUMNS if key not in (OVER_FLA, "first_call_s")]
    header(["layer", "T", *(COLUMNS[key] for key in columns)])
    for name in names:
        peer = peers.PEERS.get(name, (None, None))[0]
        for length in lengths:
            for label, row in ((f"`{name}`", layers[name]), (f"- {peer}", layers.get(peer))):
                if row is not None:
                    values = (row[length].get(key, "") for key in columns)
                    print_cells([label, f"{int(length):,}", *map(shown, values)], True)


def shown(value: Any) -> str:
    if isinstance(value, str):
        return value.partition(" GPU 0 ")[0].rstrip(".").removeprefix("TimeoutError: ")
    return f"{value / 1e6:.2f} M" if value >= 1e6 else cell(value)


def header(labels: list[str]) -> None:
    print_cells(labels, True)
    print_cells(["---"] * len(labels), True)


if __name__ == "__main__":
    main()
