"""`archloop generate`: stream a checkpoint's continuation of a prompt."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archloop import registry
from archloop.cli.command import command
from archloop.cli.models import MODEL_HELP, MOST_SEED, Named, Trial, find, open_artifact
from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.generation.model import Model as TextModel
    from archloop.stack.decoder import Decoder


@command()
def generate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    prompt: Annotated[str, typer.Option(help="What to continue, or with --chat to answer.")],
    trial: Trial = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=2**20)] = 256,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    min_p: Annotated[float | None, typer.Option()] = None,
    repetition_penalty: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MOST_SEED)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text.")] = None,
    chat_variable: Annotated[
        list[str] | None, typer.Option(help="For the template, such as enable_thinking=false.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Such as bfloat16; default as stored.")] = None,
    device: Annotated[str, typer.Option(help="PyTorch device.")] = "cpu",
) -> None:
    """Stream a model's continuation of a prompt; its own sampling defaults apply.

    A study's trial speaks by its proxy, or as trained by archloop train; an artifact by its engine.
    """
    import torch

    from archloop.generation.model import stream
    from archloop.training.loop import use_device

    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise UserError("--prompt is not UTF-8 text; check the terminal's encoding")
    torch_dtype = None if dtype is None else _dtype(dtype)
    place = use_device(device)
    loaded, open_engine = _opened(find(model, trial), torch_dtype, place)
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    sampling = _sampling(loaded, {key: value for key, value in given.items() if value is not None})
    with torch.inference_mode():
        engine = open_engine()
        for piece in stream(
            loaded,
            [{"role": "user", "content": prompt}] if chat else prompt,
            sampling,
            max_new_tokens=max_new_tokens,
            stop_strings=stop or (),
            variables=_variables(chat_variable or []),
            engine=engine,
        ):
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")


def _sampling(loaded: "TextModel", chosen: dict[str, Any]) -> Any:
    """The model's own defaults with what was given; options that change nothing are refused."""
    from dataclasses import replace

    sampling = replace(loaded.sampling, **chosen)
    filters = [key for key in ("top_k", "top_p", "min_p") if key in chosen]
    if sampling.greedy and filters:
        option = "--" + filters[0].replace("_", "-")
        raise UserError(f"{option} changes nothing at temperature 0; give --temperature as well")
    return sampling


def _opened(model: Named, dtype: Any, device: Any) -> "tuple[TextModel, Callable[[], Any]]":
    """A model with its text, and how to open what runs it."""
    if model.source != "artifact":
        loaded = model.text_model(dtype, device)
        return loaded, lambda: _engine(loaded.decoder)
    from archloop.cli.subject import MAX_CONTEXT
    from archloop.generation.model import without_weights
    from archloop.generation.session import SessionModel

    folder = model.folder
    assert folder is not None

    def engine() -> SessionModel:
        session, manifest = open_artifact(folder, MAX_CONTEXT)
        return SessionModel(session, manifest.precision)

    return without_weights(model.spec, folder), engine


def _engine(decoder: "Decoder") -> Any:
    """What runs the decoder: on a GPU, in 16 bits, the engine that `torch_cuda` measures."""
    from archloop.runtimes.cuda.model import CudaModel
    from archloop.runtimes.torch_cuda import TorchCuda

    weight = decoder.embedding.weight
    if weight.is_cuda and weight.element_size() == 2 and TorchCuda().missing_to_run() is None:
        return CudaModel(decoder)
    return decoder


def _variables(given: list[str]) -> dict[str, Any]:
    """``name=value`` pairs; a value that is JSON is what it says, any other is text."""
    found: dict[str, Any] = {}
    for pair in given:
        name, separator, text = pair.partition("=")
        if not name or not separator:
            raise UserError(f"--chat-variable {pair!r} must be a name and a value, as in a=1")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _dtype(name: str) -> Any:
    import torch

    known = ["bfloat16", "float16", "float32", "float64"]
    if name not in known:
        raise UserError(f"unknown dtype {name!r}; {registry.suggest(name, known)}")
    return getattr(torch, name)
