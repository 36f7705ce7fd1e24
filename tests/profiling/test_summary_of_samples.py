"""Profiles follow from samples alone, by the rules of the methodology."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from archloop.devices.base import Readings
from archloop.profiling import ProfileConfig, profile_from_samples, read_samples, table
from archloop.profiling.record import Interval, Profile
from archloop.profiling.samples import SAMPLES, ContextSamples, ProcessSamples
from archloop.profiling.summary import load_flags
from archloop.profiling.target import Target
from archloop.ranking import objectives
from archloop.ranking.record import Objective
from profiling.samples import memory, pair, process, samples


def near(value: float) -> Interval:
    return pytest.approx(value, rel=1e-12)


def test_figures_and_ratios() -> None:
    profile = profile_from_samples(
        samples(*(pair(process(2 * drift, (500, 700)), process(drift)) for drift in (1.0, 1.1)))
    )
    first, second = profile.figures
    assert (first.context, second.context) == (100, 200)
    assert first.ttft_ms.value == near(20 * 1.1**0.5)
    assert first.prefill_tok_per_s.value == near(100 / 0.020 / 1.1**0.5)
    assert second.decode_p50_ms.value == near(4 * 1.1**0.5)
    assert first.decode_p50_ms.low < first.decode_p50_ms.value < first.decode_p50_ms.high
    for ratios in profile.ratios.values():
        assert (ratios["ttft_ms"].low, ratios["ttft_ms"].high) == (near(2.0), near(2.0))
        assert ratios["prefill_tok_per_s"].value == near(0.5)
        assert ratios["decode_p95_ms"].value == near(2.0)
    assert profile.ratios["100"]["peak_memory_bytes"].value == near(500 / 300)
    assert profile.latency_ratio is not None
    assert profile.latency_ratio.value == near(2.0)
    # Net of the empty engine: 400 / 200 and 600 / 300; the largest counts.
    assert profile.memory_ratio is not None
    assert profile.memory_ratio.value == near(2.0)
    assert profile.num_processes == 2
    assert profile.flags == ()


def test_latency_is_a_request_and_memory_the_worst_context() -> None:
    slow_prefill = process(1.0)
    contexts = tuple(
        at.model_copy(update={"ttft_ms": (512.0 * at.context,)}) for at in slow_prefill.contexts
    )
    candidate = slow_prefill.model_copy(update={"contexts": contexts})
    profile = profile_from_samples(samples(*[pair(candidate, process(1.0, (300, 300)))] * 2))
    request = [(51200 + 256) / (10 + 256), (102400 + 512) / (20 + 512)]
    assert profile.latency_ratio is not None
    assert profile.latency_ratio.value == near((request[0] * request[1]) ** 0.5)
    assert profile.memory_ratio is not None
    assert profile.memory_ratio.value == near(300 / 200)


def test_memory_of_the_reference_beside_itself_is_one_on_average() -> None:
    """Where noise picks another context in each process, the largest of each would lie above."""
    high_low, low_high = process(1.0, (330, 400)), process(1.0, (300, 460))
    even = process(1.0, (315, 430))
    pairs = [pair(high_low, even), pair(low_high, even)]
    profile = profile_from_samples(samples(*pairs))
    assert profile.memory_ratio is not None
    by_context = [(230 * 200) ** 0.5 / 215, (300 * 360) ** 0.5 / 330]
    assert profile.memory_ratio.value == near(max(by_context))
    largest_of_each = (230 / 215 * 360 / 330) ** 0.5
    assert profile.memory_ratio.value < 1 < largest_of_each


def test_memory_is_that_of_the_device_that_computes() -> None:
    """On a GPU the process's own memory counts for nothing."""

    def on_device(peaks: tuple[int, ...]) -> ProcessSamples:
        made = process(1.0, (9000, 9000))
        contexts = tuple(
            at.model_copy(
                update={"memory": at.memory.model_copy(update={"device_peak_bytes": peak})}
            )
            for at, peak in zip(made.contexts, peaks, strict=True)
        )
        empty = made.engine_empty.model_copy(update={"device_peak_bytes": 50})
        return made.model_copy(update={"engine_empty": empty, "contexts": contexts})

    beside = pair(on_device((150, 250)), on_device((100, 150)))
    profile = profile_from_samples(samples(beside, beside))
    assert [at.peak_memory_bytes.value for at in profile.figures] == [near(150), near(250)]
    assert profile.figures[0].engine_empty_bytes.value == near(50)
    assert profile.memory_ratio is not None
    assert profile.memory_ratio.value == near(2.0)


def test_an_engine_that_holds_nothing_before_it_has_a_model_is_measured() -> None:
    found = profile_from_samples(samples(pair(process(1.0, empty=0)), pair(process(1.1, empty=0))))
    assert found.figures[0].peak_memory_bytes.value == near(300)
    assert found.figures[0].engine_empty_bytes.value == near(1)


