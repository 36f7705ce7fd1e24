import itertools
import math

import pytest

from archloop.training.loop import TrainingConfig
from archloop.training.schedule import decay_start


def factors(**settings):
    config = TrainingConfig(**settings)
    return [config.lr_factor(step) for step in range(config.num_steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_warmup_rises_linearly_to_the_peak(schedule):
    values = factors(schedule=schedule, num_steps=100, warmup_steps=9)
    assert values[:9] == pytest.approx([0.1 * i for i in range(1, 10)])
    assert values[9] == pytest.approx(1.0)
    assert max(values) <= 1.0


def test_cosine_shape():
    values = factors(num_steps=100, warmup_steps=0, final_factor=0.1)
    assert values[50] == pytest.approx(0.55)
    assert values[25] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert all(a > b for a, b in itertools.pairwise(values))


def test_wsd_is_flat_then_decays_to_near_the_floor():
    values = factors(schedule="wsd", num_steps=100, warmup_steps=10, decay_share=0.3)
    assert set(values[10:70]) == {1.0}
    assert all(a > b for a, b in itertools.pairwise(values[69:]))
    assert values[-1] == pytest.approx(1 - math.sqrt(30 / 31))


def test_wsd_of_a_longer_training_starts_the_same():
    short = factors(schedule="wsd", num_steps=100, warmup_steps=10)
    long = factors(schedule="wsd", num_steps=400, warmup_steps=10)
    stable = decay_start(100, 0.2)
    assert short[:stable] == long[:stable]
    assert TrainingConfig(schedule="wsd", num_steps=100).checkpoint_step == stable
    assert TrainingConfig(num_steps=100).checkpoint_step is None


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("num_steps, warmup", [(1, 0), (1, 20), (3, 20), (2, 2)])
def test_tiny_trainings_have_rates(schedule, num_steps, warmup):
    values = factors(schedule=schedule, num_steps=num_steps, warmup_steps=warmup)
    assert all(0 <= v <= 1 for v in values)
    assert values[0] > 0


@pytest.mark.parametrize(
    "settings",
    [{"num_steps": 0}, {"learning_rate": 0.0}, {"optimizer": "sgd"}, {"learn_rate": 1.0}],
)
def test_config_is_checked(settings):
    with pytest.raises(ValueError):
        TrainingConfig(**settings)
