"""llama.cpp on a CPU, through ``llama-cpp-python``: GGUF files of the families that it knows.

The engine keeps the state itself and nobody else can write it, so a deep context is taken in once
and comes back from a file (`_LlamaSession.fill`). The next token is chosen by its greedy sampler.
"""

import ctypes
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Ids, Logits, Runtime, Session
from archloop.runtimes.benchmark import Benchmark
from archloop.runtimes.gguf.bench import LlamaBench
from archloop.runtimes.gguf.engine import engine, libraries
from archloop.scratch import Scratch
from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    from torch import Tensor

    from archloop.runtimes.rounding import Attending, Products
    from archloop.stack.decoder import Decoder

MODEL = "model.gguf"
PREFILL_PASS = 512
"""Tokens per call in prefill: llama.cpp's own default."""


class LlamaCpp(Runtime):
    """llama.cpp; the artifact is one GGUF file."""

    quants = ("f16", "q8_0", "q4_0")
    streams = True
    writers = ("gguf", "torch")
    parity_tolerance: ClassVar[Mapping[str, float]] = dict.fromkeys(quants, 0.02)

    def version(self) -> str:
        return metadata.version("llama_cpp_python")

    def missing_to_export(self) -> str | None:
        if find_spec("gguf") is None:
            return "needs the gguf package; pip install 'archloop[llama]'"
        return self.missing_to_run()

    def missing_to_run(self) -> str | None:
        found = find_spec("llama_cpp")
        if found is None or found.origin is None:
            return "needs llama.cpp; pip install 'archloop[llama-cpp]', which compiles it"
        folder = libraries()
        if any(folder.glob("*llama.*")):
            return None
        return f"needs llama.cpp's library, and {folder} has none; set LLAMA_CPP_LIB_PATH to it"

    def unsupported(self, spec: StackSpec) -> str | None:
        from archloop.runtimes.gguf import file as gguf_file

        return gguf_file.unsupported(spec)

    def write(self, decoder: "Decoder", directory: Path, quant: str) -> dict[str, int]:
        from archloop.runtimes.gguf import file as gguf_file

        exact, model = directory / "float32.gguf", directory / MODEL
        gguf_file.write(decoder, exact)
        _quantize(exact, model, quant)
        exact.unlink()
        return gguf_file.weight_bytes(model)

    def write_streamed(
        self, spec: StackSpec, tensors: Mapping[str, "Tensor"], directory: Path, quant: str
    ) -> dict[str, int]:
        from archloop.runtimes.gguf import file as gguf_file
        from archloop.runtimes.gguf import streaming as gguf_streaming

        model = directory / MODEL
        gguf_streaming.write(spec, tensors, model, partial(_quantize, quant=quant))
        return gguf_file.weight_bytes(model)

    def products(self, decoder: "Decoder", directory: Path, quant: str) -> "Products":
        from archloop.runtimes.gguf import rounding as gguf_rounding

        del quant
        return gguf_rounding.products(decoder, directory / MODEL)

    def attention(self) -> "Attending":
        from archloop.runtimes.gguf import rounding as gguf_rounding

        return gguf_rounding.flash_attention

    def add_tokenizer(self, directory: Path, folder: Path) -> str | None:
        from archloop.runtimes.gguf import vocabulary as gguf_vocabulary

        return gguf_vocabulary.add(directory / MODEL, folder)

    def command(self, directory: Path) -> str:
        from archloop.runtimes.gguf import vocabulary as gguf_vocabulary

        if gguf_vocabulary.has_one(directory / MODEL):
            return f"llama-cli -m {directory / MODEL}"
        return f"llama-bench -m {directory / MODEL} -p 512 -n 128"

    def benchmark(self) -> Benchmark:
        return LlamaBench(MODEL)

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        return _LlamaSession(directory, manifest.spec.vocab_size, threads, max_context)

    def start(self, threads: int) -> None:
        del threads  # A context's own.
        engine()


