"""`archloop export`: an artifact that an engine loads, the ONNX ones without archloop."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from archloop.cli.command import AsJson, command, print_json
from archloop.cli.models import MODEL_HELP, Trial, find
from archloop.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


@command()
def export(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    runtime: Annotated[str, typer.Option(help="Runtime plug-in.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder; must not exist yet.")],
    quant: Annotated[str | None, typer.Option(help="Default: the most exact one.")] = None,
    trial: Trial = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Export a model for a runtime; without a checkpoint weights are random, good for timing only.

    A study's trial is exported at ship width: its checkpoint after archloop train, else random.
    """
    from archloop import registry
    from archloop.runtimes.base import Runtime
    from archloop.runtimes.exporting import export as write

    engine: Runtime = registry.get("runtimes", runtime)()
    quant = quant or engine.quants[0]
    engine.check(quant)
    if output.exists():
        raise UserError(f"--output {output} exists already; name another folder")
    found = find(model, trial)
    decoder, weights = found.decoder(seed)
    manifest = write(engine, decoder, output, quant)
    copied = _copy_tokenizer(found.folder, output)
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


def _copy_tokenizer(folder: Path | None, output: Path) -> list[str]:
    """A checkpoint's tokenizer, and what it says of special tokens, go along with its artifact."""
    import shutil

    found = [name for name in TOKENIZER_FILES if folder is not None and (folder / name).is_file()]
    for name in found:
        assert folder is not None
        shutil.copyfile(folder / name, output / name)
    return found
