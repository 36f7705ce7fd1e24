"""The mixer contract as checks that run in seconds: is what is trained also what is decoded?

A mixer is written twice, as `mix` for many tokens and as `mix_step` for one, and a search trains
the first form while users run the second. `check` builds one mixer of a config and refuses it, by
name, where the two forms differ, where an output depends on later tokens, where declared counts are
not those of the module, and where a value or a gradient is no finite number. A search runs it once
for every mixer before anything is trained; `archloop.testing` runs the same functions, and many
more, as tests.

Shape suffixes: B batch, T time, D model width.
"""

import inspect
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from archloop.blocks.base import SequenceMixer
from archloop.blocks.config import ChannelConfig, Config, MixerConfig
from archloop.blocks.state import State
from archloop.errors import UserError

LENGTH = 300
"""Tokens of the longest check: longer than the chunks, of up to 256 tokens, in which parallel forms
work. It is no multiple of a usual chunk, so that the last one is cut short."""
NUM_STEPS = 20
TOLERANCE = 1e-4
"""Largest difference in float64, relative to the largest output. The library's own mixers keep
1e-9 (`archloop.testing`); a mixer that computes part of itself in float32 is no fault."""


class ContractError(UserError):
    """A mixer does not do what every mixer must; the message names it and what to mend."""


def check(config: Config, d_model: int) -> None:
    """Refuse a mixer or channel mixer that breaks its contract. Each config is checked once.

    Random numbers come from a generator of the checks' own: the global one is left as it was.

    Raises:
        ContractError: a check failed, or the mixer's own code raised or ended the process.
    """
    _check(config, d_model)


@lru_cache(maxsize=1024)
def _check(config: Config, d_model: int) -> None:
    with _own_generator(), _blamed(config):
        if isinstance(config, MixerConfig):
            _check_mixer(config, d_model)
        elif isinstance(config, ChannelConfig):
            _check_channel_mixer(config, d_model)


