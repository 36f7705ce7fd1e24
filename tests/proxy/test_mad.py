import numpy as np
import pytest
import torch

from archloop.proxy import mad
from archloop.proxy.autoencoder import AutoEncoder, reconstruction_loss, sine_positions
from archloop.proxy.mad import MadConfig, TrainingResult, mad_spec, plan, run_mad, summarise
from archloop.stack.decoder import Decoder
from archloop.training.batch import Batch

TINY = {
    "defaults_only": True,
    "learning_rates": (1e-3, 3e-3),
    "weight_decays": (0.0,),
    "num_epochs": 2,
    "batch_size": 16,
    "num_train": 40,
    "num_test": 24,
}


def test_parallel_mixers_stay_so_and_blocks_without_any_are_left_out():
    spec = mad_spec(["short_conv+gqa", "-", "gqa"])
    assert spec.layout == ["short_conv+gqa", "gqa"]
    assert [len(block.mixers) for block in spec.blocks] == [2, 1]
    Decoder(spec.replace(vocab_size=32))


def small_spec():
    return mad_spec(["short_conv", "gqa"]).replace(d_model=64)


def test_the_protocol_has_66_settings_and_396_trainings():
    runs = plan(MadConfig())
    assert len(runs) == 396
    by_task = {task: {r.setting for r in runs if r.task == task} for task in mad.CHANGES}
    assert {task: len(s) for task, s in by_task.items()} == {
        "in_context_recall": 11,
        "fuzzy_in_context_recall": 11,
        "noisy_in_context_recall": 14,
        "selective_copying": 13,
        "compression": 11,
        "memorization": 6,
    }


def test_every_setting_can_be_made():
    for run in plan(MadConfig(learning_rates=(1e-3,), weight_decays=(0.0,))):
        task = mad.make_task(run.task, run.settings)
        assert task.examples("test", 0, 2).ids_NT.shape[0] == 2


def test_the_quick_form_is_one_training_a_task():
    runs = plan(MadConfig.quick())
    assert [run.task for run in runs] == list(mad.CHANGES)
    for run in runs:
        assert mad.make_task(run.task, run.settings).examples("test", 0, 4).ids_NT.shape[1] <= 32


def test_unknown_task():
    with pytest.raises(ValueError, match="did you mean 'memorization'"):
        plan(MadConfig(tasks=("memorisation",)))


def test_runs_each_task_once_and_resumes(tmp_path, monkeypatch):
    config = MadConfig(tasks=("memorization", "compression"), **TINY)
    seen = []
    report = run_mad(
        small_spec(), config, tmp_path, on_run=lambda done, total, r: seen.append((done, total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert set(report.tasks) == {"memorization", "compression"}
    assert all(0 <= r.macro <= 1 and r.num_epochs == 2 for r in report.runs)
    # One damaged and one lost file are computed again, the others are not.
    files = sorted(tmp_path.rglob("*.json"))
    assert len(files) == 4
    files[0].write_text(files[0].read_text()[:20])
    files[1].unlink()
    calls = []
    original = mad.run_one
    monkeypatch.setattr(mad, "run_one", lambda *a: calls.append(a) or original(*a))
    again = run_mad(small_spec(), config, tmp_path)
    assert len(calls) == 2
    assert again.macro == report.macro


def test_nothing_is_trained_where_nothing_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(mad, "run_one", None)
    with pytest.raises(FileExistsError):
        run_mad(mad_spec(["gqa"]), MadConfig.quick(), tmp_path / "file")


def test_a_card_that_is_named_is_the_one_that_kernels_go_to(tmp_path, monkeypatch):
    """Triton launches on the current card, wherever the tensors are."""
    asked, original = [], mad.use_device
    monkeypatch.setattr(mad, "use_device", lambda name: asked.append(name) or original(name))
    settings = TINY | {"learning_rates": (1e-3,), "num_epochs": 1}
    run_mad(small_spec(), MadConfig(tasks=("memorization",), **settings), tmp_path, device="cpu")
    assert asked == ["cpu"]


def test_another_stack_is_another_result(tmp_path):
    config = MadConfig(tasks=("memorization",), **TINY)
    run_mad(small_spec(), config, tmp_path)
    run_mad(mad_spec(["short_conv"]).replace(d_model=64), config, tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 4


def test_stops_early_once_it_is_right(tmp_path):
    settings = TINY | {"num_epochs": 60, "learning_rates": (1e-2,)}
    settings |= {"num_train": 128, "batch_size": 64, "stop_accuracy": 0.2}
    config = MadConfig(tasks=("memorization",), **settings)
    (result,) = run_mad(small_spec(), config, tmp_path).runs
    assert result.macro >= 0.2
    assert result.num_epochs < 60


def result(task, macro, micro, rate=1e-3, **settings):
    return TrainingResult(
        task=task,
        settings=settings,
        learning_rate=rate,
        weight_decay=0.0,
        macro=macro,
        micro=micro,
        chance=0.1,
        num_epochs=1,
        num_tokens=1,
        diverged=False,
        seconds=0.0,
    )


def test_summary_is_best_of_sweep_then_mean_of_settings_then_of_tasks():
    report = summarise(
        [
            result("a", 0.2, 0.3),
            result("a", 0.4, 0.1, rate=2e-3),
            result("a", 0.6, 0.7, vocab_size=32),
            result("b", 0.9, 0.8),
        ]
    )
    assert report.tasks["a"].macro == pytest.approx(0.5)
    assert report.tasks["a"].micro == pytest.approx(0.4)
    assert report.tasks["a"].num_settings == 2
    assert report.macro == pytest.approx(0.7)
    assert report.micro == pytest.approx(0.6)


def test_each_epoch_sees_every_example_once_in_its_own_order():
    config = MadConfig(**TINY)
    train_set = mad.make_task("memorization", {"vocab_size": 64}).examples("train", 0, 40)
    epochs = [
        torch.cat([mad._batch(train_set, config, step, 3).ids_BT for step in range(e, e + 3)])
        for e in (0, 3)
    ]
    assert [len(rows) for rows in epochs] == [40, 40]
    assert not torch.equal(*epochs)
    expected = sorted(map(tuple, train_set.ids_NT.tolist()))
    assert all(sorted(map(tuple, rows.tolist())) == expected for rows in epochs)


class TestAutoEncoder:
    def test_sees_the_sequence_through_its_last_position_only(self):
        torch.manual_seed(0)
        decoder = Decoder(small_spec().replace(vocab_size=16))
        model = AutoEncoder(decoder)
        ids = torch.randint(16, (3, 12))
        logits = model(ids)
        assert logits.shape == (3, 12, 16)
        hidden = decoder.hidden(ids)[:, -1]
        by_hand = model.head(model.expand(hidden + sine_positions(12, 64)[4]))
        torch.testing.assert_close(logits[:, 4], by_hand)

    def test_every_trained_parameter_gets_a_gradient(self):
        model = AutoEncoder(Decoder(small_spec().replace(vocab_size=16)))
        ids = torch.randint(16, (3, 12))
        reconstruction_loss(model, Batch(ids, ids)).backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []

    def test_positions_differ(self):
        places = sine_positions(64, 16).numpy()
        distance = np.abs(places[:, None] - places[None]).max(-1) + np.eye(64)
        assert distance.min() > 0.01
