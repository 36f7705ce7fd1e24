"""`archloop export`: what an engine loads, or a model folder that transformers loads."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archloop.cli.command import AsJson, command, print_json, stdout
from archloop.cli.models import MOST_SEED, SOURCE_HELP, Named, Trial, find
from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.stack.decoder import Decoder

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
FORMATS = ("transformers",)
_OWN = "; --runtime torch_eager writes what archloop itself loads, whatever the stack"


@command()
def export(
    model: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder; must not exist yet.")],
    runtime: Annotated[str | None, typer.Option(help="Runtime plug-in that loads it.")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="Or a format: transformers.")
    ] = None,
    quant: Annotated[str | None, typer.Option(help="Default: the most exact one.")] = None,
    pad: Annotated[
        bool,
        typer.Option(
            "--pad",
            help="For transformers: feed-forwards filled up with zeros to the widest; same logits.",
        ),
    ] = False,
    trial: Trial = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of random weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Export a model for a runtime or for transformers; a spec alone gets random weights.

    A study's trial is exported at ship width: its checkpoint after archloop train, else random.
    """
    if (runtime is None) == (format_ is None):
        raise UserError("give one of --runtime NAME and --format transformers")
    if format_ is not None:
        _check_format(format_, quant)
    elif pad:
        raise UserError("--pad belongs to --format transformers")
    if output.exists():
        raise UserError(f"--output {output} exists already; name another folder")
    found = find(model, trial)
    text = _text_files(found.folder)
    if runtime is None:
        told = _to_transformers(found, output, seed, pad)
    else:
        told = _to_engine(found, runtime, output, seed, quant)
    told["tokenizer"] = _copy_text(found.folder, output, text)
    if as_json:
        print_json(told)
    else:
        _show(told)


def _check_format(name: str, quant: str | None) -> None:
    from archloop.errors import suggest

    if name not in FORMATS:
        raise UserError(
            f"--format {name}: {suggest(name, FORMATS)}; an engine's own format is written by "
            "--runtime, such as llama_cpp for GGUF"
        )
    if quant is not None:
        raise UserError("--quant belongs to --runtime; a model for transformers has its own dtype")


def _to_engine(
    found: Named, runtime: str, output: Path, seed: int, quant: str | None
) -> dict[str, Any]:
    from archloop import registry
    from archloop.runtimes.base import Runtime
    from archloop.runtimes.exporting import export as write
    from archloop.runtimes.exporting import is_too_large, stream

    engine: Runtime = registry.get("runtimes", runtime)()
    quant = quant or engine.quants[0]
    engine.check(quant)
    streamed = found.is_random and engine.streams and is_too_large(found.spec)
    if streamed:
        manifest, weights = stream(engine, found.spec, output, quant), "random"
    else:
        decoder, weights = found.decoder(seed)
        manifest = write(engine, decoder, output, quant, tokenizer=found.folder)
    return {
        "directory": str(output),
        "weights": weights,
        "streamed": streamed,
        "run_with": engine.command(output),
        **manifest.model_dump(mode="json", exclude={"spec", "files"}),
    }


def _to_transformers(found: Named, output: Path, seed: int, pad: bool) -> dict[str, Any]:
    """A folder of a family that transformers knows: configuration, weights, tokenizer."""
    from archloop.checkpoints import families, padding
    from archloop.checkpoints.layouts.base import UnsayableError
    from archloop.checkpoints.saving import save
    from archloop.stack import cost

    spec = padding.padded_spec(found.spec) if pad else found.spec
    try:
        family, config = families.saying(spec)
    except UnsayableError as error:
        raise UserError(f"{found.label}: {error}{_remedy(spec, pad)}") from error
    decoder, weights = found.decoder(seed)
    if pad:
        decoder = padding.padded(decoder)
    save(decoder, output, layout=family.name)
    own, written = cost.num_params(found.spec), cost.num_params(spec)
    return {
        "directory": str(output),
        "weights": weights,
        "format": "transformers",
        "layout": family.name,
        "model_type": config["model_type"],
        "architecture": config["architectures"][0],
        "num_params": written,
        "num_params_of_zeros": written - own,
        "parity_error": _beside_transformers(decoder, output),
    }


