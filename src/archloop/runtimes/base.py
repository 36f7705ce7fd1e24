"""What an inference engine must offer: write an artifact here, run it on the device.

A runtime is one file in `runtimes/` with one subclass of `Runtime` and a `Session` of its own, in
two halves. Writing an artifact happens where the search runs, and may need an exporter or compiler
(`missing_to_export`). Running happens on the device (`missing_to_run`, asked there), by a program
that speaks the wire protocol (`runner`): our Python worker, which uses `load`, one of the engine's
own, or one here that drives the engine's own benchmark on the device (`benchmark`). The file must
import quickly: engines are imported inside methods, so that listing runtimes, or asking what one
supports, needs none of them.

Shape suffixes: V vocabulary.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.devices.base import Device
from archloop.devices.choice import DeviceChoice
from archloop.errors import UserError
from archloop.registry import suggest
from archloop.runtimes.artifact import Manifest, read_manifest
from archloop.runtimes.benchmark import Benchmark
from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    from torch import Tensor

    from archloop.runtimes.pieces import Lowered, PartName
    from archloop.runtimes.rounding import Attending, Products
    from archloop.stack.decoder import Decoder

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]

WORKER = "archloop.profiling.worker"
"""The module that speaks the wire protocol for every runtime whose sessions are Python objects."""
BENCH_WORKER = "archloop.profiling.bench_worker"
"""The one that runs on this machine and drives an engine's own benchmark on the device."""


class Runner(NamedTuple):
    """The program that speaks the wire protocol for a device.

    Attributes:
        argv: program and arguments; ``{files}`` in them stands for the folder of `files` there.
        files: folder to push to the device beforehand; None where nothing has to be brought.
        here: the program runs on this machine and reaches the device itself.
    """

    argv: tuple[str, ...]
    files: Path | None = None
    here: bool = False


class Session(ABC):
    """A loaded model with the state of one sequence, which the engine holds where it can.

    `prefill` and `decode_step` are what is timed, so they do what a user of the engine does and
    nothing else: prompts are checked and converted before (`prepare`), the next token is chosen by
    the engine where it can, and logits come to the host only when asked for (`logits`).

    Attributes:
        max_context: tokens that the state has room for.
        vocab_size: ids are below it.
        plans_by_shape: the first prefill of so many tokens at some depth costs more than later
            ones, because the engine compiles or chooses kernels by these numbers.
    """

    max_context: int
    vocab_size: int
    plans_by_shape: ClassVar[bool] = False

    def prepare(self, ids: Sequence[int]) -> Ids:
        """A prompt as `prefill` takes it, checked.

        Raises:
            ValueError: there are no tokens, or one is not in the vocabulary.
        """
        prompt = np.array(ids, np.int64)
        if not prompt.size:
            raise ValueError("prefill needs at least one token")
        for token in (int(prompt.min()), int(prompt.max())):
            self.check_known(token)
        return prompt

    def check_known(self, token: int) -> None:
        """Refuse an id outside the vocabulary: on a GPU its lookup would end the process.

        Raises:
            ValueError: it is.
        """
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} is not in the vocabulary of {self.vocab_size}")

    def check_room(self, num_held: int, num_new: int) -> None:
        """Refuse new tokens for which a state that holds others has no room.

        Raises:
            ValueError: there is too little room.
        """
        if num_held + num_new > self.max_context:
            raise ValueError(
                f"the session has room for {self.max_context} tokens, holds {num_held} and "
                f"was given {num_new} more; open it with a larger max_context"
            )

    @abstractmethod
    def prefill(self, ids: Ids) -> int:
        """Take in prepared tokens after those already held; the most likely next one.

        Raises:
            ValueError: more tokens than there is room for.
        """

    @abstractmethod
    def decode_step(self, token: int) -> int:
        """Take in one token; the most likely next one.

        Raises:
            ValueError: the state is full, or the token is not in the vocabulary.
        """

    @abstractmethod
    def logits(self) -> Logits:
        """Logits (V,) that the last call chose its token by."""

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
    def state_bytes(self) -> int | None:
        """Bytes that the state occupies; None where the engine does not tell."""

    @property
    def prefill_pass(self) -> int:
        """Most tokens that prefill takes in at once: a longer prompt goes in passes of so many."""
        return self.max_context

    def close(self) -> None:  # noqa: B027  (an engine may have nothing to free)
        """Free weights and state."""


