"""Measuring processes that are forked: measured alike, and started where forking fails."""

from pathlib import Path
from typing import Any

import pytest

from archloop.profiling import ProfileConfig, Target, profile
from archloop.profiling.nursery import Nursery
from archloop.profiling.samples import Samples, read_samples
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

BLOCK = BlockSpec(
    mixers=(MixerSpec(name="short_conv"),), channel_mixer=ChannelMixerSpec(name="swiglu")
)
SPEC = StackSpec(d_model=64, vocab_size=256, blocks=(BLOCK,))


def measured(directory: Path, **named: Any) -> Samples:
    config = ProfileConfig(processes=2, timed_steps=4, warmup_steps=1, ready_timeout_s=0, fork=True)
    profile(SPEC, Target(contexts=(64,), threads=1), config, directory=directory, **named)
    return read_samples(directory)


def test_forked_processes_of_two_measurements_come_from_one_server(tmp_path, monkeypatch):
    with Nursery() as nursery:
        for name in "ab":
            found = measured(tmp_path / name, nursery=nursery)
            assert [pair.forked for pair in found.pairs] == [True, True]
        # One has the runner, the other what exports.
        assert len(nursery._servers) == 2
        assert nursery.reasons == {}
        empty = found.pairs[0].candidate.engine_empty
        monkeypatch.setattr(TorchEager, "imports", ("archloop.no_such_module",))
        nursery.close()
        found = measured(tmp_path / "started", nursery=nursery)
    assert [pair.forked for pair in found.pairs] == [False, False]
    assert "no_such_module" in nursery.reasons["torch_eager"]
    # What a forked process shares with its server counts as if it had imported it.
    started = found.pairs[0].candidate.engine_empty
    for part in ("anonymous_bytes", "file_bytes"):
        assert getattr(empty, part) == pytest.approx(getattr(started, part), rel=0.05)


def test_imports_that_cannot_be_forked_are_left_to_each_process(tmp_path, monkeypatch):
    (tmp_path / "restless.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    groups = (("xml.dom",), ("restless",), ("archloop.no_such_module",))
    monkeypatch.setattr(TorchEager, "likely_imports", groups)
    with Nursery() as nursery:
        found = measured(tmp_path / "a", nursery=nursery)
        assert [pair.forked for pair in found.pairs] == [True, True]
        assert nursery.reasons == {}
        for server in nursery._servers.values():
            asked = [str(word) for word in server._process.args]
            assert "xml.dom" in asked
            assert not {"restless", "archloop.no_such_module"} & set(asked)
