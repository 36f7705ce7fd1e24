"""Artifacts load in their engines without archloop, and give the logits that they must."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from archloop import registry
from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.parity import distance, eager_logits
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

WITHOUT_US = """
import json, sys
import numpy as np
sys.modules["archloop"] = None  # An import of it fails.
folder, prompt, steps = sys.argv[1], *json.loads(sys.argv[2])
{engine}
np.save(sys.argv[3], np.stack(rows))
"""
"""A program that runs an artifact with its engine alone: `rows` are the logits it gives."""

ONNX_RUNTIME = """
import onnxruntime
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
state = {}
for each in json.load(open(folder + "/state.json")):
    shape = [64 if axis == each["slots"] else size for axis, size in enumerate(each["shape"])]
    state[each["name"]] = np.zeros(shape, each["dtype"])
names = [output.name for output in session.get_outputs()]
rows, length = [], 0
for call in (prompt, *([token] for token in steps)):
    given = {"ids": np.array([call]), "length": np.array([length]), **state}
    found = dict(zip(names, session.run(None, given)))
    state = {name: found[name + "_next"] for name in state}
    rows.append(found["logits"][0])
    length += len(call)
"""

OPENVINO = """
import openvino
compiled = openvino.Core().compile_model(folder + "/model.xml", "CPU", {
    "INFERENCE_PRECISION_HINT": "f32"})
state = {}
for each in json.load(open(folder + "/state.json")):
    slots = 0 if each["grows"] else 64
    shape = [slots if axis == each["slots"] else size for axis, size in enumerate(each["shape"])]
    state[each["name"]] = np.zeros(shape, each["dtype"])
rows, length = [], 0
for call in (prompt, *([token] for token in steps)):
    found = compiled({"ids": np.array([call]), "length": np.array([length]), **state})
    state = {name: found[name + "_next"].copy() for name in state}
    rows.append(found["logits"][0].copy())
    length += len(call)
"""

LLAMA_CPP = """
import llama_cpp
model = llama_cpp.Llama(folder + "/model.gguf", n_ctx=64, logits_all=True, verbose=False)
rows = []
for call in (prompt, *([token] for token in steps)):
    model.eval(call)
    rows.append(np.array(model.scores[model.n_tokens - 1]))
"""

ENGINES = {
    "onnx_runtime": (ONNX_RUNTIME, "fp32", 1e-4),
    "openvino": (OPENVINO, "fp32", 1e-4),
    "llama_cpp": (LLAMA_CPP, "f16", 0.02),
}


def spec() -> StackSpec:
    swiglu = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    mixers = (MixerSpec(name="short_conv"), MixerSpec(name="gqa", config={"head_dim": 64}))
    blocks = tuple(BlockSpec(mixers=(mixer,), channel_mixer=swiglu) for mixer in mixers)
    return StackSpec(d_model=128, vocab_size=256, blocks=blocks)


@pytest.mark.ci
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_runs_an_artifact_alone(name: str, tmp_path: Path) -> None:
    program, quant, tolerance = ENGINES[name]
    runtime = registry.get("runtimes", name)()
    if missing := runtime.missing_to_export() or runtime.missing_to_run():
        pytest.skip(missing)
    decoder = build_random(spec(), 3)
    manifest = export(runtime, decoder, tmp_path / "artifact", quant, parity=False)
    assert manifest.version == runtime.version()
    prompt, steps = [5, 9, 200, 17, 3], [8, 1, 77]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_US.replace("{engine}", program),
            str(tmp_path / "artifact"),
            json.dumps([prompt, steps]),
            str(tmp_path / "rows.npy"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]
    found = np.load(tmp_path / "rows.npy")
    assert distance(found, eager_logits(decoder, prompt, steps, "float32")) < tolerance
