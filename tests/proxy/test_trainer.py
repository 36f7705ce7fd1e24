"""A process that trains one job after another: each as in a new process, whatever came before."""

import os
import signal
from pathlib import Path

import pytest

from archloop import registry
from archloop.devices.host import Host
from archloop.proxy.trainer import LOG, Trainer
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers.deaths import WorkerError
from proxy.test_proxy_worker import job, root  # noqa: F401  (a fixture)

PLUGIN = """
import os, signal
from pathlib import Path
import torch
from archloop.blocks.mixers.short_conv import ShortConv

class Restless(ShortConv):
    class Config(ShortConv.Config):
        pass

    def mix(self, *given, **named):
        here = Path(__file__).parent
        if (here / "die").exists() and self.training:
            (here / "die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if (here / "raise").exists():
            raise RuntimeError("a fault of the mixer")
        if (here / "change").exists():
            torch.set_float32_matmul_precision("medium")
        return super().mix(*given, **named)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_folders", {})
    folder = tmp_path / "plugins" / "mixers"
    folder.mkdir(parents=True)
    (folder / "restless.py").write_text(PLUGIN)
    registry.add_folder(folder.parent)
    return folder


@pytest.fixture
def pids(monkeypatch):
    """Of the processes started on this host."""
    found, run = [], Host.run

    def noted(self, argv, *, env, stderr):
        process = run(self, argv, env=env, stderr=stderr)
        found.append(process.pid)
        return process

    monkeypatch.setattr(Host, "run", noted)
    return found


def stack(*mixers: str, channel_mixer: str = "swiglu") -> StackSpec:
    blocks = tuple(
        BlockSpec(
            mixers=(MixerSpec(name=name),), channel_mixer=ChannelMixerSpec(name=channel_mixer)
        )
        for name in mixers
    )
    return StackSpec(d_model=64, vocab_size=260, blocks=blocks)


def jobs(root):  # noqa: F811
    return [
        job(root, spec=stack("short_conv")),
        job(root, num_steps=4, spec=stack("gqa", "mamba2", channel_mixer="moe"), seed=7),
        job(root, spec=stack("gated_deltanet"), seed=2, learning_rate=1e-2),
        job(root, spec=stack("short_conv")),
    ]


def plain(result):
    return result.model_copy(update={"train_s": 0.0, "eval_s": 0.0})


def alone(asked, directory):
    with Trainer(60) as trainer:
        return plain(trainer.train(asked, directory))


@pytest.mark.ci
def test_bit_equal_to_new_processes_from_one_process(root, tmp_path, pids):  # noqa: F811
    with Trainer(60) as trainer:
        found = [
            plain(trainer.train(asked, tmp_path / str(index)))
            for index, asked in enumerate(jobs(root))
        ]
    assert len(pids) == 1
    assert found[3] == found[0]
    for index in (1, 2):
        assert found[index] == alone(jobs(root)[index], tmp_path / f"alone-{index}")
    assert len(pids) == 3


@pytest.mark.ci
def test_who_dies_of_old_age_leaves_its_job_to_a_new_process(root, tmp_path, plugin, pids):  # noqa: F811
    asked = job(root, spec=stack("restless"))
    with Trainer(60) as trainer:
        first = plain(trainer.train(asked, tmp_path / "0"))
        (plugin / "die").touch()
        assert plain(trainer.train(asked, tmp_path / "1")) == first
        assert len(pids) == 2
        # Killed while it had nothing to do, which nobody needs to know.
        os.kill(pids[-1], signal.SIGKILL)
        assert plain(trainer.train(asked, tmp_path / "2")) == first
        assert len(pids) == 3
    # What befalls a job in a new process is said of the job.
    (plugin / "die").touch()
    with Trainer(60) as trainer, pytest.raises(WorkerError) as caught:
        trainer.train(asked, tmp_path / "3")
    assert caught.value.cause in ("crash", "memory")
    assert len(pids) == 4
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.ci
def test_failed_jobs_and_changed_settings_end_the_process(root, tmp_path, plugin, pids):  # noqa: F811
    restless = job(root, spec=stack("restless"))
    with Trainer(60) as trainer:
        (plugin / "change").touch()
        trainer.train(restless, tmp_path / "changes")
        (plugin / "change").unlink()
        trainer.train(job(root), tmp_path / "good")
        assert len(pids) == 2
        (plugin / "raise").touch()
        with pytest.raises(WorkerError, match="a fault of the mixer"):
            trainer.train(restless, tmp_path / "bad")
    # The bad job failed once more in a process of its own, and that one is gone too.
    assert len(pids) == 3
    assert "a fault of the mixer" in (tmp_path / "bad" / LOG).read_text()
    assert not (tmp_path / "good" / LOG).exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


class Service:
    """Stands in for NVIDIA's: notes who joined it, and how it was asked."""

    env = {"CUDA_MPS_PIPE_DIRECTORY": "/joined"}  # noqa: RUF012

    def __init__(self):
        self.asked = []

    def check(self):
        self.asked.append("check")

    def part(self, pid):
        assert Path(f"/proc/{pid}").exists(), "it was killed before it parted"
        self.asked.append(pid)


def joined(pid: int) -> bool:
    return b"CUDA_MPS_PIPE_DIRECTORY=/joined" in Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.ci
def test_who_shares_a_card_says_so_and_parts_before_it_is_killed(root, tmp_path, pids):  # noqa: F811
    service = Service()
    with Trainer(60, mps=service) as trainer:
        first = trainer.train(job(root), tmp_path / "0")
        assert joined(pids[0])
        second = trainer.train(job(root, seed=1), tmp_path / "1")
        assert service.asked == []
    assert first.cuda_mps
    assert second.cuda_mps
    assert service.asked == pids
    with Trainer(60) as trainer:
        apart = trainer.train(job(root), tmp_path / "2")
        assert not joined(pids[-1])
    assert not apart.cuda_mps
    assert plain(apart).model_copy(update={"cuda_mps": True}) == plain(first)


@pytest.mark.ci
def test_what_befalls_a_job_beside_others_is_said_of_it_only_if_it_does_alone(
    root,  # noqa: F811
    tmp_path,
    plugin,
    pids,
):
    asked, service = job(root, spec=stack("restless")), Service()
    (plugin / "die").touch()
    with Trainer(60, mps=service) as trainer:
        # The first process was new: without a shared card its death would be the job's.
        assert not trainer.train(asked, tmp_path / "0").cuda_mps
        assert service.asked == ["check"]
        # The process that shared nothing was for that job alone.
        assert not Path(f"/proc/{pids[1]}").exists()
        assert trainer.train(job(root), tmp_path / "1").cuda_mps
        assert joined(pids[2])
        (plugin / "raise").touch()
        with pytest.raises(WorkerError, match="a fault of the mixer"):
            trainer.train(asked, tmp_path / "2")
