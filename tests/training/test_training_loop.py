import math

import pytest
import torch

from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.training import checkpoint as checkpoints
from archloop.training.batch import Batch, next_token_loss
from archloop.training.loop import TrainingConfig, train

MOE = ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2, "expansion": 0.5})
SWIGLU = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
SPEC = StackSpec(
    d_model=32,
    vocab_size=20,
    blocks=(
        BlockSpec(mixers=(MixerSpec(name="short_conv"),), channel_mixer=SWIGLU),
        BlockSpec(mixers=(MixerSpec(name="gqa", config={"head_dim": 16}),), channel_mixer=MOE),
    ),
)


def build(seed=0):
    torch.manual_seed(seed)
    return Decoder(SPEC)


def batches(step):
    """Counting modulo 20, which a decoder learns at once, and a masked second batch."""
    rng = torch.Generator().manual_seed(step)
    ids = (torch.randint(20, (8, 1), generator=rng) + torch.arange(17)) % 20
    masked = ids[:4, 1:9].clone()
    masked[:, ::2] = -100
    return [Batch(ids[:, :-1], ids[:, 1:]), Batch(ids[:4, :8], masked, 0.5)]


def config(**settings):
    defaults = {"num_steps": 30, "warmup_steps": 3, "learning_rate": 1e-2, "base_width": None}
    return TrainingConfig(**{**defaults, **settings})


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_learns(optimizer):
    result = train(build(), batches, config(optimizer=optimizer, num_steps=60), 0)
    assert result.losses[0][1] == pytest.approx(1.5 * math.log(20), rel=0.1)
    assert result.losses[-1][1] < 0.3
    assert result.num_tokens == 60 * (8 * 16 + 4 * 8)
    assert [step for step, _ in result.losses] == list(range(60))
    assert not result.diverged


def test_bfloat16_rounds_products_and_keeps_weights():
    model, exact = build(), build()
    rounded = train(model, batches, config(precision="bfloat16"), 0)
    found = [loss for _, loss in rounded.losses]
    expected = [loss for _, loss in train(exact, batches, config(), 0).losses]
    assert found != expected
    assert found[:10] == pytest.approx(expected[:10], rel=0.02)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_same_arguments_give_the_same_weights(optimizer):
    first, second = build(), build()
    one = train(first, batches, config(optimizer=optimizer), 0)
    torch.randn(7)  # what others draw does not matter
    two = train(second, batches, config(optimizer=optimizer), 0)
    assert one.losses == two.losses
    assert_equal(weights(first), weights(second))


def test_random_state_and_determinism_are_left_as_they_were():
    torch.manual_seed(5)
    model = build(5)
    expected = torch.random.get_rng_state()
    train(model, batches, config(num_steps=2), 0)
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_loss_is_the_mean_over_asked_positions():
    model = build()
    batch = batches(0)[1]
    logits = model(batch.ids_BT)
    by_hand = [
        -logits[row, column].log_softmax(0)[batch.targets_BT[row, column]].item()
        for row in range(4)
        for column in range(8)
        if batch.targets_BT[row, column] >= 0
    ]
    expected = sum(by_hand) / len(by_hand)
    assert next_token_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_a_step_is_one_step_on_the_weighted_sum():
    model, reference = build(), build()
    settings = config(num_steps=1, warmup_steps=0, weight_decay=0.0, grad_clip=None)
    train(model, batches, settings, 0)
    loss = sum(next_token_loss(reference, b) * b.weight for b in batches(0))
    optimiser = torch.optim.AdamW(reference.parameters(), 1e-2, (0.9, 0.95), weight_decay=0.0)
    loss.backward()
    optimiser.step()
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, msg=name)


def test_gradients_from_before_a_training_are_no_part_of_it_and_none_are_left():
    fresh, used = build(), build()
    next_token_loss(used.eval(), batches(7)[0]).backward()
    for model in (fresh, used):
        train(model, batches, config(num_steps=3), 0)
    assert_equal(weights(fresh), weights(used))

    def broken(decoder, batch):
        return next_token_loss(decoder, batch) * float("nan")

    assert train(used, batches, config(num_steps=3), 0, loss=broken).diverged
    assert all(parameter.grad is None for parameter in used.parameters())


