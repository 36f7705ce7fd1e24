"""`archloop train`: a stack trained at ship width, to be shipped."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from archloop.cli.command import AsJson, command, print_json, stderr, stdout
from archloop.cli.counts import count
from archloop.cli.models import MODEL_HELP, MOST_SEED, Named, Trial, find
from archloop.errors import UserError

if TYPE_CHECKING:
    import torch

    from archloop.text.corpora import Corpus, CorpusConfig
    from archloop.text.encoded import Encoded
    from archloop.text.tokenizers import Tokenizer
    from archloop.training.loop import TrainingConfig
    from archloop.training.ship import Shipped, ShipRun

MOST_VOCABULARY = 32_768
"""Tokens of a tokenizer that is trained, unless asked otherwise: corpora rarely fill more."""
MOST_HOURS = 1e6
"""More than a century: nobody means that."""
TELL_EVERY_S = 10.0
NUM_HELDOUT_WINDOWS = 64


class _Defaults(NamedTuple):
    """What a study's recipe says about training, else ours."""

    training: "TrainingConfig"
    corpus: "CorpusConfig"
    root: Path


@command(resumes=True)
def train(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    trial: Trial = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The checkpoint's folder; a trial has one of its own."),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="How long: tokens, as 100M or 2B.")] = None,
    hours: Annotated[float | None, typer.Option(help="Or hours.")] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="Files, folders or patterns; default the recipe's.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json of archloop's; default: trained.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Of a tokenizer that is trained.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or muon.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak; default the study's tuned one, or the recipe's.")
    ] = None,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 16,
    precision: Annotated[
        str | None, typer.Option(help="float32, or bfloat16, which GPUs have by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = 0,
    device: Annotated[
        str, typer.Option(help="PyTorch device, or several that share each step: cuda:0,cuda:1.")
    ] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a stack as it is to be shipped; stopped, the same command goes on.

    Of a study's trial the ship-width spec is trained, by the recipe's settings unless told
    otherwise; only how long sequences are, and how many a step has, is always as said here. The
    checkpoint has the tokenizer and a chat template; archloop generate, eval and export then take
    the trial by it.
    """
    _check_duration(tokens, hours)
    places = _places(device)
    named = find(model, trial)
    _check_length(named, seq_len)
    work, folder = _folders(named, output)
    defaults = _defaults(named)
    changes = {
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "seq_len": seq_len,
        "batch_size": batch_size,
        "precision": precision or ("bfloat16" if places[0].type == "cuda" else None),
        "num_steps": None if tokens is None else _steps(tokens, seq_len * batch_size),
    }
    settings = _settings(defaults.training, changes)
    text = _corpus(corpus, defaults)
    made = _tokenizer(named, text, tokenizer, vocab_size)
    run = _run(named, settings, hours, seed, text, made)
    shipped, bits = _train(run, text, made, work, folder, places)
    _tell(shipped, bits, work, folder, as_json)


def _places(names: str) -> "list[torch.device]":
    """Devices to train on; under torchrun, this process's own."""
    from archloop.training.loop import torch_device, use_device
    from archloop.training.ranks import local_index, of_torchrun

    listed = names.split(",")
    if of_torchrun():
        if len(listed) > 1:
            raise UserError(f"--device {names}: torchrun gives each process its own; say cuda")
        return [use_device(f"cuda:{local_index()}" if names == "cuda" else names)]
    if len(listed) == 1:
        return [use_device(names)]
    places = [torch_device(name) for name in listed]
    if len({place.type for place in places}) > 1:
        raise UserError(f"--device {names}: devices that train together are of one kind")
    return places


def _tell(shipped: "Shipped", bits: float, work: Path, folder: Path, as_json: bool) -> None:
    training = shipped.run.training
    num_tokens = training.num_steps * training.seq_len * training.batch_size
    if as_json:
        print_json(
            {
                "directory": str(folder),
                "num_steps": training.num_steps,
                "num_tokens": num_tokens,
                "bits_per_byte": bits,
                "logs": str(work / "logs"),
            }
        )
        return
    stdout().print(
        f"{folder}: {training.num_steps:,} steps, {num_tokens:,} tokens; held-out text at "
        f"{bits:.4f} bits a byte; logs in {work / 'logs'}",
        soft_wrap=True,
    )


def _defaults(named: Named) -> _Defaults:
    from archloop.text.corpora import CorpusConfig
    from archloop.training.loop import TrainingConfig

    if named.source != "trial":
        return _Defaults(TrainingConfig(), CorpusConfig(), Path.cwd())
    from archloop.store import reading
    from archloop.store.reference_run import mean_rate

    assert named.study is not None
    about = reading.about(named.study)
    proxy = about.settings["proxy"]
    training = TrainingConfig.model_validate(proxy["training"])
    if tuned := mean_rate(about.learning_rates, named.spec.layout):
        training = training.model_copy(update={"learning_rate": tuned})
    return _Defaults(training, CorpusConfig.model_validate(proxy["corpus"]), about.recipe_folder)


def _check_duration(tokens: str | None, hours: float | None) -> None:
    if (tokens is None) == (hours is None):
        raise UserError("say how long to train: --tokens 100M, or --hours 2")
    # NaN is neither above nor below anything, and is refused by this form alone.
    if hours is not None and not 0 < hours <= MOST_HOURS:
        raise UserError(f"--hours {hours}: must be above 0, and at most {MOST_HOURS:,.0f}")


def _check_length(named: Named, seq_len: int) -> None:
    """Refuse sequences that the model is not made for: its held-out score would be refused."""
    longest = named.spec.max_context
    if longest is not None and seq_len > longest:
        raise UserError(
            f"--seq-len {seq_len}: {named.label} is made for contexts of {longest}; give at most "
            "that"
        )


def _settings(base: "TrainingConfig", changes: dict[str, Any]) -> "TrainingConfig":
    from pydantic import ValidationError

    from archloop.errors import reason, shown

    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return type(base).model_validate({**base.model_dump(), **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "the options"
        raise UserError(f"{option} {shown(first['input'])}: {reason(first)}") from error


def _steps(tokens: str, tokens_a_step: int) -> int:
    """Steps that see so many tokens, which may end in K, M or B."""
    return math.ceil(count("--tokens", tokens, "tokens") / tokens_a_step)


def _corpus(paths: list[str] | None, defaults: _Defaults) -> "Corpus":
    from archloop.text import corpora

    if paths:
        return corpora.load(corpora.CorpusConfig(source="files", paths=tuple(paths)), Path.cwd())
    try:
        return corpora.load(defaults.corpus, defaults.root)
    except UserError as error:
        raise UserError(f"{error}; or give --corpus") from error


def _tokenizer(
    named: Named, text: "Corpus", file: Path | None, vocab_size: int | None
) -> "Tokenizer":
    from archloop.text import tokenizers
    from archloop.training.ship import CHAT_MARKS

    if file is not None:
        if vocab_size is not None:
            raise UserError("--vocab-size is of a tokenizer that is trained; leave it out")
        try:
            made = tokenizers.from_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, UserError) as error:
            raise UserError(f"--tokenizer {file}: {error}") from error
    else:
        size = vocab_size or min(named.spec.vocab_size, MOST_VOCABULARY)
        _check_fits(size, named)
        made = tokenizers.cached(text, size, more_special=CHAT_MARKS)
    # Also one from the cache, where an earlier version may have left it.
    _check_fits(made.vocab_size, named, file)
    return made


def _check_fits(num_tokens: int, named: Named, file: Path | None = None) -> None:
    if num_tokens > named.spec.vocab_size:
        where = "" if file is None else f"--tokenizer {file}: "
        remedy = "give a smaller --vocab-size" if file is None else "name a smaller one, or none"
        raise UserError(
            f"{where}a tokenizer of {num_tokens} tokens, and {named.label} has room for "
            f"{named.spec.vocab_size}; {remedy}"
        )


def _folders(named: Named, output: Path | None) -> tuple[Path, Path]:
    """Folder of the run while it is under way, and that of the checkpoint."""
    if output is not None:
        # Absolute: the folder that "." means has a name.
        place = output.absolute()
        if not place.name:
            raise UserError(f"--output {output} has no name, and none beside it; give another")
        return place.with_name(f"{place.name}.training"), output
    if named.source != "trial" or named.folder is None:
        raise UserError("name the folder of the checkpoint: --output")
    return named.folder.with_name("training"), named.folder


def _run(
    named: Named,
    training: "TrainingConfig",
    hours: float | None,
    seed: int,
    text: "Corpus",
    tokenizer: "Tokenizer",
) -> "ShipRun":
    from archloop.training.ship import ShipRun

    return ShipRun(
        spec=named.spec,
        training=training,
        hours=hours,
        seed=seed,
        corpus=text.digest,
        tokenizer=tokenizer.to_json(),
    )


class _Teller:
    """Says how far a training is, every few seconds; it may go to another process."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, step: int, loss: float, speed: float) -> None:
        now = time.monotonic()
        if now - self._last >= TELL_EVERY_S:
            self._last = now
            stderr.print(f"step {step}: loss {loss:.4f}, {speed:,.0f} tokens/s", markup=False)


def _train(
    run: "ShipRun",
    text: "Corpus",
    tokenizer: "Tokenizer",
    work: Path,
    folder: Path,
    places: "list[torch.device]",
) -> "tuple[Shipped, float]":
    """The finished run, and held-out text in bits per byte."""
    from archloop.evals import bits_per_byte
    from archloop.evals.decoder_model import DecoderModel
    from archloop.text import encoded

    stderr.print("encoding the text", markup=False)
    ids = encoded.encode(text, tokenizer)
    length = run.training.seq_len
    count = min(NUM_HELDOUT_WINDOWS, (len(ids.heldout_T) - 1) // length)
    windows_NT = bits_per_byte.windows(ids.heldout_T, max(2, count), length)
    shipped = _shipped(run, ids, work, folder, places)
    model = DecoderModel(shipped.decoder)
    return shipped, bits_per_byte.measure(model, windows_NT, tokenizer.num_bytes_V).value


def _shipped(
    run: "ShipRun", text: "Encoded", work: Path, folder: Path, places: "list[torch.device]"
) -> "Shipped":
    """Trained by this process, by several of this command, or by this one of torchrun's."""
    from archloop.training.ranks import joined, of_torchrun
    from archloop.training.ship import train_on_several, train_to_ship

    tell = _Teller()
    if len(places) > 1:
        return train_on_several(run, text, work, folder, places, tell)
    if not of_torchrun():
        return train_to_ship(run, text, work, folder, device=places[0], on_step=tell)
    with joined(places[0]) as ranks:
        shipped = train_to_ship(
            run, text, work, folder, device=places[0], on_step=tell, ranks=ranks
        )
    if not ranks.is_first:
        raise typer.Exit
    return shipped
