"""A profile as a table for people."""

from rich.table import Table

from archloop.profiling.record import Figures, Interval, Profile

_COLUMNS: dict[str, tuple[str, float, str]] = {
    "ttft_ms": ("TTFT ms", 1, ".1f"),
    "prefill_tok_per_s": ("prefill tok/s", 1, ".0f"),
    "decode_p50_ms": ("decode p50 ms", 1, ".2f"),
    "decode_p95_ms": ("decode p95 ms", 1, ".2f"),
    "peak_memory_bytes": ("peak MB", 1e6, ".0f"),
    "engine_empty_bytes": ("empty MB", 1e6, ".0f"),
    "joules_per_token": ("decode J/token", 1, ".3g"),
}
"""By figure: heading, divisor, format."""


def rows(profile: Profile) -> list[list[str]]:
    """One row per context: the context, then each figure with its interval and ratio."""
    return [
        [str(at.context), *(_cell(profile, at, name) for name in _columns(profile))]
        for at in profile.figures
    ]


def table(profile: Profile) -> Table:
    """The measured figures, with what they were measured on as title and doubts as caption."""
    identity = profile.identity
    title = (
        f"{identity.device}, {identity.in_threads}; {identity.runtime} "
        f"{identity.runtime_version}, {identity.quant}; {profile.num_processes} processes"
    )
    notes = [f"flag: {flag}" for flag in profile.flags]
    for name, value in (("latency", profile.latency_ratio), ("memory", profile.memory_ratio)):
        if value is not None:
            notes.append(f"{name} over the reference's: {_ratio(value)}")
    if profile.num_repeated:
        notes.append(f"measured again after a disturbance: {profile.num_repeated}")
    found = Table(title=title, caption="\n".join(notes) or None)
    found.add_column("context", justify="right")
    for name in _columns(profile):
        found.add_column(_COLUMNS[name][0], justify="right")
    for row in rows(profile):
        found.add_row(*row)
    return found


def _columns(profile: Profile) -> list[str]:
    """The figures that the device could tell at every context."""
    return [
        name for name in _COLUMNS if all(getattr(at, name) is not None for at in profile.figures)
    ]


def _cell(profile: Profile, at: Figures, name: str) -> str:
    _, divisor, form = _COLUMNS[name]
    value: Interval = getattr(at, name)
    text = f"{value.value / divisor:{form}}"
    spread = f"{value.low / divisor:{form}} to {value.high / divisor:{form}}"
    lines = [text, spread] if value.low < value.high else [text]
    ratio = profile.ratios.get(str(at.context), {}).get(name)
    if ratio is not None and name != "engine_empty_bytes":
        lines.append(f"x {_ratio(ratio)}")
    return "\n".join(lines)


def _ratio(value: Interval) -> str:
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"
