"""Training to ship: killed and gone on with, the same weights; what it leaves is a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archloop.checkpoints.saving import save
from archloop.errors import UserError
from archloop.generation.model import load_model
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.text import tokenizers
from archloop.text.encoded import Encoded
from archloop.training import ship
from archloop.training.ship import CHAT_MARKS, Shipped, ShipRun, train_on_several, train_to_ship

TOKENIZER = tokenizers.train(["the end of the text " * 200], 264, CHAT_MARKS)
TEXT = Encoded(
    TOKENIZER.encode_documents(["the end of the text " * 200] * 4), np.empty(0, np.int32)
)
SPEC = StackSpec(
    d_model=32,
    vocab_size=264,
    blocks=tuple(
        BlockSpec(mixers=(MixerSpec(name=name),), channel_mixer=ChannelMixerSpec(name="swiglu"))
        for name in ("short_conv", "mamba2")
    ),
)


def run_of(**changes: Any) -> ShipRun:
    training = {"num_steps": 12, "batch_size": 2, "seq_len": 16, "schedule": "cosine"}
    training |= changes.pop("training", {})
    fields = {"spec": SPEC, "seed": 3, "corpus": "some text", "tokenizer": TOKENIZER.to_json()}
    return ShipRun.model_validate({**fields, "training": training, **changes})


def go(folder: Path, run: ShipRun, **options: Any) -> Shipped:
    device = torch.device("cpu")
    return train_to_ship(run, TEXT, folder / "work", folder / "model", device=device, **options)


def both(folder: Path, run: ShipRun) -> Shipped:
    cpus = [torch.device("cpu")] * 2
    return train_on_several(run, TEXT, folder / "work", folder / "model", cpus, lambda *_: None)


def killed_at_once(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_and_gone_on_with_it_gives_the_same_weights(tmp_path: Path, optimizer: str) -> None:
    run = run_of(training={"optimizer": optimizer})
    whole = go(tmp_path / "whole", run)

    def killed(step: int, *_: float) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "killed", run, on_step=killed, save_every_s=0)
    assert not (tmp_path / "killed" / "model").exists()
    seen: list[int] = []
    resumed = go(tmp_path / "killed", run, on_step=lambda step, *_: seen.append(step))
    assert seen[0] == 7
    for one, other in zip(whole.decoder.parameters(), resumed.decoder.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not (tmp_path / "killed" / "work" / "state.safetensors").exists()


def test_it_leaves_a_checkpoint_that_speaks_and_chats(tmp_path: Path) -> None:
    shipped = go(tmp_path, run_of())
    model = load_model(tmp_path / "model")
    assert torch.equal(model.decoder.embedding.weight, shipped.decoder.embedding.weight)
    assert model.stop_ids == (TOKENIZER.end_of_text,)
    ids = model.encode_chat([{"role": "user", "content": "the end"}])
    start = model.tokenizer.token_to_id(CHAT_MARKS[0])  # type: ignore[union-attr]
    assert ids.count(start) == 2
    assert model.decode(ids, special_tokens=True).endswith("<|im_start|>assistant\n")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = go(tmp_path, run_of())
    again = go(tmp_path, run_of(), on_step=lambda *_: pytest.fail("trained again"))
    assert again.run == first.run
    with pytest.raises(UserError, match="another seed"):
        go(tmp_path, run_of(seed=4))


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, run_of(), on_step=killed_at_once)
    with pytest.raises(UserError, match="another training"):
        go(tmp_path, run_of(training={"learning_rate": 1e-4}))


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ("a file", "is a file"),
        ("notes", "is not a checkpoint"),
        ("a checkpoint", "archloop train did not leave"),
    ],
)
def test_a_place_that_takes_no_checkpoint_is_refused_before_the_training(
    tmp_path: Path, held: str, words: str
) -> None:
    output = tmp_path / "model"
    if held == "a file":
        output.write_text("mine")
    elif held == "notes":
        output.mkdir()
        (output / "notes.txt").write_text("mine")
    else:
        save(Decoder(SPEC), output, "archloop")
    with pytest.raises(UserError, match=words):
        go(tmp_path, run_of(), on_step=lambda *_: pytest.fail("trained"))
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=words):
        train_on_several(
            run_of(), TEXT, tmp_path / "work", output, [cpu, cpu], lambda *_: pytest.fail("trained")
        )
    assert not (tmp_path / "work").exists()


def test_killed_while_it_left_its_checkpoint_it_is_left_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ship, "_write_text_files", killed_at_once)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, run_of())
    assert not (tmp_path / "model" / ship.RECORD).exists()
    go(tmp_path, run_of())
    assert (tmp_path / "model" / ship.RECORD).exists()


@pytest.mark.parametrize("go_on", [go, both])
def test_killed_while_its_state_went_it_goes_with_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go_on: Callable[[Path, ShipRun], Shipped]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ship, "_clear", killed_at_once)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, run_of(), save_every_s=0)
    assert (tmp_path / "model" / ship.RECORD).exists()
    kept = tmp_path / "work" / "state.safetensors", tmp_path / "work" / ship.RUN
    assert all(file.exists() for file in kept)
    go_on(tmp_path, run_of())
    assert not any(file.exists() for file in kept)


def test_a_damaged_state_says_what_to_remove(tmp_path: Path) -> None:
    def killed(step: int, *_: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, run_of(), on_step=killed, save_every_s=0)
    (tmp_path / "work" / "state.safetensors").write_bytes(b"nonsense" * 10)
    with pytest.raises(UserError, match=r"remove \S+work to begin anew"):
        go(tmp_path, run_of())


def test_hours_become_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship, "_steps_within", lambda *_: 5)
    shipped = go(tmp_path, run_of(hours=0.5))
    assert (len(shipped.losses), shipped.run.training.num_steps) == (5, 5)
    monkeypatch.setattr(ship, "_steps_within", lambda *_: 50)
    assert go(tmp_path, run_of(hours=0.5)).run.training.num_steps == 5
    kept = json.loads((tmp_path / "model" / "training.json").read_text())
    assert kept["training"]["num_steps"] == 5


def test_a_time_has_room_for_some_steps(tmp_path: Path) -> None:
    found = ship._steps_within(run_of(hours=0.01), TEXT, torch.device("cpu"))
    assert 36 < found < 36_000


def test_losses_are_logged_for_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    go(tmp_path, run_of())
    events = accumulator.EventAccumulator(str(tmp_path / "work" / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(12))


def test_a_training_that_diverges_leaves_no_checkpoint(tmp_path: Path) -> None:
    wild = run_of(training={"learning_rate": 1e30, "grad_clip": None, "warmup_steps": 0})
    with pytest.raises(UserError, match="lower --learning-rate"):
        go(tmp_path, wild)
    assert not (tmp_path / "model").exists()


def test_steps_that_diverge_while_they_are_timed_are_no_run(tmp_path: Path) -> None:
    training = {"learning_rate": 1e30, "grad_clip": None, "warmup_steps": 0}
    with pytest.raises(UserError, match="lower --learning-rate"):
        go(tmp_path, run_of(training=training, hours=0.01))
    assert not (tmp_path / "work").exists()


def test_too_little_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few for seq_len=1000000"):
        go(tmp_path, run_of(training={"seq_len": 1_000_000, "batch_size": 1}))


def test_marks_of_a_chat_count_no_bytes_and_come_from_no_text() -> None:
    assert [TOKENIZER.num_bytes_V[i] for i in range(3)] == [0, 0, 0]
    ids = TOKENIZER.encode("<|im_start|>")
    assert not set(ids.tolist()) & {0, 1, 2}