def test_samples_from_before_devices_had_memory_still_read(tmp_path: Path) -> None:
    made = samples(pair(process(1.0)), pair(process(1.1)))
    made.write(tmp_path)
    content = (tmp_path / SAMPLES).read_text()
    old = content.replace(',"device_peak_bytes":null', "").replace(',"memory":"process"', "")
    assert len(old) < len(content) - 100
    (tmp_path / SAMPLES).write_text(old)
    assert read_samples(tmp_path) == made


def used(joules: float) -> ProcessSamples:
    """A process whose ten decode steps took twice so much energy."""
    found = process(1.0)
    counted = [
        at.model_copy(update={"decode_joules": ((7, joules), (3, joules))}) for at in found.contexts
    ]
    return found.model_copy(update={"contexts": tuple(counted)})


def test_energy_is_a_figure_where_two_processes_counted_it() -> None:
    profile = profile_from_samples(samples(pair(used(5.0)), pair(used(20.0))))
    assert profile.figures[0].joules_per_token is not None
    assert profile.figures[0].joules_per_token.value == pytest.approx(2.0)
    assert "J/token" in printed(profile)
    profile = profile_from_samples(samples(pair(used(5.0)), pair(process(1.0))))
    assert profile.figures[0].joules_per_token is None
    assert "J/token" not in printed(profile)


def test_energy_is_a_ratio_where_the_reference_was_counted_too() -> None:
    pairs = [pair(used(1.2 * joules), used(joules)) for joules in (5.0, 20.0)]
    profile = profile_from_samples(samples(*pairs))
    for ratios in profile.ratios.values():
        assert ratios["joules_per_token"].value == near(1.2)
    wanted = Objective(name="energy", direction="minimize", figure="joules_per_token")
    found = objectives.device({"here": profile}, [wanted])
    assert found["energy"].mean == near(1.2)
    for other in (pair(used(5.0), process(1.0)), pair(process(1.0), used(5.0))):
        profile = profile_from_samples(samples(pairs[0], other))
        assert "joules_per_token" not in profile.ratios["100"]


def test_a_counter_that_failed_in_one_process_leaves_out_that_pair_alone() -> None:
    pairs = [pair(used(1.2 * joules), used(joules)) for joules in (5.0, 20.0)]
    whole = profile_from_samples(samples(*pairs))
    wanted = Objective(name="energy", direction="minimize", figure="joules_per_token")
    for failed in (pair(process(1.0), used(500.0)), pair(used(500.0), process(1.0))):
        profile = profile_from_samples(samples(*pairs, failed))
        for found, expected in zip(profile.figures, whole.figures, strict=True):
            assert found.joules_per_token == expected.joules_per_token is not None
        assert profile.ratios["100"]["joules_per_token"].value == near(1.2)
        assert (profile.num_processes, profile.num_energy_processes) == (3, 2)
        assert profile.processes_behind("latency") == 3
        assert objectives.device({"here": profile}, [wanted])["energy"].n == 2
        assert [flag for flag in profile.flags if "energy" in flag] == [
            f"energy at {context} was counted in 2 of 3 processes, and its figure is of those"
            for context in (100, 200)
        ]
    alone = profile_from_samples(samples(pairs[0], pair(process(1.0), used(5.0))))
    assert alone.num_energy_processes is None
    assert "energy at 100 was counted in 1 of 2 processes, too few for a figure" in alone.flags


def printed(profile: Profile) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(profile))
    return console.export_text()


def test_without_reference_there_are_no_ratios() -> None:
    profile = profile_from_samples(samples(pair(process(1.0)), pair(process(1.2))))
    assert profile.latency_ratio is None
    assert profile.memory_ratio is None
    assert profile.ratios == {}


