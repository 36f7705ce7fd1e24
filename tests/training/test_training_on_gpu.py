"""Trainings on a GPU: as on the CPU, the same each time, continued bit by bit, never waiting."""

import copy
import math

import pytest
import torch
from torch import nn

from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.training import card, loop
from archloop.training import checkpoint as checkpoints
from archloop.training.batch import Batch
from archloop.training.loop import TrainingConfig, TrainingResult, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CHANNEL = {
    "swiglu": ChannelMixerSpec(name="swiglu", config={"expansion": 2.0}),
    "moe": ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2, "expansion": 0.5}),
}


def stack(*blocks: tuple[str, str]) -> StackSpec:
    return StackSpec(
        d_model=128,
        vocab_size=20,
        blocks=tuple(
            BlockSpec(mixers=(MixerSpec(name=mixer),), channel_mixer=CHANNEL[channel])
            for mixer, channel in blocks
        ),
    )


DENSE = stack(("short_conv", "swiglu"), ("gqa", "swiglu"), ("kda", "swiglu"), ("mamba2", "swiglu"))
SPARSE = stack(("short_conv", "swiglu"), ("gqa", "moe"))


def build(spec: StackSpec = DENSE, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(spec).cuda()


def batches(step: int) -> list[Batch]:
    """Counting modulo 20, and a second, masked batch of another length on every other step."""
    rng = torch.Generator().manual_seed(step)
    ids_BT = (torch.randint(20, (8, 1), generator=rng) + torch.arange(65)) % 20
    masked_BT = ids_BT[:4, 1:33].clone()
    masked_BT[:, ::2] = -100
    drawn = [Batch(ids_BT[:, :-1], ids_BT[:, 1:])]
    return drawn + [Batch(ids_BT[:4, :32], masked_BT, 0.5)] * (step % 2)


def config(**settings: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"num_steps": 30, "warmup_steps": 3, **settings})


def losses(result: TrainingResult) -> list[float]:
    return [loss for _, loss in result.losses]


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    for (name, one), two in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("spec", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_learns_as_on_the_cpu(spec: StackSpec, optimizer: str) -> None:
    there, here = build(spec), build(spec).cpu()
    one = train(there, batches, config(optimizer=optimizer), 0)
    two = train(here, batches, config(optimizer=optimizer), 0)
    assert one.num_tokens == two.num_tokens == 30 * 8 * 64 + 15 * 4 * 32
    assert losses(one)[-2] < 0.5 * losses(one)[0]
    assert losses(one) == pytest.approx(losses(two), rel=2e-2)
    assert losses(one)[:5] == pytest.approx(losses(two)[:5], rel=1e-3)


def test_compiling_ahead_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = build()
    second = copy.deepcopy(first)
    one = train(first, batches, config(), 0)
    monkeypatch.setattr(loop, "compile_ahead", lambda run: None)
    two = train(second, batches, config(), 0)
    assert losses(one) == pytest.approx(losses(two), 1e-3)


def test_bfloat16_learns_like_float32() -> None:
    found = [
        losses(train(build(), batches, config(precision=p), 0)) for p in ("float32", "bfloat16")
    ]
    assert found[0] != found[1]
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_the_same_arguments_give_the_same_weights(spec: StackSpec, precision: str) -> None:
    first, second = build(spec), build(spec)
    one = train(first, batches, config(precision=precision), 0)
    two = train(second, batches, config(precision=precision), 0, wait_every=7)
    assert losses(one) == losses(two)
    assert_equal(first, second)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_continued_training_equals_an_uninterrupted_one(tmp_path, optimizer: str) -> None:
    settings = {"schedule": "wsd", "optimizer": optimizer, "precision": "bfloat16"}
    whole, resumed = build(), build(seed=99)
    train(whole, batches, config(**settings, num_steps=40), 0)
    start = train(build(), batches, config(**settings, num_steps=20), 0).checkpoint
    assert start is not None
    assert start.step == 16
    checkpoints.write(start, tmp_path / "a.safetensors")
    start = checkpoints.read(tmp_path / "a.safetensors")
    result = train(resumed, batches, config(**settings, num_steps=40), 0, start=start)
    assert result.losses[0][0] == 16
    assert_equal(whole, resumed)


def test_a_gradient_that_is_not_finite_ends_the_training_where_it_was() -> None:
    model = build()
    before = copy.deepcopy(model)

    def poisoned(step: int) -> list[Batch]:
        drawn = batches(0)
        return drawn if step < 5 else [drawn[0]._replace(weight=float("inf"))]

    settings = {"schedule": "wsd", "decay_share": 0.01}
    expected = train(before, lambda step: batches(0), config(**settings, num_steps=5), 0)
    result = train(model, poisoned, config(**settings), 0)
    assert result.diverged
    assert not expected.diverged
    assert [step for step, _ in result.losses] == list(range(6))
    assert math.isnan(losses(result)[-1])
    assert_equal(model, before)


def test_steps_of_known_shapes_are_graphs_and_wait_for_nothing() -> None:
    waited: list[str] = []
    sent = card.CardSteps.take

    def watched(self: card.CardSteps, step: int) -> None:
        with card._noticing_waits() as waits:
            sent(self, step)
        # The first step of each shape is written out, the second captured.
        waited.extend(waits if step >= 4 else [])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card.CardSteps, "take", watched)
        train(build(), batches, config(num_steps=16), 0)
    assert not waited


def test_on_step_is_told_of_all_steps_in_groups() -> None:
    model, seen = build(), []
    weights: list[float] = []

    def on_step(step: int, loss: float) -> bool:
        seen.append(step)
        weights.append(float(model.norm.weight.sum()))
        return step == 11

    result = train(model, batches, config(), 0, on_step, wait_every=6)
    assert seen == list(range(12))
    assert len(result.losses) == 12
    assert len(set(weights)) == 2  # the model as it was after steps 6 and 12
