"""`archloop doctor`: what works here, and what mends the rest."""

from rich.table import Table

from archloop.cli.command import AsJson, command, print_json, stdout


@command()
def doctor(as_json: AsJson = False) -> None:
    """Say which runtimes and devices work on this machine, and what mends those that do not."""
    from archloop.profiling.doctor import examine

    findings = examine()
    if as_json:
        kinds = {"runtimes": "runtime", "devices": "device"}
        print_json(
            {
                key: [each.model_dump(exclude={"kind"}) for each in findings if each.kind == kind]
                for key, kind in kinds.items()
            }
        )
        return
    table = Table("", "name", "works", "what mends it", box=None)
    for each in findings:
        table.add_row(each.kind, each.name, "yes" if each.works else "no", each.remedy or "")
    stdout().print(table)