def _check_mixer(config: MixerConfig, d_model: int) -> None:
    mixer = config.build(d_model)
    counts_equal_the_module(mixer, config, d_model)
    # A mixer may read the embedding beside the stream, which together are twice as wide.
    x_BTD = random_inputs(LENGTH, mixer.input_width)
    gradients_are_finite(mixer, x_BTD.float())
    gradients_reach_no_later_token(mixer, x_BTD.float(), LENGTH // 2)
    move_parameters(mixer, 0.3)
    mixer = mixer.double().eval()
    whole_is_prefill_and_steps(mixer, x_BTD, LENGTH - NUM_STEPS)
    whole_is_prefill_and_steps(mixer, x_BTD[:, :NUM_STEPS], 0)
    later_tokens_have_no_influence(mixer, x_BTD, LENGTH // 2)
    later_tokens_have_no_influence(mixer, x_BTD[:, :NUM_STEPS], NUM_STEPS - 1)


def _check_channel_mixer(config: ChannelConfig, d_model: int) -> None:
    mixer = config.build(d_model)
    parameters_equal_the_module(mixer, config, d_model)
    gradients_are_finite(mixer, random_inputs(LENGTH, d_model, torch.float32))
    move_parameters(mixer, 0.3)
    mixer = mixer.double().eval()
    x_BTD = random_inputs(NUM_STEPS, d_model)
    with torch.no_grad():
        alone_BTD = torch.stack([mixer(x_BTD[:, t]) for t in range(NUM_STEPS)], 1)
        _compare(alone_BTD, mixer(x_BTD), TOLERANCE, "a token alone", "the same token among others")


# --- the checks: each raises ContractError ------------------------------------------------------


def whole_is_prefill_and_steps(
    mixer: SequenceMixer, x_BTD: Tensor, num_prefilled: int, tolerance: float = TOLERANCE
) -> None:
    """The form that trains (no state) gives what a prefill of some tokens, then steps, give.

    Args:
        mixer: in evaluation mode, of the inputs' precision.
        x_BTD: inputs.
        num_prefilled: tokens that the prefill takes; the others are steps. 0 is steps alone.
        tolerance: relative to the largest output (at least 1).
    """
    batch, time, _ = x_BTD.shape
    with torch.no_grad():
        whole_BTD, _ = mixer(x_BTD)
        state = mixer.init_state(batch, time, x_BTD.dtype)
        parts = [mixer(x_BTD[:, :num_prefilled], state)[0]] if num_prefilled else []
        parts.append(steps(mixer, x_BTD[:, num_prefilled:], state, start=num_prefilled))
    what = f"a prefill of {num_prefilled} tokens and {time - num_prefilled} steps"
    _compare(
        torch.cat(parts, 1),
        whole_BTD,
        tolerance,
        what if num_prefilled else f"{time} steps",
        "the form without a state, which is the one that is trained",
    )


def later_tokens_have_no_influence(
    mixer: SequenceMixer, x_BTD: Tensor, first_changed: int, tolerance: float = TOLERANCE
) -> None:
    """Outputs before a token stay as they are when that token and all later ones change."""
    changed_BTD = x_BTD.clone()
    changed_BTD[:, first_changed:] += 3.0
    with torch.no_grad():
        before_BTD = mixer(x_BTD)[0][:, :first_changed]
        after_BTD = mixer(changed_BTD)[0][:, :first_changed]
    error = _distance(after_BTD, before_BTD)
    if not error <= tolerance:
        raise ContractError(
            f"the outputs of the first {first_changed} tokens change by {error:.2g} when only "
            "later tokens do; mix must read no token after the one it answers"
        )


def gradients_reach_no_later_token(mixer: SequenceMixer, x_BTD: Tensor, token: int) -> None:
    """As training runs the mixer, an output has no gradient to the inputs that follow it.

    `later_tokens_have_no_influence` compares two passes, which dropout would make differ, so it
    runs the mixer in evaluation mode. Here one pass in training mode is enough.
    """
    x_BTD = x_BTD.clone().requires_grad_()
    y_BTD, _ = mixer.train()(x_BTD)
    (gradient_BTD,) = torch.autograd.grad(y_BTD[:, token].sum(), [x_BTD])
    later, largest = gradient_BTD[:, token + 1 :].abs().max(), gradient_BTD.abs().max()
    # A convolution by FFT spreads rounding over all tokens.
    if float(later) > 1e-3 * float(largest):
        raise ContractError(
            f"in training, the output of token {token} depends on later tokens; mix must read no "
            "token after the one it answers"
        )


def parameters_equal_the_module(mixer: nn.Module, config: Config, d_model: int) -> None:
    """Parameters are what the config declares; where it names its parts, those that differ."""
    counted, declared = num_params(mixer), config.num_params(d_model)
    parts, terms = Counter[str](), config.param_terms(d_model)
    for name, parameter in mixer.named_parameters():
        parts[name.partition(".")[0]] += parameter.numel()
    wrong = [
        f"{name} {terms.get(name, 0)}, not {parts[name]}"
        for name in sorted(parts.keys() | terms.keys())
        if terms and terms.get(name, 0) != parts[name]
    ]
    if counted != declared or wrong:
        which = f" ({'; '.join(wrong)})" if wrong else ""
        raise ContractError(f"num_params declares {declared}, the module has {counted}{which}")


def counts_equal_the_module(mixer: SequenceMixer, config: MixerConfig, d_model: int) -> None:
    """Parameters and bytes of state are what the config declares."""
    parameters_equal_the_module(mixer, config, d_model)
    for dtype in (torch.bfloat16, torch.float32):
        for context in (1, LENGTH):
            state: State = mixer.init_state(1, context, dtype)
            if state.nbytes != (nbytes := config.state_bytes(d_model, context, dtype)):
                raise ContractError(
                    f"state_bytes declares {nbytes} at {context} tokens in {dtype}, "
                    f"the state has {state.nbytes}"
                )


def gradients_are_finite(mixer: nn.Module, x_BTD: Tensor) -> None:
    """One forward and backward pass, as training makes it, gives finite numbers only."""
    x_BTD = x_BTD.clone().requires_grad_()
    found = mixer.train()(x_BTD)
    y_BTD = found[0] if isinstance(found, tuple) else found
    if not bool(torch.isfinite(y_BTD).all()):
        raise ContractError(
            f"{y_BTD.isnan().sum()} of {y_BTD.numel()} outputs of a new module are no finite "
            "numbers; the mixer is at fault, whatever runtime is chosen"
        )
    leaves = {"x_BTD": x_BTD, **dict(mixer.named_parameters())}
    gradients = torch.autograd.grad(
        y_BTD.square().mean(), tuple(leaves.values()), allow_unused=True
    )
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise ContractError(f"the gradient of {name} is not finite in a new module")


# --- what the checks are made of ------------------------------------------------------------------


def steps(mixer: SequenceMixer, x_BTD: Tensor, state: State, start: int = 0) -> Tensor:
    """Outputs (B, T, D) of decode steps, one token at a time, from a state of `start` tokens."""
    outputs = []
    for t in range(x_BTD.shape[1]):
        positions_B = torch.full((x_BTD.shape[0],), start + t)
        y_BD, same = mixer.step(x_BTD[:, t], state, positions_B=positions_B)
        if same is not state:
            raise ContractError("step must return the state that it was given, changed in place")
        outputs.append(y_BD)
    return torch.stack(outputs, 1)


def random_inputs(
    time: int, d_model: int, dtype: torch.dtype = torch.float64, batch: int = 2, seed: int = 1
) -> Tensor:
    """Normally distributed inputs (B, T, D), equal for every precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, d_model, generator=generator, dtype=torch.float64).to(dtype)


def move_parameters(module: nn.Module, scale: float) -> None:
    """Add noise to every parameter, relative to its own spread (at least 0.1).

    A new module's zeros and ones hide what a trained one shows.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            size = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
            parameter.add_(scale * size.clamp(min=0.1) * torch.randn_like(parameter))


def num_params(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest magnitude of b (at least 1); NaN if any is."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1.0))


def _compare(a: Tensor, b: Tensor, tolerance: float, what: str, other: str) -> None:
    if a.shape != b.shape:
        raise ContractError(f"{what} gives shape {tuple(a.shape)}, {other} {tuple(b.shape)}")
    if not (error := _distance(a, b)) <= tolerance:
        raise ContractError(
            f"{what} and {other} differ by {error:.2g} of the largest output; "
            "both must compute the same function"
        )


@contextmanager
def _own_generator() -> Iterator[None]:
    """Modules draw their initial values from PyTorch's global generator: it is put back."""
    before = torch.random.get_rng_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.random.set_rng_state(before)


@contextmanager
def _blamed(config: Config) -> Iterator[None]:
    """Whatever goes wrong inside is told as a fault of the mixer that the config belongs to."""
    noun = "channel mixer" if isinstance(config, ChannelConfig) else "mixer"
    settings = ", ".join(f"{k}={v!r}" for k, v in config.model_dump().items())
    who = f"{noun} {config.owner.name} ({settings})" if settings else f"{noun} {config.owner.name}"
    try:
        yield
    except ContractError as error:
        raise ContractError(f"{who} breaks its contract: {error}") from error
    except (Exception, SystemExit) as error:
        where = _line_of(config.owner, error)
        raise ContractError(f"{who} breaks its contract: {error!r} in {where}") from error


def _line_of(owner: type, error: BaseException) -> str:
    """File and line of the error: the deepest one of the mixer's own file, if it passed there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == inspect.getsourcefile(owner)]
    frame = (own or list(frames))[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"
