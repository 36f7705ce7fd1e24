"""A mixer whose two forms differ, that peeks or miscounts is refused by name; sound ones pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from archloop import registry
from archloop.blocks import checks
from archloop.blocks.base import Held, MixerConfig, SequenceMixer, Span, State
from archloop.blocks.linear import Linear

WIDTH = 64


class Sound(SequenceMixer):
    """A gated running mean of the tokens so far, plain enough to break in one place at a time."""

    name = "sound"

    class Config(MixerConfig):
        def sizes(self, d_model: int) -> dict[str, int]:
            return {}

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            return {"proj": d_model**2}

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            return {"sum": Held("recurrent", (d_model,))}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            return {"proj": 2 * num_tokens * d_model**2}

    def __init__(self, config: MixerConfig, d_model: int, **_: Any) -> None:
        super().__init__(config, d_model)
        self.proj = Linear(d_model, d_model)

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        sums_BTD = self.proj(x_BTD).cumsum(1)
        if state is not None:
            sums_BTD = sums_BTD + state["sum"][:, None]
            state["sum"].copy_(sums_BTD[:, -1])
        return sums_BTD / (1 + span.positions_BT[..., None])

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        state["sum"].add_(self.proj(x_BD))
        return (state["sum"] / (1 + positions_B[:, None])).to(x_BD.dtype)


def refusal(broken: type[SequenceMixer]) -> str:
    with pytest.raises(checks.ContractError) as refused:
        checks.check(broken.Config(), WIDTH)
    return str(refused.value)


def test_a_sound_mixer_passes() -> None:
    checks.check(Sound.Config(), WIDTH)


def test_a_mixer_that_peeks_only_without_a_state_is_refused() -> None:
    class Peeks(Sound):
        name = "peeks"
        Config = type("Config", (Sound.Config,), {})

        def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
            if state is None:
                x_BTD = x_BTD.roll(-1, 1)
            return super().mix(x_BTD, state, span)

    assert refusal(Peeks).startswith("mixer peeks breaks its contract: ")
    assert "later tokens" in refusal(Peeks)


def test_a_mixer_that_peeks_only_in_training_is_refused() -> None:
    class Cheats(Sound):
        name = "cheats"
        Config = type("Config", (Sound.Config,), {})

        def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
            return super().mix(x_BTD.roll(-1, 1) if self.training else x_BTD, state, span)

    assert "in training, the output of token" in refusal(Cheats)


@pytest.mark.parametrize("chunk", [64, 128, 256])
def test_a_mixer_that_forgets_what_was_before_its_chunk_is_refused(chunk: int) -> None:
    class Forgets(Sound):
        name = "forgets"
        Config = type("Config", (Sound.Config,), {})

        def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
            whole_BTD = super().mix(x_BTD, state, span)
            last_BTD = self.proj(x_BTD[:, chunk:]).cumsum(1) / (
                1 + span.positions_BT[:, chunk:, None]
            )
            return torch.cat([whole_BTD[:, :chunk], last_BTD], 1)

    assert "differ by" in refusal(Forgets)


def test_a_mixer_whose_step_is_another_function_is_refused() -> None:
    class Drifts(Sound):
        name = "drifts"
        Config = type("Config", (Sound.Config,), {})

        def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
            return 1.01 * super().mix_step(x_BD, state, positions_B)

    assert "steps and the form without a state" in refusal(Drifts)


@pytest.mark.parametrize("member", ["num_params", "state_bytes"])
def test_a_mixer_that_miscounts_is_refused(member: str) -> None:
    class Miscounts(Sound):
        name = "miscounts"
        Config = type("Config", (Sound.Config,), {member: lambda *_, **__: 7})

    assert f"{member} declares 7" in refusal(Miscounts)


def test_a_mixer_without_finite_numbers_is_at_fault_itself() -> None:
    class Nan(Sound):
        name = "nan"
        Config = type("Config", (Sound.Config,), {})

        def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
            return super().mix(x_BTD, state, span) / 0 * 0

    assert "mixer nan" in refusal(Nan)
    assert "the mixer is at fault" in refusal(Nan)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    class Sharp(Sound):
        name = "sharp"
        Config = type("Config", (Sound.Config,), {})

        def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
            return super().mix(x_BTD, state, span) + (x_BTD - x_BTD).abs().sqrt()

    assert "the gradient of x_BTD is not finite" in refusal(Sharp)


@pytest.mark.parametrize("raised", [SystemExit(3), RuntimeError("boom")])
def test_code_that_raises_or_ends_the_process_keeps_its_name_and_line(
    raised: BaseException,
) -> None:
    class Raises(Sound):
        name = "raises"
        Config = type("Config", (Sound.Config,), {})

        def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
            raise raised

    line = Raises.mix.__code__.co_firstlineno + 1
    assert refusal(Raises).endswith(f"{raised!r} in test_checks.py, line {line}")


def test_the_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    checks._check.cache_clear()
    checks.check(Sound.Config(), WIDTH)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["mixers", "channel_mixers"])
def test_every_mixer_of_the_library_passes_at_the_width_of_a_proxy(kind: str) -> None:
    for name in registry.shipped(kind):
        checks.check(registry.get(kind, name).Config(), 128)


def test_a_mixer_that_reads_the_embedding_too_passes() -> None:
    gqa = registry.get("mixers", "gqa").Config
    checks.check(gqa(head_dim=16, beside_embedding=True, adapter_rank=4), WIDTH)