class Runtime(ABC):
    """An inference engine at the version that is installed.

    Attributes:
        name: the plug-in's name, set by the registry.
        quants: quantisations it can export, the most exact first.
        parity_tolerance: by quantisation, how far logits may be from those of eager PyTorch (at
            `reference_dtype`, with weights and products rounded as `products` says), in standard
            deviations of the logits. Where rounding of activations moves eager PyTorch itself by
            more than that, twice as far is allowed.
        lowers_pieces: it writes `lower` and `join`, by which a stack of pieces that were lowered
            before is an artifact in seconds.
        streams: it writes `write_streamed`, for stacks that memory does not hold.
        rounds_by_artifact: `products` reads the artifact's files; not where it follows from the
            decoder alone.
        writers: packages besides the engine whose versions decide what an artifact holds.
        on_card: it computes on a graphics card, which a measurement then needs alone.
        imports: modules that its Python process needs, and whose import starts no thread and
            reaches for no graphics card, so that processes may be forked from one that has them;
            empty: each process is started.
        likely_imports: groups of modules that many stacks need besides, the surest first; whether
            their import starts a thread or reaches for a card hangs on the versions of libraries,
            so that those which do are left out.
    """

    name: ClassVar[str] = ""
    quants: ClassVar[tuple[str, ...]] = ()
    parity_tolerance: ClassVar[Mapping[str, float]] = {}
    lowers_pieces: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    rounds_by_artifact: ClassVar[bool] = True
    writers: ClassVar[tuple[str, ...]] = ()
    on_card: ClassVar[bool] = False
    imports: ClassVar[tuple[str, ...]] = ()
    likely_imports: ClassVar[tuple[tuple[str, ...], ...]] = ()

    # --- what a subclass writes -------------------------------------------------------------

    @abstractmethod
    def version(self) -> str:
        """Version of the engine that exports, without importing it where that is possible."""

    @abstractmethod
    def write(self, decoder: "Decoder", directory: Path, quant: str) -> dict[str, int]:
        """Write the artifact's files; returns weight bytes by precision."""

    @abstractmethod
    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        """Open an artifact whose files are verified."""

    @abstractmethod
    def start(self, threads: int) -> None:
        """Load the engine and its threads and nothing else: what memory figures are taken above.

        Called once in a measuring process, before `load`; sets what holds for the whole process,
        such as flushing denormals.
        """

    def lower(
        self, decoder: "Decoder", part: "PartName", directory: Path, quant: str
    ) -> dict[str, int]:
        """Write the files of one piece (`runtimes.pieces`); returns weight bytes by precision.

        Args:
            decoder: of the piece's stack, with its weights.
            part: of its stack, that the piece is.
            directory: empty.
            quant: one of the runtime's.
        """
        raise AssertionError(f"{type(self).__name__} lowers no pieces")

    def join(self, pieces: Sequence["Lowered"], directory: Path, quant: str) -> dict[str, int]:
        """Write an artifact's files from those of its pieces in order; returns as `write`."""
        raise AssertionError(f"{type(self).__name__} joins no pieces")

    def write_streamed(
        self, spec: StackSpec, tensors: Mapping[str, "Tensor"], directory: Path, quant: str
    ) -> dict[str, int]:
        """Write the artifact's files of a decoder that exists a part at a time; returns as `write`.

        Args:
            spec: of the stack.
            tensors: of its decoder by name, each made when it is asked for.
            directory: as in `write`.
            quant: likewise.
        """
        raise AssertionError(f"{type(self).__name__} streams nothing")

    def missing_to_export(self) -> str | None:
        """What this machine lacks to write artifacts, with the remedy; None when it is complete."""
        return None

    def missing_to_run(self) -> str | None:
        """What this machine lacks to run artifacts, with the remedy; None when it is complete.

        Asked on the device, before `start`.
        """
        return None

    def runner(self, device: Device) -> Runner:
        """The program that runs artifacts on a device.

        By default archloop's own worker there; without a Python there, the engine's benchmark.

        Raises:
            UserError: there is none for this device; the message says what to do.
        """
        if (python := device.python_argv()) is not None:
            return Runner((*python, "-m", WORKER))
        lacking = f"device {device.name} has no Python with archloop, which runtime {self.name}"
        if (benchmark := self.benchmark()) is None:
            raise UserError(
                f"{lacking} needs; give the device's setting for it, or choose a runtime with a "
                "runner of its own"
            )
        program, programs = benchmark.program, device.programs()
        if programs is None:
            raise UserError(
                f"{lacking} can do without if the device's setting `programs` names a folder here "
                f"with {program}, built for the device's processor (docs/phones.md says how)"
            )
        if not (programs / program).is_file():
            raise UserError(
                f"device {device.name}: its `programs` {programs} holds no {program}; build it for "
                "the device's processor (docs/phones.md says how)"
            )
        settings = device.config.model_dump(mode="json", exclude_defaults=True)
        reached = DeviceChoice(name=device.name, **settings).model_dump_json()
        argv = (sys.executable, "-P", "-m", BENCH_WORKER, reached, "{files}")
        return Runner(argv, files=programs, here=True)

    def benchmark(self) -> Benchmark | None:
        """The engine's own benchmark program, for devices without Python; None: not known here."""
        return None

    def unsupported(self, spec: StackSpec) -> str | None:
        """Why the engine cannot run a stack, or None; search treats a reason as a constraint."""
        del spec
        return None

    def add_tokenizer(self, directory: Path, folder: Path) -> str | None:
        """Put a checkpoint's tokenizer into the files just written, if the engine's hold one.

        Args:
            directory: of the files, before their checksums are taken.
            folder: of the checkpoint.

        Returns:
            Why it cannot be there; None if it is, or if the engine's files hold none.
        """
        del directory, folder
        return None

    def written_by(self) -> str:
        """Versions of all that decides what an artifact holds; one that is not installed is "-"."""

        def version(name: str) -> str:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                return "-"

        others = (f"{name}{version(name)}" for name in self.writers)
        return "+".join((self.version(), *others))

    def command(self, directory: Path) -> str | None:
        """A command of the engine's own that runs an artifact, without archloop; None if none."""
        del directory
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

    def products(self, decoder: "Decoder", directory: Path, quant: str) -> "Products":
        """How the artifact in a folder rounds in its products; empty where weights are exact.

        Quantised weights are far from the decoder's, and engines that compute with them well are
        all equally far: only a comparison with the very weights that the artifact holds tells a
        fault from rounding. The default is for weights in the precision of `reference_dtype`.
        """
        del decoder, directory, quant
        return {}

    def joined_products(
        self, pieces: "Sequence[Lowered]", decoder: "Decoder", directory: Path, quant: str
    ) -> "Products":
        """As `products`, of what `join` made of pieces; the default looks at that alone."""
        del pieces
        return self.products(decoder, directory, quant)

    def attention(self) -> "Attending | None":
        """How the engine rounds in attention, beside its products; None: it does not."""
        return None

    # --- what callers use -------------------------------------------------------------------

    def check(self, quant: str) -> None:
        """Refuse a quantisation that the engine does not know, or a machine without its exporter.

        Raises:
            UserError: either; the message says what to choose or install.
        """
        if quant not in self.quants:
            raise UserError(
                f"runtime {self.name} has no quant {quant!r}; {suggest(quant, list(self.quants))}"
            )
        if missing := self.missing_to_export():
            raise UserError(f"runtime {self.name}: {missing}")

    def open(self, directory: Path, threads: int, max_context: int) -> Session:
        """Load a verified artifact, with an empty state for `max_context` tokens.

        Raises:
            UserError: the artifact is not whole, was changed, or belongs to another runtime.
        """
        if missing := self.missing_to_run():
            raise UserError(f"runtime {self.name}: {missing}")
        manifest = read_manifest(directory)
        if manifest.runtime != self.name:
            raise UserError(f"{directory} was exported for {manifest.runtime}, not {self.name}")
        return self.load(directory, manifest, threads, max_context)

    def runs_here(self) -> bool:
        """Whether this very process can load an artifact: the engine is here, and in Python."""
        return type(self).runner is Runtime.runner and self.missing_to_run() is None
