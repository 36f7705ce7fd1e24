"""The contract of runtimes: agree with eager PyTorch, carry state, tell damaged from whole."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from archloop import registry
from archloop.runtimes.artifact import MANIFEST
from archloop.runtimes.base import Session
from archloop.runtimes.deciding import decided_experts
from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.parity import session_rows
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.testing.contract import Contract
from archloop.testing.runtime_faults import RuntimeFaults, expected_rows, tokens

MIB = 1 << 20
PROMPT, STEPS = 40, 5
ROOM = 46
"""As the comparison at each export, so that a compiler's cache serves both."""


def specs() -> list[StackSpec]:
    """Stacks of sizes that every runtime's kernels take, those with more that can go wrong first.

    With a window shorter than the prompt and experts; without the window; plain.
    """
    swiglu = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    experts = {"num_experts": 4, "top_k": 2, "expansion": 0.5}
    moe = ChannelMixerSpec(name="moe", config=experts)
    conv, gqa = MixerSpec(name="short_conv"), MixerSpec(name="gqa", config={"head_dim": 64})
    swa = MixerSpec(name="swa", config={"head_dim": 64, "window": 16})
    stacks = (
        ((conv, swiglu), (swa, moe), (gqa, swiglu)),
        ((conv, swiglu), (gqa, moe)),
        ((conv, swiglu), (gqa, swiglu)),
    )
    return [
        StackSpec(
            d_model=128,
            vocab_size=256,
            blocks=tuple(
                BlockSpec(mixers=(mixer,), channel_mixer=channel) for mixer, channel in stack
            ),
        )
        for stack in stacks
    ]


def run(session: Session, prompt_parts: list[list[int]], more: list[int]) -> np.ndarray:
    """Logits (R, V) of a prompt's last token and of each step."""
    return session_rows(session, prompt_parts, more)