class _LlamaSession(Session):
    """A model and a context, whose memory holds one sequence."""

    def __init__(self, directory: Path, vocab_size: int, threads: int, max_context: int) -> None:
        self._llama = llama = engine()
        self.max_context, self.vocab_size, self.num_tokens = max_context, vocab_size, 0
        self._model = llama.llama_model_load_from_file(
            str(directory / MODEL).encode(), llama.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {directory / MODEL}")
        settings = llama.llama_context_default_params()
        settings.n_ctx = max_context
        settings.n_batch = settings.n_ubatch = PREFILL_PASS
        settings.n_threads = settings.n_threads_batch = threads
        # As in llama.cpp's own programs: windowed blocks keep their window, not the whole context.
        settings.swa_full = False
        self._context = llama.llama_init_from_model(self._model, settings)
        if not self._context:
            raise ValueError(f"llama.cpp has no memory for a context of {max_context} tokens")
        self._memory = llama.llama_get_memory(self._context)
        self._greedy = llama.llama_sampler_init_greedy()
        self._saved: dict[tuple[int, int], str] = {}
        self._folder = Scratch("session")

    def prefill(self, ids: Ids) -> int:
        self.check_room(self.num_tokens, len(ids))
        tokens = ids.astype(np.int32)
        for start in range(0, len(tokens), PREFILL_PASS):
            self._take(tokens[start : start + PREFILL_PASS])
        return self._chosen()

    def decode_step(self, token: int) -> int:
        self.check_known(token)
        self.check_room(self.num_tokens, 1)
        self._take(np.array([token], np.int32))
        return self._chosen()

    def logits(self) -> Logits:
        row = self._llama.llama_get_logits_ith(self._context, -1)
        logits_V: Logits = np.ctypeslib.as_array(row, (self.vocab_size,))
        return logits_V

    def reset(self) -> None:
        self._llama.llama_memory_clear(self._memory, True)
        self.num_tokens = 0

    def fill(self, num_tokens: int, seed: int) -> None:
        self.reset()
        self.check_room(self.num_tokens, num_tokens)
        if num_tokens == 0:
            return
        if saved := self._saved.get((num_tokens, seed)):
            self._restore(saved, num_tokens)
            return
        tokens = np.random.default_rng(seed).integers(self.vocab_size, size=num_tokens)
        self.prefill(tokens)
        self._saved[num_tokens, seed] = self._save(f"{num_tokens}-{seed}")

    @property
    def state_bytes(self) -> None:
        # What llama.cpp tells is the size of a saved state, which has the tokens so far alone.
        return None

    @property
    def prefill_pass(self) -> int:
        return min(PREFILL_PASS, self.max_context)

    def close(self) -> None:
        self._llama.llama_sampler_free(self._greedy)
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)
        self._folder.cleanup()

    def _take(self, tokens: Any) -> None:
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch = self._llama.llama_batch_get_one(pointer, len(tokens))
        if status := self._llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gave {status}")
        self.num_tokens += len(tokens)

    def _chosen(self) -> int:
        return int(self._llama.llama_sampler_sample(self._greedy, self._context, -1))

    def _save(self, name: str) -> str:
        """Write the state into a file: a copy in memory would count in a peak."""
        path = str(Path(self._folder.name) / name)
        none = (ctypes.c_int32 * 1)()
        written = self._llama.llama_state_seq_save_file(self._context, path.encode(), 0, none, 0)
        if not written:
            raise OSError(f"llama.cpp cannot write its state to {path}; is the disk full?")
        return path

    def _restore(self, path: str, num_tokens: int) -> None:
        none, count = (ctypes.c_int32 * 1)(), ctypes.c_size_t(0)
        read = self._llama.llama_state_seq_load_file(
            self._context, path.encode(), 0, none, 0, ctypes.byref(count)
        )
        if not read:
            raise OSError(f"llama.cpp cannot read its state from {path}")
        self.num_tokens = num_tokens


def _quantize(exact: Path, model: Path, quant: str) -> None:
    """By llama.cpp itself, so that a file is quantised as its users' are."""
    llama = engine()
    settings = llama.llama_model_quantize_default_params()
    settings.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{quant.upper()}")
    if llama.llama_model_quantize(str(exact).encode(), str(model).encode(), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp could not quantise {exact} to {quant}")