def test_composed_prefill_integrates_passes() -> None:
    """An affine cost a + b d integrates exactly to the sum over all passes."""
    depths = [d * (2048 - 512) // 4 for d in range(5)]
    at = ContextSamples(
        context=2048,
        open_s=0.0,
        state_bytes=0,
        ttft_ms=(),
        prefill_pass_ms=tuple(
            (d, 3.0 + 0.01 * d + noise) for d in depths for noise in (0.0, 0.0, 9.0)
        ),
        prefill_pass_tokens=512,
        decode_ms=((1.0,),),
        memory=memory(1),
        finite=True,
    )
    assert at.prefill_ms == near(sum(3.0 + 0.01 * d for d in (0, 512, 1024, 1536)))


def test_doubts_are_flagged() -> None:
    odd = process(1.0)
    first = odd.contexts[0].model_copy(
        update={
            "finite": False,
            "memory": memory(300, swapped=1),
            "ttft_ms": (),
            "prefill_pass_ms": ((0, 1.0), (1, 1.0)),
        }
    )
    odd = odd.model_copy(update={"contexts": (first, odd.contexts[1]), "can_reset_peak": False})
    noisy = pair(odd, busy_s=15.0).model_copy(
        update={
            "was_ready": False,
            "after": Readings(
                time_s=10.0, busy_s=15.0, steal_s=1.0, clock_mhz=2000, temperature_c=90
            ),
            "before": Readings(time_s=0.0, busy_s=0.0, steal_s=0.0, clock_mhz=3000),
        }
    )
    flags = profile_from_samples(samples(noisy, pair(process(1.0)))).flags
    for word in (
        "composed", "finite", "swapped", "reset", "not at rest before 1 of 2",
        "0.50 cores", "10% of a core", "2000 and 3000 MHz", "90 degrees",
    ):  # fmt: skip
        assert any(word in flag for flag in flags), word


def test_a_phones_state_is_flagged() -> None:
    first = process(1.0)
    unseen = first.contexts[0].model_copy(update={"finite": None, "state_bytes": None})
    first = first.model_copy(update={"contexts": (unseen, first.contexts[1])})
    cool = Readings(time_s=0.0, clock_mhz=300, clock_cap_mhz=2000, battery_percent=21)
    warm = Readings(
        time_s=10.0,
        clock_mhz=2000,
        clock_cap_mhz=1500,
        throttling=2,
        battery_percent=19,
        charging=True,
    )
    phone = pair(first).model_copy(update={"before": cool, "after": warm})
    disturbances = list(load_flags((phone,), 0))
    # The clock of a phone at rest tells nothing; what it is allowed to be does.
    assert disturbances == [
        "the cap of the clock varied between 1500 and 2000 MHz",
        "the device slowed down for heat (severity 2 of 6)",
    ]
    flags = profile_from_samples(samples(phone, pair(process(1.0)))).flags
    assert set(disturbances) < set(flags)
    for words in ("no logits", "fell to 19%", "being charged"):
        assert any(words in flag for flag in flags), words
    still = cool.model_copy(update={"time_s": 10.0, "throttling": 0, "charging": False})
    calm = pair(process(1.0)).model_copy(update={"before": cool, "after": still})
    assert not profile_from_samples(samples(calm, calm)).flags


@pytest.mark.parametrize(
    ("memory", "cores", "is_told"),
    [("device", 32, False), ("device", 2, True), ("device", 3, True), ("process", 32, True)],
)
def test_a_card_is_disturbed_by_programs_only_where_they_leave_it_no_core(
    memory: str, cores: int, is_told: bool
) -> None:
    busy = pair(process(1.0), busy_s=22.0).model_copy(update={"was_ready": False})
    made = samples(busy, pair(process(1.0)))
    identity = made.identity.model_copy(update={"memory": memory})
    device = made.device.model_copy(update={"num_cores": cores})
    made = made.model_copy(update={"identity": identity, "device": device})
    assert any("1.20 cores" in flag for flag in profile_from_samples(made).flags) == is_told


def test_samples_survive_the_file(tmp_path: Path) -> None:
    made = samples(pair(process(1.0), process(2.0)), pair(process(1.1), process(2.0)))
    made.write(tmp_path)
    assert read_samples(tmp_path) == made
    assert profile_from_samples(read_samples(tmp_path)) == profile_from_samples(made)


def test_missing_or_damaged_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measure it first"):
        read_samples(tmp_path)
    (tmp_path / SAMPLES).write_text('{"version": 1')
    with pytest.raises(ValueError, match="damaged"):
        read_samples(tmp_path)


def test_table_shows_every_context_and_doubt() -> None:
    pairs = [pair(process(1.0), process(2.0), busy_s=20.0), pair(process(1.1), process(2.0))]
    console = Console(width=200, record=True, file=None, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(table(profile_from_samples(samples(*pairs))))
    text = captured.get()
    for word in ("100", "200", "TTFT ms", "latency over the reference's: 0.5", "flag: other"):
        assert word in text


@pytest.mark.parametrize(
    "change", [{"processes": 1}, {"contexts": ()}, {"contexts": (0,)}, {"timed_step": 3}]
)
def test_impossible_configs_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ProfileConfig(**change)  # type: ignore[arg-type]


def test_config_puts_contexts_in_order() -> None:
    config = ProfileConfig(timed_steps=50, step_group=20)
    assert Target(contexts=(200, 100, 200)).contexts == (100, 200)
    assert config.step_groups == [20, 20, 10]
    assert config.room == 20 + 50 + 3 * 2


def test_reading_a_profile_needs_no_engine() -> None:
    code = (
        "import archloop.profiling as p, sys; p.read_samples; p.table; p.profile_from_samples; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
