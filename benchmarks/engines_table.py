"""The table of mixers and engines in docs/runtimes.md, from what a run of their tests found.

    make test-engines                      # writes docs/results/engines.jsonl, then calls this
    make test-engines ONLY=executorch      # runs a part again: all other rows stay

A cell says `runs` and the distance from eager PyTorch where the test found one within its
tolerance, `differs` where it found a larger one, and `not run` where it found none.
"""

import json
from pathlib import Path

from archloop import registry
from archloop.runtimes.onnx import graph as onnx_graph

ROOT = Path(__file__).parents[1]
FOUND, PAGE = ROOT / "docs/results/engines.jsonl", ROOT / "docs/runtimes.md"
BEGIN, END = "<!-- engines: begin -->\n", "<!-- engines: end -->\n"
ENGINES = ("onnx_runtime", "openvino", "executorch")
TOLERANCE = 1e-4


def table(lines: list[str]) -> str:
    """Markdown of one JSON line a part and engine; of several the last counts."""
    found = {(row["part"], row["engine"]): row for row in map(json.loads, lines)}
    heads = []
    for engine in ENGINES:
        versions = sorted({row["version"] for (_, name), row in found.items() if name == engine})
        heads.append(f"`{engine}` {', '.join(versions)}".strip())
    rows = [f"| | in the graph | {' | '.join(heads)} |", "|---|---|" + "---|" * len(ENGINES)]
    for part in (*registry.shipped("mixers"), *registry.shipped("channel_mixers")):
        cells = [_cell(found.get((part, engine))) for engine in ENGINES]
        rows.append(f"| `{part}` | {_place(part)} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _cell(row: dict[str, float] | None) -> str:
    if row is None:
        return "not run"
    return f"{'runs' if row['error'] < TOLERANCE else 'differs'}, {row['error']:.1e}"


def _place(part: str) -> str:
    if part == "moe":
        return "as a loop over experts"
    free = part in onnx_graph.FREE or part in registry.shipped("channel_mixers")
    return "as it is" if free else "in parts"


def last_of_each(lines: list[str]) -> list[str]:
    """Sorted, and of several lines on one part and engine the last."""
    found = {(row["engine"], row["part"]): line for line in lines for row in (json.loads(line),)}
    return [found[key] for key in sorted(found)]


def main() -> None:
    lines = last_of_each(FOUND.read_text().splitlines())
    FOUND.write_text("".join(f"{line}\n" for line in lines))
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + table(lines) + END + after)


if __name__ == "__main__":
    main()
