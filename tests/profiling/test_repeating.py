"""What was disturbed is measured again, within a bound, and stays beside what counts."""

from pathlib import Path

import pytest

from archloop.devices.host import Host
from archloop.profiling import ProfileConfig, Target, profile_from_samples, protocol
from archloop.profiling.samples import PairSamples
from profiling.samples import SPEC, pair, process, samples

BUSY_S = 15.0
"""Of processor time in ten seconds, ten of which were the measurement's own."""


class Scripted:
    """A measurement whose further processes and device are told beforehand."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, again: list[PairSamples], rests: list[bool]
    ) -> None:
        self.asked: list[int] = []
        config = ProfileConfig(repeats=2)
        self.of = protocol._Measurement(SPEC, Target(), config, None, Path("no"), None, None, None)

        def measured(_: object, index: int, done: float, share: float) -> PairSamples:
            self.asked.append(index)
            return again.pop(0)

        monkeypatch.setattr(protocol._Measurement, "_pair", measured)
        monkeypatch.setattr(Host, "wait_until_ready", lambda *_: rests.pop(0))


def quiet(scale: float) -> PairSamples:
    return pair(process(scale))


def disturbed(scale: float) -> PairSamples:
    return pair(process(scale), busy_s=BUSY_S)


def test_a_disturbed_process_is_measured_again_and_kept_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = [quiet(1.0), disturbed(3.0), quiet(1.0)]
    scripted = Scripted(monkeypatch, [quiet(1.0)], [True])
    counted, aside = scripted.of._repeated(5, first)
    assert scripted.asked == [6], "in the same order of turns as the one that it replaces"
    assert counted == [quiet(1.0)] * 3
    assert aside == [disturbed(3.0)]
    said = samples(*counted).model_copy(update={"disturbed": tuple(aside)})
    found = profile_from_samples(said)
    assert (found.num_processes, found.num_repeated, found.flags) == (3, 1, ())
    assert found.figures[0].decode_p50_ms.value == pytest.approx(1.0)


def test_which_of_two_disturbed_processes_counts_does_not_hang_on_their_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted = Scripted(monkeypatch, [disturbed(2.0)], [True])
    counted, aside = scripted.of._repeated(0, [disturbed(3.0), quiet(1.0)])
    assert counted[0] == disturbed(3.0)
    assert aside == [disturbed(2.0)]
    assert any("other programs" in flag for flag in profile_from_samples(samples(*counted)).flags)


def test_repeats_are_bounded_and_wait_for_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [disturbed(1.0 + n) for n in range(4)]
    scripted = Scripted(monkeypatch, [quiet(1.0), quiet(1.0)], [True, True])
    counted, aside = scripted.of._repeated(0, first)
    assert scripted.asked == [0, 1]
    assert counted == [quiet(1.0), quiet(1.0), *first[2:]]
    assert aside == first[:2]
    never = Scripted(monkeypatch, [], [False])
    assert never.of._repeated(0, first) == (first, [])


def test_another_look_keeps_what_was_set_aside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = samples(quiet(1.0), quiet(1.1)).model_copy(update={"disturbed": (disturbed(3.0),)})
    before.write(tmp_path)
    new = samples(quiet(1.2)).model_copy(update={"disturbed": (disturbed(4.0),)})
    monkeypatch.setattr(protocol._Measurement, "measure", lambda *_, **__: new)
    found = protocol.extend(tmp_path)
    assert (found.num_processes, found.num_repeated) == (3, 2)
    kept = protocol.read_samples(tmp_path)
    assert [each.candidate for each in kept.disturbed] == [process(3.0), process(4.0)]


@pytest.mark.parametrize(("on_card", "waited_s"), [(False, 5.0), (True, 0.0)])
def test_a_card_held_alone_does_not_wait_for_its_machine(
    monkeypatch: pytest.MonkeyPatch, on_card: bool, waited_s: float
) -> None:
    waited = []

    def busy(_: Host, timeout_s: float) -> bool:
        waited.append(timeout_s)
        return False

    first = [disturbed(3.0), disturbed(3.0)]
    scripted = Scripted(monkeypatch, [], [])
    monkeypatch.setattr(Host, "wait_until_ready", busy)
    monkeypatch.setattr(type(scripted.of.runtime), "on_card", on_card)
    assert scripted.of._repeated(0, first) == (first, [])
    assert waited == [waited_s]
