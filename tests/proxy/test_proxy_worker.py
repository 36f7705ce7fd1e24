import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archloop import registry
from archloop.proxy import mixture, proxy
from archloop.proxy.config import ProxyConfig
from archloop.proxy.record import TrainJob
from archloop.proxy.trainer import Trainer
from archloop.proxy.worker import Train
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers.deaths import WorkerError
from archloop.workers.process import WorkerProcess


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    lines = [f"entry {i} holds {i * i}\n" + "\n" * (i % 5 == 0) for i in range(6000)]
    (folder / "text.txt").write_text("".join(lines))
    return folder


def job(root, num_steps=3, **changes):
    config = ProxyConfig(
        corpus={"source": "files", "paths": ("text.txt",), "heldout_share": 0.3},
        vocab_size=260,
        num_text_windows=4,
        rungs=(num_steps,),
        training={"batch_size": 2, "seq_len": 16},
    )
    block = BlockSpec(
        mixers=(MixerSpec(name="short_conv"),), channel_mixer=ChannelMixerSpec(name="swiglu")
    )
    spec = StackSpec(d_model=32, vocab_size=260, blocks=(block,))
    fields = {"spec": spec, "num_steps": num_steps, "seed": 1, **changes}
    return Train(job=TrainJob(**fields), config=config, root=root, cache_dir=root / "c", threads=1)


def run_isolated(asked, directory, **limits):
    with Trainer(**({"time_limit_s": 60} | limits)) as trainer:
        return trainer.train(asked, directory)


def failure(job_, directory, **limits):
    with pytest.raises(WorkerError) as caught:
        run_isolated(job_, directory, **limits)
    return caught.value


def test_equals_the_same_training_in_this_process_and_is_kept(root, tmp_path, monkeypatch):
    asked = job(root)
    result = run_isolated(asked, tmp_path)
    data = mixture.prepare(asked.config, root / "c", root)
    here = proxy.train_and_score(asked.job, data, asked.config)
    assert result.scores.keys() == here.scores.keys()
    assert result.scores["bits_per_byte"].value == pytest.approx(
        here.scores["bits_per_byte"].value, rel=1e-5
    )

    def not_again(*args, **kwargs):
        raise AssertionError("started a process")

    monkeypatch.setattr(subprocess, "Popen", not_again)
    assert run_isolated(asked, tmp_path) == result
    with pytest.raises(AssertionError, match="started"):
        run_isolated(job(root, seed=2), tmp_path)


@pytest.mark.ci
def test_a_worker_knows_the_plugins_and_no_stray_modules(root, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_folders", {})
    (tmp_path / "mixers").mkdir()
    (tmp_path / "mixers" / "mine.py").write_text(
        "from archloop.blocks.mixers.short_conv import ShortConv\n\n"
        "class Mine(ShortConv):\n    class Config(ShortConv.Config):\n        pass\n"
    )
    (tmp_path / "random.py").write_text("raise RuntimeError('a stray module')\n")
    monkeypatch.chdir(tmp_path)
    registry.add_folder(tmp_path)
    spec = job(root).job.spec
    block = spec.blocks[0].model_copy(update={"mixers": (MixerSpec(name="mine"),)})
    asked = job(root, num_steps=1, spec=spec.replace(blocks=(block,)))
    assert run_isolated(asked, tmp_path / "job").scores


def test_a_hang_is_ended_and_the_whole_group_is_gone(root, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nsleep 300 & echo $! > {tmp_path}/child\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    began = time.monotonic()
    error = failure(job(root), tmp_path / "job", time_limit_s=1.0)
    assert (error.cause, time.monotonic() - began < 10) == ("timeout", True)
    assert_gone(int((tmp_path / "child").read_text()))


def test_an_interrupt_kills_the_group_too(root, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nsleep 300 & echo $! > {tmp_path}/child\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    def interrupted(*args):
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkerProcess, "_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_isolated(job(root), tmp_path / "job")
    assert_gone(int((tmp_path / "child").read_text()))


def assert_gone(pid):
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")


@pytest.mark.parametrize(
    "body, cause, words",
    [
        ("echo 'ValueError: no such thing' >&2; exit 1", "crash", "no such thing"),
        ("exit 0", "crash", "no message"),
        ("kill -SEGV $$", "crash", "SIGSEGV"),
        ("echo 'MemoryError: all gone' >&2; exit 3", "memory", "all gone"),
        ("read line; echo nonsense", "crash", "no answer to Hello but b'nonsense'"),
        (
            """read line; echo '{"ok": {"wire": 99, "abi": "x"}}'; cat""",
            "missing",
            "speaks version 99",
        ),
    ],
    ids=["error", "no result", "segfault", "out of memory", "no answer", "another version"],
)
def test_ends_without_a_result(root, tmp_path, monkeypatch, body, cause, words):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    error = failure(job(root), tmp_path / "job")
    assert error.cause == cause
    assert words in error.detail


def test_a_spec_that_cannot_be_built_is_a_crash_with_its_reason(root, tmp_path):
    bad = job(root)
    spec = bad.job.spec.replace(vocab_size=300)
    bad = bad.model_copy(update={"job": bad.job.model_copy(update={"spec": spec})})
    error = failure(bad, tmp_path)
    assert error.cause == "crash"
    assert "260" in error.detail


@pytest.mark.ci
def test_memory_limit(root, tmp_path):
    asked = job(root, num_steps=100_000)
    wide = asked.config.training.model_copy(update={"batch_size": 4096, "seq_len": 1024})
    asked = asked.model_copy(update={"config": asked.config.model_copy(update={"training": wide})})
    error = failure(asked, tmp_path, memory_limit_bytes=2**30)
    assert error.cause == "memory"


def test_a_full_disk_is_not_the_trials_fault(root, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        """#!/bin/sh\nread line; echo '{"error": {"cause": "disk", "detail": "it is full"}}'\n"""
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(OSError, match="No space left"):
        run_isolated(job(root), tmp_path / "job")


@pytest.mark.ci
def test_a_worker_ends_when_its_parent_is_killed(root, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from archloop.proxy.trainer import Trainer; from archloop.proxy.worker import Train\n"
        "job = Train.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "Trainer(300).train(job, Path(sys.argv[2]))"
    )
    (tmp_path / "asked.json").write_text(job(root, num_steps=10_000_000).model_dump_json())
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "asked.json"), str(tmp_path / "job")]
    )
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while not (found := children.read_text().split()):
        assert parent.poll() is None
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{found[0]}").exists():
        if Path(f"/proc/{found[0]}/stat").read_text().split()[2] == "Z":
            break
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.1)