class RuntimeContract(RuntimeFaults, Contract):
    """Tests of runtimes, each with all its quantisations.

    One that this machine lacks something for is skipped.
    """

    kind: ClassVar[str] = "runtimes"

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the tests of one quantisation after another on one session."""
        super().pytest_generate_tests(metafunc)
        if "exported" in metafunc.fixturenames:
            cases = [
                pytest.param((name, quant), id=f"{name}-{quant}", marks=self.marks(name, quant))
                for name in self.plugins()
                for quant in registry.get("runtimes", name).quants
            ]
            metafunc.parametrize("exported", cases, indirect=True, scope="class")

    @classmethod
    def marks(cls, name: str, quant: str) -> tuple[Any, ...]:
        """Marks of pytest for the tests of a quantisation, such as for slow ones."""
        del name, quant
        return ()

    @pytest.fixture(scope="class")
    @classmethod
    def exported(
        cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Any]:
        """Runtime, quant, decoder, folder, manifest, session: exported and opened once."""
        name, quant = request.param
        runtime = registry.get("runtimes", name)()
        if missing := runtime.missing_to_run():
            pytest.skip(missing)
        reasons = [runtime.unsupported(spec) for spec in specs()]
        if None not in reasons:
            pytest.skip(str(reasons[-1]))
        decoder = build_random(specs()[reasons.index(None)], seed=1)
        folder = tmp_path_factory.mktemp(f"{name}-{quant}")
        with decided_experts(decoder):
            manifest = export(runtime, decoder, folder, quant)
            session = runtime.open(folder, threads=1, max_context=ROOM)
            yield runtime, quant, decoder, folder, manifest, session
            session.close()

    def test_agrees_with_eager_pytorch(self, exported: Any) -> None:
        runtime, quant, decoder, folder, manifest, session = exported
        prompt, more = tokens(PROMPT), tokens(STEPS, seed=1)
        expected_RV = expected_rows(exported, [prompt], more)
        found_RV = run(session, [prompt], more)
        assert found_RV.dtype == np.float32
        assert found_RV.shape == (1 + STEPS, 256)
        error = np.abs(found_RV - expected_RV).max() / expected_RV.std()
        assert error <= manifest.parity_bound
        assert manifest.parity_error <= manifest.parity_bound
        if runtime.reference_dtype(quant) == "float32" and not runtime.products(
            decoder, folder, quant
        ):
            assert manifest.parity_bound == runtime.parity_tolerance[quant]

    def test_prompt_in_parts_and_after_reset_gives_the_same(self, exported: Any) -> None:
        *_, manifest, session = exported
        prompt, more = tokens(PROMPT), tokens(STEPS, seed=1)
        whole = run(session, [prompt], more)
        again = run(session, [prompt], more)
        parts = run(session, [prompt[:1], prompt[1:34], prompt[34:]], more)
        np.testing.assert_array_equal(whole, again)
        assert np.abs(parts - whole).max() <= manifest.parity_bound * whole.std()

    def test_filled_state_is_used_and_finite(self, exported: Any) -> None:
        *_, session = exported
        session.fill(40, seed=0)
        session.decode_step(3)
        first = session.logits().copy()
        session.fill(40, seed=0)
        session.reset()
        session.decode_step(3)
        empty = session.logits()
        assert np.isfinite(first).all()
        assert np.abs(first - empty).max() > 0
        assert session.state_bytes is None or session.state_bytes > 0

    def test_full_session_says_so(self, exported: Any) -> None:
        *_, session = exported
        session.fill(ROOM, seed=0)
        with pytest.raises(ValueError, match="max_context"):
            session.decode_step(0)
        session.reset()
        with pytest.raises(ValueError, match="max_context"):
            session.prefill(session.prepare(tokens(ROOM + 1)))
        with pytest.raises(ValueError, match="at least one token"):
            session.prepare([])

    def test_unknown_tokens_are_refused(self, exported: Any) -> None:
        *_, session = exported
        session.reset()
        for unknown in (-1, 256):
            with pytest.raises(ValueError, match=f"token {unknown} is not in the vocabulary"):
                session.prepare([1, unknown, 2])
            with pytest.raises(ValueError, match=f"token {unknown} is not in the vocabulary"):
                session.decode_step(unknown)
        session.prefill(session.prepare([1, 255]))
        assert np.isfinite(session.logits()).all()

    def test_the_chosen_token_is_the_most_likely(self, exported: Any) -> None:
        *_, session = exported
        session.reset()
        token = session.prefill(session.prepare(tokens(PROMPT)))
        for _ in range(STEPS):
            assert token == int(session.logits().argmax())
            token = session.decode_step(token)

    def test_memory_is_reported_where_it_is_held(self, exported: Any) -> None:
        """An engine on a device of its own counts that memory, from any moment on, and frees it."""
        runtime, _, _, folder, manifest, session = exported
        assert session.prefill_pass >= 1
        if runtime.device_peak_bytes() is None:
            return
        runtime.reset_device_peak()
        before = runtime.device_peak_bytes()
        another = runtime.open(folder, threads=1, max_context=1 << 16)
        opened = runtime.device_peak_bytes() - before
        assert another.state_bytes is not None
        assert opened >= another.state_bytes + sum(manifest.weight_bytes.values())
        assert opened <= 1.2 * another.state_bytes + 128 * MIB
        another.close()
        del another
        gc.collect()
        runtime.reset_device_peak()
        assert runtime.device_peak_bytes() <= before + 2 * MIB

    def test_manifest_tells_what_was_exported(self, exported: Any) -> None:
        runtime, quant, decoder, folder, manifest, _ = exported
        assert manifest.spec == decoder.spec
        assert (manifest.runtime, manifest.quant) == (runtime.name, quant)
        assert manifest.version == runtime.version()
        num_params = sum(p.numel() for p in decoder.parameters())
        # A tied embedding may be there twice: as a table, and in an engine's own order as a matrix.
        num_held = num_params + (decoder.embedding.weight.numel() if decoder.head is None else 0)
        assert 0 < sum(manifest.weight_bytes.values()) <= 4.1 * num_held
        assert set(manifest.files) <= {p.relative_to(folder).as_posix() for p in folder.rglob("*")}

    @pytest.mark.parametrize("damage", ["changed", "missing", "no whole artifact", "damaged"])
    def test_damaged_artifact_is_refused(self, exported: Any, damage: str, tmp_path: Path) -> None:
        runtime, _, _, folder, manifest, _ = exported
        for name in [*manifest.files, MANIFEST]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        largest = max(manifest.files, key=lambda name: (folder / name).stat().st_size)
        if damage == "changed":
            content = bytearray((tmp_path / largest).read_bytes())
            content[-1] ^= 1
            (tmp_path / largest).write_bytes(content)
        elif damage == "missing":
            (tmp_path / largest).unlink()
        elif damage == "no whole artifact":
            (tmp_path / MANIFEST).unlink()
        else:
            (tmp_path / MANIFEST).write_text("{")
        with pytest.raises(ValueError, match=damage):
            runtime.open(tmp_path, threads=1, max_context=ROOM)

    def test_unknown_quant_is_refused_with_a_suggestion(
        self, exported: Any, tmp_path: Path
    ) -> None:
        runtime, quant, decoder, *_ = exported
        with pytest.raises(ValueError, match=f"did you mean.*{quant}"):
            export(runtime, decoder, tmp_path, quant + "x")
