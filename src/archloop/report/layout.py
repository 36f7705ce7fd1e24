"""A stack drawn as a row of coloured blocks, as inline SVG.

Each block is a column: one band per parallel mixer, and below it a thin bar for the channel mixer
(hatched for a mixture of experts). An arc above joins a block to the one it shares with.
"""

import math
from collections.abc import Sequence
from html import escape

from archloop.report.palette import colour, label
from archloop.stack.spec import BlockSpec, StackSpec

_CURVE_POINTS = 80
"""Points of a drawn training at the most: a page has hundreds of trainings."""
_WIDTH, _HEIGHT, _GAP, _TOP, _BAR = 22, 24, 3, 12, 5


def svg(spec: StackSpec) -> str:
    """The drawing, with the layout in words as its accessible title."""
    total = spec.num_blocks * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + _BAR + 3
    parts = [_block(index, block) for index, block in enumerate(spec.blocks)]
    parts += [_arc(index, block) for index, block in enumerate(spec.blocks)]
    title = escape(describe(spec))
    return (
        f'<svg class="stack" role="img" width="{total}" height="{height}" '
        f'viewBox="0 0 {total} {height}"><title>{title}</title>{"".join(parts)}</svg>'
    )


def describe(spec: StackSpec) -> str:
    """The layout in words: stretches of equal mixers, and what is shared."""
    stretches: list[tuple[str, int]] = []
    for name in spec.layout:
        if stretches and stretches[-1][0] == name:
            stretches[-1] = (name, stretches[-1][1] + 1)
        else:
            stretches.append((name, 1))
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in stretches)


def curve(losses: Sequence[tuple[int, float]]) -> str:
    """A training's loss against its steps as a small inline SVG; empty where there is none."""
    kept = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if len(kept) < 2:
        return ""
    kept = kept[:: max(1, len(kept) // _CURVE_POINTS)]
    (first, _), (last, end) = kept[0], kept[-1]
    low, high = min(loss for _, loss in kept), max(loss for _, loss in kept)
    points = " ".join(
        f"{36 + 364 * (step - first) / max(1, last - first):.1f},"
        f"{92 - 84 * (loss - low) / ((high - low) or 1):.1f}"
        for step, loss in kept
    )
    title = f"training loss from {kept[0][1]:.3f} at step {first} to {end:.3f} at step {last}"
    return (
        f'<svg class="curve" role="img" viewBox="0 0 410 108"><title>{title}</title>'
        f'<polyline points="{points}"/><text x="0" y="12">{high:.2f}</text>'
        f'<text x="0" y="94">{low:.2f}</text><text x="36" y="106">{first}</text>'
        f'<text x="400" y="106" text-anchor="end">{last} steps</text></svg>'
    )


def tooltip(index: int, block: BlockSpec) -> str:
    """What one block is, for a hover text."""
    lines = [f"block {index}"]
    for mixer in block.mixers:
        sharing = [
            f"{field} {value}"
            for field, value in (
                ("weights from", mixer.weights_from),
                ("state from", mixer.state_from),
            )
            if value is not None
        ]
        settings = [f"{key}={value}" for key, value in mixer.config.items()]
        lines.append(" ".join([mixer.name, *settings, *sharing]))
    if block.channel_mixer is not None:
        channel = block.channel_mixer
        settings = [f"{key}={value}" for key, value in channel.config.items()]
        lines.append(" ".join([channel.name, *settings]))
    return "\n".join(lines)


def _block(index: int, block: BlockSpec) -> str:
    x = index * (_WIDTH + _GAP)
    names = [mixer.name for mixer in block.mixers] or ["-"]
    band = _HEIGHT / len(names)
    parts = []
    for slot, name in enumerate(names):
        y = _TOP + slot * band
        parts.append(
            f'<rect x="{x}" y="{y:.1f}" width="{_WIDTH}" height="{band:.1f}" rx="3" '
            f'fill="{colour(name)}"/><text x="{x + _WIDTH / 2}" y="{y + band / 2 + 3.6:.1f}" '
            f'text-anchor="middle" class="blk">{escape(label(name))}</text>'
        )
    if block.channel_mixer is not None:
        dashes = ' stroke-dasharray="3 1.5"' if block.channel_mixer.name == "moe" else ""
        y = _TOP + _HEIGHT + 4
        parts.append(
            f'<line x1="{x + 1}" x2="{x + _WIDTH - 1}" y1="{y}" y2="{y}" class="ffn"{dashes}/>'
        )
    return f"<g><title>{escape(tooltip(index, block))}</title>{''.join(parts)}</g>"


def _arc(index: int, block: BlockSpec) -> str:
    arcs = []
    for mixer in block.mixers:
        source = mixer.state_from if mixer.weights_from is None else mixer.weights_from
        if source is not None:
            start, end = (i * (_WIDTH + _GAP) + _WIDTH / 2 for i in (source, index))
            shared = "weights" if mixer.state_from is None else "state"
            arcs.append(
                f'<path d="M{start} {_TOP} C{start} 0 {end} 0 {end} {_TOP}" class="arc {shared}"/>'
            )
    return "".join(arcs)
