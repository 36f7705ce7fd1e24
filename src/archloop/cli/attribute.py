"""`archloop attribute`: what each family, gene and position contributes, from a study's trials."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from archloop.cli.command import AsJson, command, print_json, stderr, stdout

if TYPE_CHECKING:
    from archloop.findings.attribution import Attribution, Contribution
    from archloop.store.record import StudyRecord


@command(resumes=True, takes_plugins=False)
def attribute(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")],
    design: Annotated[
        bool,
        typer.Option(
            "--design",
            help="First run trials by design: each family alone, pairs in turns, all together, in "
            "a study of their own beside this one.",
        ),
    ] = False,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw it into this .svg, .png or .pdf.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what each family, gene and position contributes to quality, latency and memory.

    Intervals are 95%. Shapley values share the hypervolume that is reached within the budgets.
    """
    from archloop.findings.attribution import attribution
    from archloop.store.reading import read

    if figure is not None:
        from archloop.report import static

        static.check(figure)
    extra = _designed(study, design)
    record = read(study)
    found = attribution(record, extra)
    if figure is not None:
        from archloop.report import contributions

        contributions.write(found, record.name, figure)
    if as_json:
        print_json(_plain(record, found, extra))
    else:
        _show(found, stdout())


def _designed(folder: Path, run: bool) -> "list[StudyRecord]":
    """The study of designed trials beside a study: run now, or there from before."""
    from archloop.search.design import SUFFIX
    from archloop.store.folder import StudyFolder
    from archloop.store.reading import read

    # The study may have been renamed since it began: what lies beside it is called as it is now.
    # Where it is the working directory, only an absolute path has a name.
    home = folder.absolute()
    beside = home.with_name(f"{home.name}{SUFFIX}")
    if run:
        from archloop.report.live import display
        from archloop.search.design import by_design
        from archloop.search.errors import NoFeasibleTrial
        from archloop.search.study import Study

        study = Study(by_design(Study.open(folder).recipe), home.parent)
        study.folder = beside
        try:
            with display(stderr) as progress:
                return [study.run(progress)]
        except NoFeasibleTrial:
            # Stacks that broke a budget or diverged were measured, and tell of devices.
            return [study.read()]
    return [read(beside)] if StudyFolder(beside).has_card() else []


def _plain(
    record: "StudyRecord", found: "Attribution", extra: "list[StudyRecord]"
) -> dict[str, Any]:
    return {
        "name": record.name,
        "num_stacks": found.num_stacks,
        "by_design": sum(len(each.trials) for each in extra),
        "contributions": [
            {**each._asdict(), "is_clear": each.is_clear} for each in found.contributions
        ],
        "hypervolume": found.volume,
        "shapley": [each._asdict() for each in found.shares],
    }


def _show(found: "Attribution", console: Console) -> None:
    titles = {
        "family": "one block more of a family, in place of an average one",
        "position": "a block of a family there, in place of anywhere",
        "gene": "a gene from its least value to its largest",
    }
    objectives = list(dict.fromkeys(each.objective for each in found.contributions))
    console.print(
        f"{found.num_stacks} stacks; 95% intervals; * the interval leaves 0 out; the "
        "share at the end is that of the spread between stacks that goes with it",
        soft_wrap=True,
    )
    for factor, title in titles.items():
        by_what: dict[str, dict[str, Contribution]] = {}
        for each in found.contributions:
            if each.factor == factor:
                by_what.setdefault(each.what, {})[each.objective] = each
        if not by_what:
            continue
        table = Table(title, *objectives, "stacks", box=None, title_justify="left")
        for what, row in by_what.items():
            count = max(each.num_stacks for each in row.values())
            cells = [_cell(row[name]) if name in row else "" for name in objectives]
            table.add_row(what, *cells, str(count))
        console.print(table)
    table = Table("Shapley value of a family", "of the hypervolume", "95%", "alone", box=None)
    for share in found.shares:
        ends = f"{share.low:.3f} to {share.high:.3f}"
        table.add_row(share.family, f"{share.value:.3f}", ends, str(share.num_alone))
    console.print(table)
    console.print(f"they add up to {found.volume:.3f}, what the stacks within the budgets reach")
    if any(not share.num_alone for share in found.shares):
        console.print(
            "a family that was never tried alone is known by its company only; --design tries each"
        )


def _cell(each: "Contribution") -> str:
    from archloop.report.attributed import in_words

    mark = "*" if each.is_clear else ""
    return f"{in_words(each)}{mark} {each.importance:.0%}"
