"""Exports on a card on which nobody measures: where there is one, and what of a failure comes."""

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from archloop.devices import host
from archloop.devices.base import Accelerator
from archloop.devices.lease import LeaseCancelledError, lease
from archloop.profiling.config import ProfileConfig
from archloop.profiling.nursery import Nursery
from archloop.profiling.target import Target
from archloop.search import ahead
from archloop.search.ahead import Ahead
from archloop.workers.cancelling import cancelled_by
from archloop.workers.deaths import WorkerError
from profiling.samples import SPEC

CONFIG = ProfileConfig.model_validate({})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """On which cards artifacts were made; the machine seems to have three, one of another kind."""
    cards: list[Any] = []

    def prepare(*_: object, made: Path, device: host.Host, **__: object) -> None:
        cards.append(device.config.gpu)
        (made / "artifact").touch()

    found = tuple(Accelerator(name=name, memory_bytes=2**36) for name in ("one", "one", "other"))
    monkeypatch.setattr(host, "_cards", lambda: found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("ARCHLOOP_LEASES", str(tmp_path / "leases"))
    monkeypatch.setattr(ahead, "prepare", prepare)
    return cards


def on_card(index: int, runtime: str = "torch_cuda") -> Target:
    return Target.model_validate({"runtime": runtime, "device": {"name": "host", "gpu": index}})


def maker(folder: Path, targets: dict[str, Target], *places: str) -> Ahead:
    return Ahead(targets, places, Nursery(), 1, folder / "ahead")


def test_an_artifact_is_made_where_others_train_and_goes_with_its_measurement(
    tmp_path: Path, made: list[Any]
) -> None:
    found = maker(tmp_path, {"card": on_card(0), "host": Target()}, "cuda:0", "cuda:1")
    with found.made("card", SPEC, CONFIG, tmp_path) as folder:
        assert folder is not None
        assert (folder / "artifact").exists()
    assert made == [1]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("targets", "places"),
    [
        ({"card": on_card(0)}, ["cuda:0"]),
        ({"card": on_card(0)}, ["cpu"]),
        ({"card": on_card(0)}, ["cuda:2"]),
        ({"card": on_card(0)}, ["cuda:7"]),
        ({"card": on_card(0), "second": on_card(1)}, ["cuda:0", "cuda:1"]),
        ({"card": on_card(0, "torch_eager")}, ["cuda:1"]),
    ],
    ids=[
        "its own card",
        "no card",
        "another kind",
        "no such card",
        "another target's",
        "not on the card",
    ],
)
def test_elsewhere_a_measurement_exports_for_itself(
    targets: dict[str, Target], places: list[str], tmp_path: Path, made: list[Any]
) -> None:
    with maker(tmp_path, targets, *places).made("card", SPEC, CONFIG, tmp_path) as folder:
        assert folder is None
    assert made == []


def test_who_measures_on_the_other_card_is_not_waited_for(tmp_path: Path, made: list[Any]) -> None:
    with (
        lease("host card 1", alone=True),
        maker(tmp_path, {"card": on_card(0)}, "cuda:1").made(
            "card", SPEC, CONFIG, tmp_path
        ) as folder,
    ):
        assert folder is not None
    assert made == []


def test_a_stack_that_needs_much_of_the_card_is_exported_alone(
    tmp_path: Path, made: list[Any]
) -> None:
    large = SPEC.replace(d_model=8192, vocab_size=2**18)
    with maker(tmp_path, {"card": on_card(0)}, "cuda:1").made(
        "card", large, CONFIG, tmp_path
    ) as folder:
        assert folder is None


def test_what_fails_beside_trainings_is_tried_again_alone(
    tmp_path: Path, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def full(*_: object, **__: object) -> None:
        asked.append(None)
        raise WorkerError("memory", "no room beside trainings", "candidate")

    monkeypatch.setattr(ahead, "prepare", full)
    found = maker(tmp_path, {"card": on_card(0)}, "cuda:1")
    for _ in range(2):
        with ExitStack() as stack:
            with pytest.warns(UserWarning, match="no room beside trainings"):
                folder = stack.enter_context(found.made("card", SPEC, CONFIG, tmp_path))
            assert folder is not None
            assert [file for file in folder.iterdir() if file.name[0] != "."] == []
    # What fails again and again is left to the measurements.
    with found.made("card", SPEC, CONFIG, tmp_path) as folder:
        assert folder is None
    assert len(asked) == 2


def test_what_no_card_can_export_is_said_at_once(
    tmp_path: Path, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise WorkerError("unsupported", "logits lie too far apart", "candidate")

    monkeypatch.setattr(ahead, "prepare", refused)
    found = maker(tmp_path, {"card": on_card(0)}, "cuda:1").made("card", SPEC, CONFIG, tmp_path)
    with pytest.raises(WorkerError, match="too far apart"), found:
        pass


def test_a_turn_to_export_is_waited_for_and_can_be_given_up(
    tmp_path: Path, made: list[Any]
) -> None:
    found, stop = maker(tmp_path, {"card": on_card(0)}, "cuda:1"), threading.Event()
    with found._turn(), found._turn():
        stop.set()
        with (
            cancelled_by(stop),
            pytest.raises(LeaseCancelledError),
            found.made("card", SPEC, CONFIG, tmp_path),
        ):
            pass
    assert made == []
