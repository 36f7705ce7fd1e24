"""Several processes train one model as one process does with the whole batch."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from archloop.errors import UserError
from archloop.training.ranks import Ranks, together
from archloop.training.ship import Shipped, ShipRun, train_on_several, train_to_ship
from training.test_ship import SPEC, TEXT, run_of

CPUS = [torch.device("cpu")] * 2


class Quiet(NamedTuple):
    """Told of steps in another process; stops there at one."""

    stop: int = -1

    def __call__(self, step: int, loss: float, speed: float) -> None:
        if step == self.stop:
            raise UserError("stopped on the way")


class Kept(NamedTuple):
    """The work of one of several processes, which keeps its state at every step."""

    run: ShipRun
    folder: Path
    stop: int

    def __call__(self, ranks: Ranks, device: torch.device) -> None:
        train_to_ship(
            self.run,
            TEXT,
            self.folder / "work",
            self.folder / "model",
            device=device,
            on_step=Quiet(self.stop),
            save_every_s=0.0,
            ranks=ranks,
        )


def alone(folder: Path, run: ShipRun) -> Shipped:
    device = torch.device("cpu")
    return train_to_ship(run, TEXT, folder / "work", folder / "model", device=device)


def both(folder: Path, run: ShipRun, **options: Any) -> Shipped:
    return train_on_several(
        run, TEXT, folder / "work", folder / "model", CPUS, options.get("on_step", Quiet())
    )


def same(one: Shipped, other: Shipped, tolerance: float) -> None:
    pairs = zip(one.decoder.named_parameters(), other.decoder.parameters(), strict=True)
    for (name, mine), yours in pairs:
        torch.testing.assert_close(mine, yours, rtol=0, atol=tolerance, msg=name)


@pytest.mark.ci
def test_two_processes_killed_and_gone_on_with_give_the_weights_of_one(tmp_path: Path) -> None:
    run = run_of(training={"batch_size": 4, "num_steps": 8})
    single = alone(tmp_path / "one", run)
    with pytest.raises(UserError, match="stopped on the way"):
        together(Kept(run, tmp_path / "two", 5), CPUS)
    assert (tmp_path / "two" / "work" / "state.safetensors").exists()
    assert not (tmp_path / "two" / "model").exists()
    # Sums in another order: rounding. (Muon rounds its products to bfloat16, so there it is 4e-4.)
    same(both(tmp_path / "two", run), single, 1e-6)
    again = both(tmp_path / "two", run, on_step=Quiet(0))
    assert again.run == run


@pytest.mark.ci
def test_experts_are_balanced_by_the_loads_of_all(tmp_path: Path) -> None:
    experts = {"name": "moe", "config": {"num_experts": 4, "top_k": 2}}
    blocks = tuple(
        block.model_copy(update={"channel_mixer": type(block.channel_mixer)(**experts)})
        for block in SPEC.blocks
    )
    spec = SPEC.model_copy(update={"blocks": blocks})
    run = run_of(spec=spec, training={"batch_size": 4, "num_steps": 3})
    single, shared = alone(tmp_path / "one", run), both(tmp_path / "two", run)
    same(shared, single, 1e-6)
    biases = [
        {n: b for n, b in each.decoder.named_buffers() if "bias" in n} for each in (single, shared)
    ]
    assert biases[0]
    for name, bias in biases[0].items():
        assert torch.equal(bias, biases[1][name])


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not divide among 2"):
        both(tmp_path, run_of(training={"batch_size": 3}))
