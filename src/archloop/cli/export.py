"""`archloop export`: an artifact that an engine loads, the ONNX ones without archloop."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from archloop.cli.command import AsJson, command, print_json
from archloop.cli.models import load_spec
from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.stack.decoder import Decoder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@command()
def export(
    model: Annotated[
        str, typer.Argument(help="A preset, a spec's .json file, or a checkpoint's folder.")
    ],
    runtime: Annotated[str, typer.Option(help="Runtime plug-in.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder; must not exist yet.")],
    quant: Annotated[str | None, typer.Option(help="Default: the most exact one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Export a model for a runtime; a preset or spec gets random weights, good for timing only."""
    from archloop import registry
    from archloop.runtimes.base import Runtime
    from archloop.runtimes.exporting import export as write

    engine: Runtime = registry.get("runtimes", runtime)()
    quant = quant or engine.quants[0]
    engine.check(quant)
    if output.exists():
        raise UserError(f"--output {output} exists already; name another folder")
    decoder, weights = _decoder(model, seed)
    manifest = write(engine, decoder, output, quant)
    copied = _copy_tokenizer(Path(model), output)
    told = {
        "directory": str(output),
        "weights": weights,
        "tokenizer": copied,
        "run_with": engine.command(output),
        **manifest.model_dump(mode="json", exclude={"spec", "files"}),
    }
    if as_json:
        print_json(told)
        return
    console = Console(highlight=False)
    sizes = ", ".join(f"{n / 1e6:.1f} MB {kind}" for kind, n in manifest.weight_bytes.items())
    console.print(f"{output}: {runtime} {manifest.version}, {quant}; {weights} weights, {sizes}")
    if manifest.parity_error is not None:
        console.print(
            f"logits are within {manifest.parity_error:.2g} standard deviations of eager "
            f"PyTorch's ({manifest.parity_bound:.2g} are allowed)"
        )
    else:
        console.print("not compared with eager PyTorch: the engine does not run here")
    if told["run_with"]:
        console.print(f"run it with: {told['run_with']}")


def _decoder(model: str, seed: int) -> "tuple[Decoder, str]":
    """The decoder, and where its weights are from."""
    from archloop.runtimes.exporting import build_random

    if Path(model).is_dir():
        from archloop.checkpoints.loading import load

        return load(model).eval(), "checkpoint"
    return build_random(load_spec(model), seed), "random"


def _copy_tokenizer(folder: Path, output: Path) -> list[str]:
    """A checkpoint's tokenizer goes along with its artifact."""
    import shutil

    found = [name for name in TOKENIZER_FILES if folder.is_dir() and (folder / name).is_file()]
    for name in found:
        shutil.copyfile(folder / name, output / name)
    return found
