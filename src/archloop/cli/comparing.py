"""`archloop compare A B`: models as they are, measured in turns, and which figures differ.

Every model is measured beside the first one, in processes that take turns, so that what disturbs
one disturbs the other. A figure differs where the 95% interval of its ratio leaves 1 out; else
what was measured does not tell the two apart.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

from archloop.scratch import Scratch

if TYPE_CHECKING:
    from archloop.profiling import ProfileConfig, Target
    from archloop.profiling.record import Interval, Profile
    from archloop.report.designs import Measured
    from archloop.stack.footprint import Footprint
    from archloop.stack.spec import StackSpec

FIGURES = {
    "ttft_ms": ("first token, ms", 1.0),
    "decode_p50_ms": ("decode step, ms", 1.0),
    "peak_memory_bytes": ("peak memory, MB", 1e6),
    "joules_per_token": ("energy a token, J", 1.0),
}
"""By figure: what it is called, and its unit."""


class Compared(NamedTuple):
    """A model beside the first one."""

    name: str
    footprint: "Footprint"
    profile: "Profile"

    def figures(self) -> "Iterator[tuple[int, str, Interval, Interval]]":
        """Context, name, own value and ratio to the first, of every figure that both have."""
        for at in self.profile.figures:
            ratios = self.profile.ratios[str(at.context)]
            for name in FIGURES:
                own: Interval | None = getattr(at, name)
                if own is not None and name in ratios:
                    yield at.context, name, own, ratios[name]


class Comparison(NamedTuple):
    """Models measured beside the first one.

    Attributes:
        first: its name.
        others: in the order in which they were named; the first itself, if it was alone.
        lacking: by name, why one could not be measured.
        stopped: what ended the measuring before all were measured.
    """

    first: str
    others: list[Compared]
    lacking: dict[str, str]
    stopped: KeyboardInterrupt | None = None

    def plain(self) -> list[dict[str, Any]]:
        """As JSON: one a model, with its figures, its ratios to the first and what they tell."""
        return [
            {
                "name": each.name,
                "beside": self.first,
                "estimated": each.footprint.model_dump(mode="json"),
                "measured": each.profile.model_dump(mode="json"),
                "verdicts": {
                    context: {
                        name: verdict(ratio) for name, ratio in ratios.items() if name in FIGURES
                    }
                    for context, ratios in each.profile.ratios.items()
                },
            }
            for each in self.others
        ]

    def curves(self) -> "Measured":
        """By figure and model, its value by context, to be drawn.

        The first model was measured anew beside each other one; the first of these measurements
        that has a figure stands for it, a point without an interval, as its ratios are what has
        one.
        """
        found: dict[str, dict[str, dict[int, Interval]]] = {}
        for each in self.others:
            for context, name, own, ratio in each.figures():
                curves = found.setdefault(name, {self.first: {}})
                curves[self.first].setdefault(context, own.point(own.value / ratio.value))
                curves.setdefault(each.name, {})[context] = own
        return found

    def show(self, console: Console) -> None:
        """A table for each model that is beside the first."""
        for each in self.others:
            _show(self.first, each, console)


def measured(
    specs: "Mapping[str, StackSpec]",
    target: "Target",
    config: "ProfileConfig",
    progress: Callable[[float, str], None],
) -> Comparison:
    """Measure each model beside the first, and the first beside itself if it is alone.

    Raises:
        KeyboardInterrupt: it was stopped before any model was measured.
        UserError: the target names what there is not.
        WorkerError: none of the models could be measured; why the last one could not.
    """
    from archloop.devices.lease import held
    from archloop.profiling import profile
    from archloop.profiling.nursery import Nursery
    from archloop.stack.footprint import footprint
    from archloop.workers.deaths import WorkerError

    (first, reference), *others = specs.items()
    pairs = [(first, reference), *others] if len(specs) == 1 else others
    found: list[Compared] = []
    lacking: dict[str, str] = {}
    stopped: KeyboardInterrupt | None = None
    with Scratch("compare") as scratch, held(target.claims()), Nursery() as nursery:
        for index, (name, spec) in enumerate(pairs):

            def say(share: float, what: str, done: int = index, name: str = name) -> None:
                progress((done + share) / len(pairs), f"{name}: {what}")

            try:
                told = profile(
                    spec,
                    target,
                    config,
                    reference=reference,
                    directory=Path(scratch) / str(index),
                    artifacts=Path(scratch) / "artifacts",
                    progress=say,
                    nursery=nursery,
                )
            except KeyboardInterrupt as interrupt:
                if not found:
                    raise
                stopped = interrupt
                break
            except WorkerError as error:
                if index + 1 == len(pairs) and not found:
                    raise
                lacking[name] = str(error)
                continue
            found.append(Compared(name, footprint(spec, list(target.contexts)), told))
    return Comparison(first, found, lacking, stopped)


def verdict(ratio: "Interval") -> str:
    """Whether a ratio tells two models apart."""
    return "tied" if ratio.low <= 1 <= ratio.high else "differs"


def _show(first: str, each: Compared, console: Console) -> None:
    identity = each.profile.identity
    console.print(
        f"{each.name} beside {first}: {identity.device}, {identity.runtime} "
        f"{identity.runtime_version}, {identity.quant}, {identity.in_threads}, "
        f"{each.profile.num_processes} processes each",
        markup=False,
        soft_wrap=True,
    )
    table = Table("context", "figure", each.name, first, "ratio", "95%", "", box=None)
    for context, name, own, ratio in each.figures():
        label, unit = FIGURES[name]
        table.add_row(
            f"{context:,}",
            label,
            f"{own.value / unit:,.2f}",
            f"{own.value / ratio.value / unit:,.2f}",
            f"{ratio.value:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
            verdict(ratio),
        )
    console.print(table)
    for flag in each.profile.flags:
        console.print(f"flag: {flag}", markup=False)
