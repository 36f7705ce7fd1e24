"""Measuring processes that are forked: measured alike, and started where forking fails."""

from pathlib import Path
from typing import Any

import pytest

from archloop.devices import host
from archloop.devices.base import Accelerator
from archloop.devices.host import Host
from archloop.profiling import ProfileConfig, Target, exporter, extend, profile
from archloop.profiling.artifacts import Exporting
from archloop.profiling.nursery import Nursery
from archloop.profiling.protocol import prepare
from archloop.profiling.samples import Samples, read_samples
from archloop.runtimes.torch_cuda import TorchCuda
from archloop.runtimes.torch_eager import TorchEager, TorchSession
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers.deaths import WorkerError

BLOCK = BlockSpec(
    mixers=(MixerSpec(name="short_conv"),), channel_mixer=ChannelMixerSpec(name="swiglu")
)
SPEC = StackSpec(d_model=64, vocab_size=256, blocks=(BLOCK,))


def measured(directory: Path, **named: Any) -> Samples:
    config = ProfileConfig(processes=2, timed_steps=4, warmup_steps=1, ready_timeout_s=0, fork=True)
    profile(SPEC, Target(contexts=(64,), threads=1), config, directory=directory, **named)
    return read_samples(directory)


@pytest.mark.ci
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


@pytest.mark.ci
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


@pytest.mark.gpu
def test_nothing_that_stacks_on_a_card_need_is_left_to_each_process():
    """What starts a thread or reaches for the card, and so cannot be forked, would be left out."""
    device, runtime = Host(), TorchCuda()
    with Nursery() as nursery:
        server = nursery._server(device, runtime, runtime.runner(device).argv, {})
        assert server is not None, nursery.reasons
        asked = {str(word) for word in server._process.args}
    assert {name for group in runtime.likely_imports for name in group} <= asked


@pytest.mark.ci
def test_what_was_exported_before_is_measured_as_it_is(tmp_path, monkeypatch):
    target, opened = Target(contexts=(64,), threads=1), []
    config = ProfileConfig(processes=2, timed_steps=4, warmup_steps=1, ready_timeout_s=0, fork=True)
    export = Exporting.export

    def counted(*arguments: Any) -> None:
        opened.append(arguments[3])
        export(*arguments)

    monkeypatch.setattr(Exporting, "export", counted)
    made = tmp_path / "made"
    with Nursery() as nursery:
        named = {"made": made, "logs": tmp_path, "device": Host(), "threads": 1}
        prepare(SPEC, target, config, nursery=nursery, **named)
        assert len(opened) == 1
        named = {"directory": tmp_path / "samples", "made": made, "nursery": nursery}
        found = profile(SPEC, target, config, **named)
        again = extend(tmp_path / "samples", made=made, nursery=nursery)
    assert (found.num_processes, again.num_processes) == (2, 4)
    assert len(opened) == 1
    assert opened[0].is_dir()


class _Engine(TorchEager):
    """Stands in for an engine in this process."""

    def start(self, threads: int) -> None:
        """Nothing: what the real one sets would stay set for the tests after this one."""


@pytest.mark.parametrize("full", [False, True])
def test_an_artifact_runs_the_prompts_that_it_will_be_measured_with(
    tmp_path, monkeypatch, caplog, full
):
    prompts, prefill, get = [], TorchSession.prefill, exporter.registry.get

    def engine(kind: str, name: str) -> Any:
        return _Engine if kind == "runtimes" else get(kind, name)

    def told(session: TorchSession, ids: Any) -> Any:
        if len(ids) == 16 and full:
            raise RuntimeError("out of memory")
        prompts.append((len(ids), session.max_context))
        return prefill(session, ids)

    monkeypatch.setattr(TorchSession, "prefill", told)
    monkeypatch.setattr(exporter.registry, "get", engine)
    asked = exporter.Export(
        spec=SPEC, seed=0, runtime="torch_eager", quant="fp32", directory=tmp_path / "a",
        threads=1, warm=(8, 16), warm_room=1,
    )  # fmt: skip
    exporter._export(asked)
    # What cannot run ahead has been exported all the same.
    assert (tmp_path / "a" / "manifest.json").exists()
    assert prompts[-1] == ((8, 9) if full else (16, 17))
    assert ("not run ahead: out of memory" in caplog.text) == full


@pytest.mark.ci
def test_an_export_is_run_on_the_part_of_the_machine_that_is_measured(tmp_path, monkeypatch):
    asked = []

    def export(exporting: Exporting, *_: object) -> None:
        asked.append(exporting.device.config)
        raise WorkerError("crash", "enough")

    monkeypatch.setattr(Exporting, "export", export)
    monkeypatch.setattr(host, "_cards", lambda: (Accelerator(name="a"), Accelerator(name="b")))
    target = Target.model_validate({"contexts": [8], "device": {"name": "host", "gpu": 1}})
    with pytest.raises(WorkerError, match="enough"):
        profile(SPEC, target, ProfileConfig(processes=2, fork=False), directory=tmp_path / "a")
    assert [config.gpu for config in asked] == [1]


def test_a_target_elsewhere_does_not_end_forking_here():
    class Elsewhere(Host):
        is_here = False

    device = Elsewhere()
    argv = [*(device.python_argv() or ()), "-m", "archloop.profiling.worker"]
    with Nursery() as nursery:
        assert nursery._server(device, TorchEager(), argv, {}) is None
        assert nursery.reasons == {}
