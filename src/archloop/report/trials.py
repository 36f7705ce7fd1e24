"""What the page tells of each trial: its row in the one table, and its own page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from archloop.findings.verdict import Row, Verdict
from archloop.report.telling import telling
from archloop.stack.spec import ChannelMixerSpec, MixerSpec
from archloop.store.record import StudyRecord, TrialRecord


class Badge(NamedTuple):
    """A mark beside a trial, and what is behind it."""

    words: str
    more: str


class Shown(NamedTuple):
    """A trial as the page shows it.

    Attributes:
        row: where it is compared with others.
        status: front, tied, dominated, reference, rejected, unsupported, failed, diverged, running.
        place: in words.
        badges: what a reader must know before using its figures.
        differs: settings that tell it from trials of the same layout.
        ancestors: numbers and origins from its parents upwards, the nearest first.
        children: numbers of the trials that came of it.
    """

    trial: TrialRecord
    row: Row | None
    status: str
    place: str
    badges: tuple[Badge, ...]
    differs: str
    ancestors: tuple[tuple[int, str], ...]
    children: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the page calls it."""
        return "reference" if self.trial.number < 0 else str(self.trial.number)

    def figure(self, name: str) -> float | None:
        """A measured figure at the largest context, the largest over targets."""
        found = [
            getattr(profile.figures[-1], name).value
            for profile in self.trial.profiles.values()
            if profile.figures
        ]
        return max(found, default=None)


def shown(study: StudyRecord, found: Verdict | None) -> list[Shown]:
    """All trials and the reference: compared ones first, by place and speed."""
    everyone = [each for each in (study.reference, *study.trials) if each is not None]
    rows = {} if found is None else {row.trial.number: row for row in found.rows}
    if found is not None:
        rows[-1] = found.reference
    by_number = {each.number: each for each in everyone}
    words = telling([each.spec for each in everyone])
    result = [
        Shown(
            trial,
            rows.get(trial.number),
            *_place(trial, rows.get(trial.number), found),
            tuple(_badges(trial, rows.get(trial.number))),
            differs,
            tuple(_ancestors(trial, by_number)),
            tuple(each.number for each in everyone if trial.number in each.parents),
        )
        for trial, differs in zip(everyone, words, strict=True)
    ]
    order = ("reference", "front", "tied", "dominated")
    return sorted(result, key=lambda each: (_index(order, each.status), _latency(each)))


def settings(trial: TrialRecord) -> list[tuple[str, str]]:
    """Block by block, what it is made of, with the settings that its spec names."""
    found = []
    for index, block in enumerate(trial.spec.blocks):
        parts: list[MixerSpec | ChannelMixerSpec] = list(block.mixers)
        parts += [block.channel_mixer] if block.channel_mixer else []
        texts = []
        for part in parts:
            given = {**part.config, **_shared(part)}
            inside = ", ".join(f"{key} {value}" for key, value in given.items())
            texts.append(f"{part.name} ({inside})" if inside else part.name)
        found.append((f"block {index}", " + ".join(texts) or "nothing"))
    return found


def genes(trial: TrialRecord) -> list[tuple[str, str]]:
    """The genome's parts as text; empty for a stack that no space proposed."""
    return [(key, _text(value)) for key, value in (trial.genome or {}).items()]


def _shared(part: Any) -> dict[str, int]:
    names = ("weights_from", "state_from")
    values = {name.replace("_", " "): getattr(part, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _place(trial: TrialRecord, row: Row | None, found: Verdict | None) -> tuple[str, str]:
    if trial.number < 0:
        return "reference", "the reference"
    if row is not None and found is not None:
        return found.status(row), found.place_in_words(row)
    if trial.state == "complete":
        if trial.replicates is not None:
            return "replicate", f"repeats {trial.replicates}"
        return ("diverged", "diverged") if trial.diverged else ("running", "not compared yet")
    if trial.state == "rejected":
        if not trial.broken:
            # By other budgets than the study's own, which rejected it before any training.
            return "rejected", "never trained"
        broken = trial.broken[0]
        return "rejected", f"broke a budget: {broken.metric} at {broken.context}"
    return trial.state, trial.state


def _badges(trial: TrialRecord, row: Row | None) -> Iterator[Badge]:
    if trial.diverged and trial.reached:
        rung = len(trial.reached)
        more = f"the training to rung {rung} diverged; what is said rests on the rungs before"
        yield Badge(f"diverged at rung {rung}", more)
    for budget in trial.straddles:
        yield Badge(f"straddles {_short(budget)}", budget)
    said = {_short(budget) for budget in trial.straddles}
    for figure in () if row is None else row.may_break:
        if _short(figure) in said:
            continue
        yield Badge(f"may break {_short(figure)}", figure)
    flags = [flag for profile in trial.profiles.values() for flag in profile.flags]
    if flags:
        yield Badge("flagged", "; ".join(flags))
    if trial.damaged:
        yield Badge("files lost", "; ".join(trial.damaged))


def _short(figure: str) -> str:
    """A limited figure's name without target and values: ``decode_p50_ms at 1024``."""
    return figure.partition(" on ")[0].replace("/reference", "")


def _ancestors(
    trial: TrialRecord, by_number: Mapping[int, TrialRecord]
) -> Iterator[tuple[int, str]]:
    waiting, seen = list(trial.parents), set[int]()
    while waiting:
        number = waiting.pop(0)
        if number in seen or number not in by_number:
            continue
        seen.add(number)
        yield number, by_number[number].origin
        waiting += by_number[number].parents


def _index(order: Sequence[str], status: str) -> int:
    return order.index(status) if status in order else len(order)


def _latency(each: Shown) -> tuple[float, int]:
    if each.row is None:
        return (float("inf"), each.trial.number)
    return (each.row.place.estimates["latency"].mean, each.trial.number)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        texts = [_text(inner) for inner in value]
        return texts[0] if len(set(texts)) == 1 and texts else " | ".join(texts)
    return str(value)
