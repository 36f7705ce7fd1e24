"""A runner without archloop on its path, written from the wire's page alone, is measured."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from archloop import registry
from archloop.devices.choice import DeviceChoice
from archloop.profiling import ProfileConfig, Target, profile, read_samples
from archloop.runtimes.artifact import read_manifest
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers.deaths import WorkerError
from services.sshd import Sshd, running_sshd

PLUGINS = Path(__file__).parent / "plugins"
QUICK = ProfileConfig(
    processes=2,
    warmup_steps=1,
    timed_steps=6,
    step_group=3,
    settle_steps=1,
    prefill_repeats=2,
    time_limit_s=120,
    ready_timeout_s=0,
)


def stack(num_blocks: int, mixer: str = "short_conv") -> StackSpec:
    block = BlockSpec(
        mixers=(MixerSpec(name=mixer),),
        channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": 1.0}),
    )
    return StackSpec(d_model=64, vocab_size=64, blocks=(block,) * num_blocks)


@pytest.fixture(autouse=True)
def plugins() -> Iterator[None]:
    registry.add_folder(PLUGINS)
    yield
    registry._folders.pop(PLUGINS.resolve())


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def measured(device: DeviceChoice, folder: Path) -> None:
    """One block beside two: faster by about half, compared with eager PyTorch on the device."""
    target = Target(device=device, runtime="plain", contexts=(24,), threads=1)
    found = profile(
        stack(1), target, QUICK, reference=stack(2), directory=folder, artifacts=folder / "kept"
    )
    assert found.identity.runtime == "plain"
    assert found.ratios["24"]["decode_p50_ms"].value < 0.8
    (artifact,) = (folder / "kept").iterdir()
    manifest = read_manifest(artifact)
    assert manifest.spec == stack(2)
    assert manifest.parity_error is not None
    assert manifest.parity_bound is not None
    assert manifest.parity_error <= manifest.parity_bound == 1e-4
    samples = read_samples(folder)
    assert len(samples.pairs) == 2
    assert all(len(block) == 3 for block in samples.pairs[0].candidate.contexts[0].decode_ms)
    assert samples.pairs[0].candidate.engine_empty.peak_bytes < 64 << 20


@pytest.mark.ci
def test_on_the_host(tmp_path: Path) -> None:
    measured(DeviceChoice(), tmp_path)


def test_a_wrong_artifact_is_found_on_the_device(tmp_path: Path) -> None:
    target = Target(runtime="plain", quant="wrong", contexts=(8,), threads=1)
    with pytest.raises(WorkerError, match="logits differ from eager PyTorch's") as caught:
        profile(stack(1), target, QUICK, directory=tmp_path)
    assert (caught.value.cause, caught.value.role) == ("unsupported", "candidate")


@pytest.mark.ci
def test_over_ssh(sshd: Sshd, tmp_path: Path) -> None:
    device = DeviceChoice(name="ssh", **sshd.settings)
    measured(device, tmp_path)
    assert not list(sshd.far_folder.iterdir()), "what was pushed stayed"
