"""`archloop presets`: the specs that have names."""

from collections import Counter
from typing import Any

from rich.table import Column, Table

from archloop.cli.command import AsJson, command, print_json, stdout


@command()
def presets(as_json: AsJson = False) -> None:
    """List the presets and their all-attention twins, with counted costs."""
    from archloop.stack import cost
    from archloop.stack import presets as library

    rows: list[dict[str, Any]] = []
    for name in library.names():
        spec = library.load(name)
        rows.append(
            {
                "name": name,
                "num_params": cost.num_params(spec),
                "num_active_params": cost.num_active_params(spec),
                "layout": spec.layout,
                "state_bytes": {str(n): cost.state_bytes(spec, n) for n in (4_096, 32_768)},
            }
        )
    if as_json:
        print_json(rows)
        return
    table = Table(
        Column("preset", no_wrap=True),
        "mixers",
        "params",
        "active",
        "state 4K",
        "state 32K",
        box=None,
    )
    for row in sorted(rows, key=lambda row: row["num_params"]):
        layers = Counter(row["layout"])
        mixers = " + ".join(f"{number} {mixer}" for mixer, number in sorted(layers.items()))
        counts = [f"{row[key] / 1e9:.2f}B" for key in ("num_params", "num_active_params")]
        mib = [f"{row['state_bytes'][n] / 2**20:,.0f} MiB" for n in ("4096", "32768")]
        table.add_row(row["name"], mixers, *counts, *mib)
    stdout().print(table)
