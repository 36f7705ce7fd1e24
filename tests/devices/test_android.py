"""The android device against a scripted adb: what it is, what goes wrong, what it leaves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from archloop import registry
from archloop.devices.android import Android
from archloop.devices.base import DeviceError
from archloop.devices.choice import DeviceChoice
from archloop.devices.lease import exclude
from archloop.errors import UserError
from archloop.profiling import ProfileConfig, Target, profile, read_samples
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers.deaths import WorkerError
from services.phone import scripted_adb

PLUGINS = Path(__file__).parents[1] / "workers" / "plugins"
BLOCK = BlockSpec(
    mixers=(MixerSpec(name="short_conv"),),
    channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": 1.0}),
)
SPEC = StackSpec(d_model=64, vocab_size=64, blocks=(BLOCK,))
QUICK = ProfileConfig(
    processes=2, warmup_steps=1, timed_steps=4, prefill_repeats=1, ready_timeout_s=0
)


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Path]:
    with scripted_adb(tmp_path):
        yield tmp_path


@pytest.fixture
def choice(phone: Path) -> DeviceChoice:
    return DeviceChoice(name="android", serial="emulator-5554", folder=str(phone / "data"))


@pytest.fixture
def plain() -> Iterator[str]:
    registry.add_folder(PLUGINS)
    yield "plain"
    registry._folders.pop(PLUGINS.resolve())


def test_is_its_model_and_chip(phone: Path, choice: DeviceChoice) -> None:
    about = choice.open().describe()
    assert about.processor == "Pixel 9 Tensor G4"
    assert about.os.startswith("Android 15, ")
    assert (phone / "serial").read_text() == "emulator-5554"


@pytest.mark.parametrize("serial", ["-d", "a b", "$(id)", ""])
def test_a_serial_is_never_an_option_or_a_command(serial: str) -> None:
    with pytest.raises(ValidationError):
        Android.Config(serial=serial)


@pytest.mark.parametrize(
    ("says", "cause", "words"),
    [
        ("error: device offline", "gone", "adb devices"),
        ("adb: device 'emulator-5554' not found", "gone", "adb devices"),
        ("error: device unauthorized.", "gone", "adb devices"),
        ("adb: error: failed to copy: No space left on device", "disk", "free some"),
        ("sh: rm: Permission denied", "crash", "Permission denied"),
    ],
)
def test_what_goes_wrong_is_told_apart(
    says: str, cause: str, words: str, phone: Path, choice: DeviceChoice, tmp_path: Path
) -> None:
    (phone / "says").write_text(says + "\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DeviceError, match=words) as caught:
        choice.open().push(tmp_path / "folder")
    assert caught.value.cause == cause


@pytest.mark.ci
def test_a_runner_of_its_own_is_measured_there(
    phone: Path, choice: DeviceChoice, plain: str, tmp_path: Path
) -> None:
    target = Target(device=choice, runtime=plain, contexts=(8,), threads=1)
    found = profile(SPEC, target, QUICK, directory=tmp_path / "samples")
    assert found.identity.device.startswith("Pixel 9 Tensor G4, ")
    assert read_samples(tmp_path / "samples").device.os.startswith("Android 15")
    assert not list((phone / "data").iterdir()), "what was pushed stayed"


@pytest.mark.ci
def test_a_phone_that_disappears_ends_the_measurement(
    phone: Path, choice: DeviceChoice, plain: str, tmp_path: Path
) -> None:
    target = Target(device=choice, runtime=plain, contexts=(8,), threads=1)

    def pull(_: float, doing: str) -> None:
        if doing.startswith("process 2"):
            (phone / "says").write_text("error: device offline\n")

    with pytest.raises(WorkerError, match="cannot be reached") as caught:
        profile(SPEC, target, QUICK, directory=tmp_path / "samples", progress=pull)
    assert caught.value.cause == "gone"


def test_a_runtime_that_needs_python_says_so(choice: DeviceChoice, tmp_path: Path) -> None:
    target = Target(device=choice, contexts=(8,), threads=1)
    with pytest.raises(UserError, match="device android has no Python with archloop"):
        profile(SPEC, target, QUICK, directory=tmp_path)


def test_clocks_and_sensors_are_read_from_files_too(
    choice: DeviceChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = (
        "== clocks\n300000\n500000\n== sensors\n31000\n47500\n== caps\n1800000\n2400000\n"
        "== battery\n  level: 3\n  scale: 0\n== heat\nCan't find service: thermalservice\n"
    )
    device = choice.open()
    monkeypatch.setattr(type(device), "told", lambda *_, **__: answer)
    found = device.readings()
    assert (found.clock_mhz, found.clock_cap_mhz) == (400.0, 2100.0)
    # Where no service tells the processor's temperature, it is the hottest sensor's.
    assert (found.temperature_c, found.throttling) == (47.5, None)
    assert (found.battery_percent, found.charging) == (None, None)


def test_garbage_is_no_reading(
    phone: Path, choice: DeviceChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = choice.open()
    answer = "== /proc/stat\ncpu many few\n== /proc/meminfo\nMemAvailable: lots\n== ticks\nx"
    monkeypatch.setattr(type(device), "told", lambda *_, **__: answer)
    found = device.readings()
    assert found.busy_s is None
    assert found.available_memory_bytes is None
    assert device.describe().num_cores == 1
    assert device.wait_until_ready(0.0)


def test_a_push_that_fails_leaves_nothing(
    phone: Path, choice: DeviceChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("content")
    device = choice.open()
    told = type(device).told

    def full(self: Android, argv: list[str], *rest: object, **more: object) -> str:
        if any("touch" in word for word in argv):
            raise DeviceError("disk", "No space left on device")
        return told(self, argv, *rest, **more)

    monkeypatch.setattr(type(device), "told", full)
    with pytest.raises(DeviceError, match="No space left"):
        device.push(tmp_path / "folder")
    assert not list((phone / "data").iterdir())


def test_a_large_artifact_has_time_to_arrive(
    phone: Path, choice: DeviceChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder" / "weights").open("wb") as file:
        file.truncate(50_000_000)
    device, limits = choice.open(), list[float]()
    told = type(device).told

    def timed(self: Android, argv: list[str], given: None = None, limit_s: float = 60.0) -> str:
        if "push" in argv:
            limits.append(limit_s)
        return told(self, argv, given, limit_s)

    monkeypatch.setattr(type(device), "told", timed)
    device.remove(device.push(tmp_path / "folder"))
    assert limits == [600 + 50]


def test_a_phone_without_a_name_may_be_any_that_is_measured() -> None:
    one, other, unnamed = (
        Android(Android.Config(serial=serial)).claims(on_card=False) for serial in ("a", "b", None)
    )
    assert exclude(unnamed, one)
    assert exclude(unnamed, unnamed)
    assert exclude(one, one)
    assert not exclude(one, other)
