"""What an inference engine must offer: export a decoder, open the artifact, prefill, decode.

A runtime is one file in `runtimes/` with one subclass of `Runtime` and a `Session` of its own. It
writes `write` and `load`; naming, checksums and the comparison with eager PyTorch are settled here
for every engine. The file must import quickly: engines are imported inside methods, so that listing
runtimes, or asking what one supports, needs none of them.

Shape suffixes: V vocabulary.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.registry import suggest
from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    from archloop.stack.decoder import Decoder

Logits = NDArray[np.float32]

MANIFEST = "manifest.json"
_PARITY_PROMPT = 40
_PARITY_STEPS = 6
_ROUNDING_FACTOR = 2.0
"""Two engines that round equally much, but elsewhere, lie about 1.4 times as far from each other
as each from float32; measured: at most 1.3 (`benchmarks/runtime_parity.py`)."""
_LARGEST_BOUND = 3.0
"""Unrelated logits lie about 6 apart: however a stack rounds, these must not pass."""


class Manifest(BaseModel):
    """What an artifact is; written last, so that a folder with a manifest is whole.

    Attributes:
        version: of the engine that wrote it.
        precision: dtype of activations and state.
        weight_bytes: bytes of weights by precision, such as ``{"int4": ..., "float32": ...}``:
            how much of the model the quantisation covers.
        files: SHA-256 of each file, by name.
        parity_error: largest difference from eager PyTorch's logits, in standard deviations of
            them; None where the check was not made.
        parity_bound: what that error had to stay below.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: StackSpec
    runtime: str
    version: str
    quant: str
    precision: str
    weight_bytes: dict[str, int]
    files: dict[str, str]
    parity_error: float | None = None
    parity_bound: float | None = None