class TestDivergence:
    def test_a_loss_that_is_not_finite_ends_the_training(self):
        model = build()

        def poisoned(step):
            if step == 5:
                with torch.no_grad():
                    model.norm.weight.fill_(float("nan"))
            return batches(step)

        result = train(model, poisoned, config(), 0)
        assert result.diverged
        assert len(result.losses) == 6
        assert math.isnan(result.losses[-1][1])

    def test_a_gradient_that_is_not_finite_makes_no_update(self):
        model = build()
        model.norm.weight.register_hook(lambda grad: grad * float("inf"))
        before = weights(model)
        result = train(model, batches, config(), 0)
        assert result.diverged
        assert len(result.losses) == 1
        after = weights(model)
        parameters = dict(model.named_parameters())
        assert all(torch.equal(before[name], after[name]) for name in parameters)

    def test_a_loss_that_is_not_finite_makes_no_update_whatever_its_gradients(self):
        model = build()
        before = weights(model)

        def overflowing(decoder, batch):
            return next_token_loss(decoder, batch) + float("inf")

        result = train(model, batches, config(), 0, loss=overflowing)
        assert result.diverged
        assert len(result.losses) == 1
        assert_equal(before, weights(model))

    def test_an_absurd_rate_is_flagged_or_finite(self):
        result = train(build(), batches, config(learning_rate=1e30, grad_clip=None), 0)
        assert result.diverged


def test_expert_bias_moves_each_step():
    model = build()
    moe = model.blocks[1].channel_mixer
    train(model, batches, config(num_steps=3), 0)
    assert moe.expert_bias.abs().max() > 0
    assert moe.expert_bias.abs().max() <= 3 * moe.config.bias_update_rate + 1e-9
    assert moe.loads.sum() == 0


def test_on_step_sees_each_step_and_may_end_the_training():
    seen = []

    def on_step(step, loss):
        seen.append(step)
        return step == 4

    result = train(build(), batches, config(), 0, on_step)
    assert seen == [0, 1, 2, 3, 4]
    assert len(result.losses) == 5
    assert not result.diverged


class TestContinuing:
    @pytest.mark.parametrize("optimizer", ["adamw", "muon"])
    @pytest.mark.parametrize("on_disk", [False, True])
    def test_equals_an_uninterrupted_training(self, tmp_path, optimizer, on_disk):
        settings = {"schedule": "wsd", "optimizer": optimizer}
        whole = build()
        train(whole, batches, config(**settings, num_steps=40), 0)
        short = train(build(), batches, config(**settings, num_steps=20), 0)
        start = short.checkpoint
        assert start is not None
        assert start.step == 16
        if on_disk:
            checkpoints.write(start, tmp_path / "a.safetensors")
            start = checkpoints.read(tmp_path / "a.safetensors")
        resumed = build(99)
        result = train(resumed, batches, config(**settings, num_steps=40), 0, start=start)
        assert result.losses[0][0] == 16
        assert result.num_tokens == 40 * (8 * 16 + 4 * 8)
        assert_equal(weights(whole), weights(resumed))

    def test_cosine_cannot(self):
        start = train(build(), batches, config(schedule="wsd"), 0).checkpoint
        assert train(build(), batches, config(), 0).checkpoint is None
        with pytest.raises(ValueError, match="cosine"):
            train(build(), batches, config(), 0, start=start)

    def test_beyond_the_stable_part_is_refused(self):
        start = train(build(), batches, config(schedule="wsd"), 0).checkpoint
        with pytest.raises(ValueError, match="more steps"):
            train(build(), batches, config(schedule="wsd", num_steps=20), 0, start=start)

    def test_another_model_is_refused(self):
        start = train(build(), batches, config(schedule="wsd"), 0).checkpoint
        other = Decoder(SPEC.replace(vocab_size=21))
        with pytest.raises(ValueError, match="another model"):
            train(other, batches, config(schedule="wsd", num_steps=60), 0, start=start)

    def test_damaged_files_are_refused(self, tmp_path):
        file = tmp_path / "a.safetensors"
        for content in (None, b"", b"nonsense" * 10):
            if content is not None:
                file.write_bytes(content)
            with pytest.raises(ValueError, match=r"a\.safetensors"):
                checkpoints.read(file)
        start = train(build(), batches, config(schedule="wsd", num_steps=5), 0).checkpoint
        checkpoints.write(start, file)
        file.write_bytes(file.read_bytes()[:-50])
        with pytest.raises(ValueError, match="train from the start"):
            checkpoints.read(file)
