"""A runtime whose engine is a program of its own: stacks of gated convolutions, in plain Python."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from archloop.devices.base import Device
from archloop.errors import UserError
from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Runner, Runtime, Session
from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    from archloop.stack.decoder import Decoder

PROGRAM = Path(__file__).parents[2] / "plain_runner"


class Plain(Runtime):
    quants = ("fp32", "wrong")
    parity_tolerance: ClassVar[Mapping[str, float]] = {"fp32": 1e-4, "wrong": 1e-4}

    def version(self) -> str:
        return "1"

    def unsupported(self, spec: StackSpec) -> str | None:
        layout = set(spec.layout)
        return None if layout == {"short_conv"} else f"it runs short_conv alone, not {layout}"

    def runner(self, device: Device) -> Runner:
        # -I and -S: neither this folder, nor the environment, nor any installed package.
        return Runner(("python3", "-I", "-S", "{files}/runner.py"), files=PROGRAM)

    def start(self, threads: int) -> None:
        raise UserError("plain runs by its own program only")

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        raise UserError("plain runs by its own program only")

    def write(self, decoder: "Decoder", directory: Path, quant: str) -> dict[str, int]:
        spec = decoder.spec
        model = {
            "d_model": spec.d_model,
            "eps": spec.norm_eps,
            "num_blocks": spec.num_blocks,
            "weights": {name: p.float().tolist() for name, p in decoder.named_parameters()},
        }
        if quant == "wrong":
            model["weights"]["norm.weight"][0] += 1.0
        (directory / "model.json").write_text(json.dumps(model))
        return {"float32": sum(4 * p.numel() for p in decoder.parameters())}