class Session(ABC):
    """A loaded model with the state of one sequence, which the engine holds where it can.

    Attributes:
        max_context: tokens that the state has room for.
        plans_by_shape: the first prefill of so many tokens at some depth costs more than later
            ones, because the engine compiles or chooses kernels by these numbers.
    """

    max_context: int
    plans_by_shape: ClassVar[bool] = False

    @abstractmethod
    def prefill(self, ids: Sequence[int]) -> Logits:
        """Take in tokens after those already held; logits (V,) after the last one.

        Raises:
            ValueError: no tokens, or more than there is room for.
        """

    @abstractmethod
    def decode_step(self, token: int) -> Logits:
        """Take in one token; logits (V,) for the next.

        Raises:
            ValueError: the state is full.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget all tokens, keeping the memory of the state."""

    @abstractmethod
    def fill(self, num_tokens: int, seed: int) -> None:
        """Stand as if `num_tokens` had been taken in, cheaply where the engine allows it.

        Every page of every cache, up to `max_context`, is written with random finite values:
        pages that nobody wrote read fast and count for nothing. An engine whose state cannot be
        reached prefills random tokens instead.
        """

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes that the state occupies."""

    @property
    def prefill_chunk(self) -> int:
        """Most tokens that prefill takes in at once: a longer prompt goes in parts of so many."""
        return self.max_context

    def close(self) -> None:  # noqa: B027  (an engine may have nothing to free)
        """Free weights and state."""


class Runtime(ABC):
    """An inference engine at the version that is installed.

    Attributes:
        name: the plug-in's name, set by the registry.
        quants: quantisations it can export, the most exact first.
        parity_tolerance: by quantisation, how far logits may be from those of eager PyTorch (at
            `reference_dtype`), in standard deviations of the logits. Where eager PyTorch itself
            rounds more than that, twice its own distance from float32 is allowed.
    """

    name: ClassVar[str] = ""
    quants: ClassVar[tuple[str, ...]] = ()
    parity_tolerance: ClassVar[Mapping[str, float]] = {}

    # --- what a subclass writes -------------------------------------------------------------

    @abstractmethod
    def version(self) -> str:
        """Version of the engine, without importing it where that is possible."""

    @abstractmethod
    def write(self, decoder: "Decoder", directory: Path, quant: str) -> dict[str, int]:
        """Write the artifact's files; returns weight bytes by precision."""

    @abstractmethod
    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        """Open an artifact whose files are verified."""

    @abstractmethod
    def start(self, threads: int) -> None:
        """Load the engine and its threads and nothing else: the baseline of memory figures.

        Called once in a measuring process, before `load`; sets what holds for the whole process,
        such as flushing denormals.
        """

    def missing(self) -> str | None:
        """What this machine lacks to run the engine, with the remedy; None when it is complete."""
        return None

    def unsupported(self, spec: StackSpec) -> str | None:
        """Why the engine cannot run a stack, or None; search treats a reason as a constraint."""
        del spec
        return None

    def device_peak_bytes(self) -> int | None:
        """Most bytes held at once on a device with memory of its own since `reset_device_peak`.

        None where the engine computes in the memory of its process, which is measured there.
        """
        return None

    def reset_device_peak(self) -> None:  # noqa: B027  (most engines have no such device)
        """Give back what nothing uses on that device; the peak starts from what is still held."""

    def precision(self, quant: str) -> str:
        """Dtype of activations and state under a quantisation."""
        return {"bf16": "bfloat16", "fp16": "float16"}.get(quant, "float32")

    def reference_dtype(self, quant: str) -> str:
        """Dtype in which eager PyTorch computes the logits to compare with."""
        return self.precision(quant)

    # --- what callers use -------------------------------------------------------------------

    def check(self, quant: str) -> None:
        """Refuse a quantisation that the engine does not know, or a machine without the engine.

        Raises:
            UserError: either; the message says what to choose or install.
        """
        if quant not in self.quants:
            raise UserError(
                f"runtime {self.name} has no quant {quant!r}; {suggest(quant, list(self.quants))}"
            )
        if missing := self.missing():
            raise UserError(f"runtime {self.name}: {missing}")

    def export(
        self, decoder: "Decoder", directory: Path, quant: str, *, parity: bool = True
    ) -> Manifest:
        """Write an artifact and compare its logits with eager PyTorch's.

        Args:
            decoder: weights in float32 or whatever they were trained in.
            directory: made if absent; a previous artifact there is replaced.
            quant: one of `quants`.
            parity: open the artifact and compare; costs one load.

        Raises:
            UserError: as `check`, the stack is unsupported, or the logits differ by more than
                `parity_tolerance`; then no manifest is left, so that nobody opens the artifact.
        """
        self.check(quant)
        if reason := self.unsupported(decoder.spec):
            raise UserError(f"runtime {self.name} cannot run this stack: {reason}")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MANIFEST).unlink(missing_ok=True)
        weight_bytes = self.write(decoder, directory, quant)
        manifest = Manifest(
            spec=decoder.spec,
            runtime=self.name,
            version=self.version(),
            quant=quant,
            precision=self.precision(quant),
            weight_bytes=weight_bytes,
            files=_checksums(directory),
        )
        if parity:
            manifest = self._check_parity(decoder, directory, manifest)
        write_atomic(directory / MANIFEST, manifest.model_dump_json(indent=1).encode())
        return manifest

    def open(self, directory: Path, threads: int, max_context: int) -> Session:
        """Load a verified artifact, with an empty state for `max_context` tokens.

        Raises:
            UserError: the artifact is not whole, was changed, or belongs to another runtime.
        """
        if missing := self.missing():
            raise UserError(f"runtime {self.name}: {missing}")
        manifest = read_manifest(directory)
        if manifest.runtime != self.name:
            raise UserError(f"{directory} was exported for {manifest.runtime}, not {self.name}")
        return self.load(directory, manifest, threads, max_context)

    def _check_parity(self, decoder: "Decoder", directory: Path, manifest: Manifest) -> Manifest:
        """The manifest with error and bound; experts are decided, so another artifact is made."""
        from archloop.runtimes._parity import decided_experts

        with decided_experts(decoder) as is_changed, TemporaryDirectory() as folder:
            if is_changed:
                directory = Path(folder)
                self.write(decoder, directory, manifest.quant)
            error, rounding = self._distances(decoder, directory, manifest)
        bound = max(self.parity_tolerance[manifest.quant], _ROUNDING_FACTOR * rounding)
        bound = min(bound, _LARGEST_BOUND)
        if not error <= bound:
            if not math.isfinite(rounding) and (part := _not_finite(decoder)):
                raise UserError(
                    f"{part} gives numbers that are not finite, in eager PyTorch too: "
                    "that part is at fault, whatever runtime is chosen"
                )
            raise UserError(
                f"runtime {self.name} ({manifest.quant}): logits differ from eager PyTorch's by "
                f"{error:.3g} standard deviations, more than {bound:.3g}; the export is wrong "
                "for this stack, so choose another runtime or quantisation"
            )
        return manifest.model_copy(update={"parity_error": error, "parity_bound": bound})

    def _distances(
        self, decoder: "Decoder", directory: Path, manifest: Manifest
    ) -> tuple[float, float]:
        """From the artifact's logits to eager PyTorch's, and from those to float32's."""
        import torch

        from archloop.runtimes._parity import distance, eager_logits, session_logits

        ids = np.random.default_rng(0).integers(
            decoder.spec.vocab_size, size=_PARITY_PROMPT + _PARITY_STEPS
        )
        prompt, more = ids[:_PARITY_PROMPT].tolist(), ids[_PARITY_PROMPT:].tolist()
        dtype = self.reference_dtype(manifest.quant)
        expected = exact = eager_logits(decoder, prompt, more, dtype)
        if dtype != "float32":
            exact = eager_logits(decoder, prompt, more, "float32", weights=dtype)
        session = self.load(directory, manifest, torch.get_num_threads(), len(ids))
        found = session_logits(session, prompt, more)
        session.close()
        return distance(found, expected), distance(expected, exact)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact whose files are all there and unchanged.

    Raises:
        UserError: it is absent or damaged, or a file does not match its checksum.
    """
    path = directory / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{directory} holds no whole artifact; export it again") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged; export the artifact again") from error
    found = _checksums(directory)
    for name, expected in manifest.files.items():
        if found.get(name) != expected:
            state = "changed" if name in found else "missing"
            raise UserError(f"{directory / name} is {state}; export the artifact again")
    return manifest


def build_random(spec: StackSpec, seed: int) -> "Decoder":
    """A decoder in evaluation mode with the random weights of a seed, which profiling needs.

    The global random state is left as it was.

    Raises:
        ValueError: the spec cannot be built.
    """
    import torch

    from archloop.stack.decoder import Decoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(spec)
    return decoder.eval().requires_grad_(False)


def _not_finite(decoder: "Decoder") -> str | None:
    """The part of a decoder that gives numbers which are not finite, by itself, on a prompt."""
    import torch

    from archloop.stack.finite import first_not_finite

    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(decoder.spec.vocab_size, (1, _PARITY_PROMPT), generator=generator)
    return first_not_finite(decoder, ids_BT)


def _checksums(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of an artifact but the manifest, by relative name."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST and not path.name.startswith("."):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(directory).as_posix()] = digest
    return found
