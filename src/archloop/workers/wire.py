"""The measuring commands: what a runner on a device is asked, and what it answers.

A runner is any program that reads these messages and drives one engine: archloop's own worker
(`profiling.worker`), the one that drives an engine's benchmark on a device from here
(`profiling.bench_worker`), or a binary in C++ written from `docs/wire.md` alone. Tokens come from
the study, so that candidate and reference read the same ones; times are taken by the runner, around
what a user of its engine would call and nothing else.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from archloop.workers.messages import Done, Hello, Message, Request

Ids = tuple[Annotated[int, Field(ge=0)], ...]
Bytes = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Of work that was done: figures are means of logarithms, which only positive times have."""


class Memory(Message):
    """Memory of the runner at one moment.

    Attributes:
        peak_bytes: most resident memory since the start or the last `open`.
        resident_bytes: now.
        anonymous_bytes: of it, not backed by a file.
        file_bytes: of it, mapped from files, such as weights.
        swapped_bytes: moved out to disk.
        device_peak_bytes: the engine's peak on a device with memory of its own, such as a GPU;
            null where it computes in the process's memory.
    """

    peak_bytes: Bytes
    resident_bytes: Bytes
    anonymous_bytes: Bytes
    file_bytes: Bytes
    swapped_bytes: Bytes
    device_peak_bytes: Bytes | None = None

    @property
    def engine_peak_bytes(self) -> int:
        """Peak of the memory that the engine computes in: its device's, or the process's."""
        return self.peak_bytes if self.device_peak_bytes is None else self.device_peak_bytes


class Started(Message):
    """The engine is loaded.

    Attributes:
        memory: with nothing in it: what peaks are compared with.
        can_reset_peak: `peak_bytes` starts anew with each `open`.
        cpu_s: processor time of the runner so far.
    """

    memory: Memory
    can_reset_peak: bool
    cpu_s: float


class Start(Request[Started]):
    """Load the engine, and nothing else.

    Attributes:
        threads: that the engine computes with.
    """

    command: Literal["start"] = "start"
    threads: Annotated[int, Field(ge=1)]


class Opened(Message):
    """A model is loaded.

    Attributes:
        open_s: seconds that loading took.
        state_bytes: of the state for `max_context` tokens; null where the engine does not tell.
        prefill_pass: most tokens that one `prefill` takes in at once; a longer prompt goes in
            passes of so many.
        plans_by_shape: the first `prefill` of a length costs more than later ones, because the
            engine compiles or chooses kernels by it.
    """

    open_s: float
    state_bytes: Bytes | None
    prefill_pass: Annotated[int, Field(ge=1)]
    plans_by_shape: bool = False


class Open(Request[Opened]):
    """Load an artifact in place of the one before, with an empty state.

    Attributes:
        directory: folder of the artifact, on the device.
        max_context: tokens that the state must have room for.
    """

    command: Literal["open"] = "open"
    directory: str
    max_context: Annotated[int, Field(ge=1)]


class Fill(Request[Done]):
    """Stand as if so many tokens had been taken in, every page of the whole state written.

    An engine whose state can be reached writes random finite numbers, by `seed`; another one
    takes in random tokens.

    Attributes:
        num_tokens: that the state then holds.
        seed: of the random numbers or tokens.
    """

    command: Literal["fill"] = "fill"
    num_tokens: Annotated[int, Field(ge=0)]
    seed: int


class Prefilled(Message):
    """The prompt is taken in.

    Attributes:
        ms: milliseconds from the prompt to the id of the next token.
        finite: all logits that the token was chosen by are finite; null where the engine shows
            none.
    """

    ms: Milliseconds
    finite: bool | None


class Prefill(Request[Prefilled]):
    """Take in a prompt and choose the most likely next token.

    Attributes:
        ids: of the prompt.
        fresh: empty the state first (untimed); otherwise go on after the tokens it holds.
    """

    command: Literal["prefill"] = "prefill"
    ids: Annotated[Ids, Field(min_length=1)]
    fresh: bool


class Decoded(Message):
    """The tokens are taken in.

    Attributes:
        ms: milliseconds of each timed step.
        finite: all logits of the last step are finite; null where the engine shows none.
    """

    ms: tuple[Milliseconds, ...]
    finite: bool | None


class Decode(Request[Decoded]):
    """Take in tokens one by one, each time choosing the most likely next token.

    The tokens are given, and not those that were chosen: random weights soon repeat themselves,
    and then a mixture of experts would read the same few experts from cache.

    Attributes:
        ids: one a step.
        untimed: so many first steps are not timed.
    """

    command: Literal["decode"] = "decode"
    ids: Ids
    untimed: Annotated[int, Field(ge=0)] = 0


class LogitRows(Message):
    """Logits, as text.

    Attributes:
        rows: each is base64 of float32 numbers in little-endian order, one for each token of the
            vocabulary.
    """

    rows: tuple[str, ...]


class Logits(Request[LogitRows]):
    """From an empty state: logits after the last part of a prompt, then after each step.

    Nothing of it is timed: it is how an artifact is compared with eager PyTorch.

    Attributes:
        parts: prefills, one after the other.
        steps: tokens of the decode steps after them.
    """

    command: Literal["logits"] = "logits"
    parts: tuple[Annotated[Ids, Field(min_length=1)], ...] = Field(min_length=1)
    steps: Ids = ()


class Reading(Message):
    """What the runner has used.

    Attributes:
        memory: since the model was opened, and now.
        cpu_s: processor time of the runner so far.
    """

    memory: Memory
    cpu_s: float


class ReadMemory(Request[Reading]):
    """Peak since the model was opened, and what is resident now."""

    command: Literal["memory"] = "memory"


class Close(Request[Done]):
    """Free the model and its state."""

    command: Literal["close"] = "close"


COMMANDS: tuple[type[Request[Any]], ...] = (
    Hello,
    Start,
    Open,
    Fill,
    Prefill,
    Decode,
    Logits,
    ReadMemory,
    Close,
)
"""All that a runner must answer, in the order in which a study first asks."""