def _remedy(spec: Any, pad: bool) -> str:
    """What the user may do: fill feed-forwards up to one width, if that is all that it takes."""
    from archloop.checkpoints import families, padding
    from archloop.checkpoints.layouts.base import UnsayableError
    from archloop.stack import cost

    if pad:
        return _OWN
    wide = padding.padded_spec(spec)
    try:
        families.saying(wide)
    except UnsayableError:
        return _OWN
    more = cost.num_params(wide) / cost.num_params(spec) - 1
    return (
        f"; --pad fills its feed-forwards up with zeros to one width, the same logits with "
        f"{more:.1%} more parameters"
    )


def _beside_transformers(decoder: "Decoder", folder: Path) -> float | None:
    """The largest difference of logits from transformers', in their standard deviations."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        return None
    import torch
    import transformers

    # A bar for loading what was just written, and what would be faster, are no news here.
    told: Any = transformers.utils.logging
    told.set_verbosity_error()
    told.disable_progress_bar()
    model_class: Any = transformers.AutoModelForCausalLM
    theirs = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    seeded = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, decoder.spec.vocab_size, (1, 33), generator=seeded)
    with torch.no_grad():
        wanted_BTV, found_BTV = decoder.float()(ids_BT), theirs(ids_BT).logits
    return float((wanted_BTV - found_BTV).abs().max() / wanted_BTV.std())


def _show(told: dict[str, Any]) -> None:
    console = stdout()
    if told.get("format") == "transformers":
        zeros = told["num_params_of_zeros"]
        filled = f", {zeros / told['num_params']:.1%} of them zeros to fill up" if zeros else ""
        console.print(
            f"{told['directory']}: {told['architecture']}, {told['weights']} weights, "
            f"{told['num_params'] / 1e6:.1f}M parameters{filled}",
            markup=False,
            soft_wrap=True,
        )
        error = told["parity_error"]
        console.print(
            "not compared with transformers: pip install 'archloop[hf]'"
            if error is None
            else f"transformers' logits are within {error:.2g} standard deviations of archloop's",
            markup=False,
            soft_wrap=True,
        )
        return
    sizes = ", ".join(f"{n / 1e6:.1f} MB {dtype}" for dtype, n in told["weight_bytes"].items())
    console.print(
        f"{told['directory']}: {told['runtime']} {told['version']}, {told['quant']}; "
        f"{told['weights']} weights, {sizes}",
        soft_wrap=True,
    )
    if told["parity_error"] is not None:
        console.print(
            f"logits are within {told['parity_error']:.2g} standard deviations of eager "
            f"PyTorch's ({told['parity_bound']:.2g} are allowed)",
            soft_wrap=True,
        )
    else:
        why = "memory does not hold it" if told["streamed"] else "the engine does not run here"
        console.print(f"not compared with eager PyTorch: {why}")
    if told["run_with"]:
        console.print(f"run it with: {told['run_with']}", markup=False, soft_wrap=True)


def _text_files(folder: Path | None) -> list[str]:
    """Names of a checkpoint's tokenizer, templates and special tokens.

    Raises:
        UserError: one of them links to a file outside the checkpoint's folder.
    """
    from archloop.checkpoints import files
    from archloop.generation.model import MORE_TEMPLATES

    if folder is None or not folder.is_dir():
        return []
    templates = sorted(path.name for path in (folder / MORE_TEMPLATES).glob("*.jinja"))
    names = [*TOKENIZER_FILES, *(f"{MORE_TEMPLATES}/{name}" for name in templates)]
    return [name for name in names if files.inside(folder, name).is_file()]


def _copy_text(folder: Path | None, output: Path, found: list[str]) -> list[str]:
    """A checkpoint's tokenizer, templates and special tokens go along with its artifact."""
    import shutil

    from archloop.checkpoints import files, tokens
    from archloop.text.special_tokens import SpecialTokens

    if folder is None or not folder.is_dir():
        return []
    for name in found:
        (output / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, output / name)
    # Some checkpoints name them in their configuration alone, which an artifact does not have.
    special = tokens.read(folder)
    if special != SpecialTokens():
        generation = files.read_json(output, tokens.GENERATION) or {}
        generation |= tokens.settings(special)
        text = json.dumps(generation, indent=2, sort_keys=True)
        (output / tokens.GENERATION).write_text(text + "\n", encoding="utf-8")
        found = list(dict.fromkeys([*found, tokens.GENERATION]))
    return found
