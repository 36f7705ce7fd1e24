"""A proxy's scores as engines compute: the same where nothing is rounded, worse in fewer bits."""

import pytest
import torch

from archloop import registry
from archloop.checkpoints.loading import load
from archloop.errors import UserError
from archloop.proxy import mixture, quantised, scoring
from archloop.proxy.config import ProxyConfig
from archloop.proxy.mixture import ProxyData
from archloop.proxy.proxy import TEXT, train_and_score
from archloop.proxy.record import TrainJob
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

CONFIG = ProxyConfig.model_validate(
    {
        "corpus": {"source": "files", "paths": ["text.txt"], "heldout_share": 0.3},
        "vocab_size": 260,
        "num_text_windows": 8,
        "tasks": {},
        "rungs": [30],
        "training": {"batch_size": 4, "seq_len": 32, "warmup_steps": 2, "base_width": None},
    }
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ProxyData:
    root = tmp_path_factory.mktemp("recipe")
    lines = [f"entry {i} holds {i * i}\n" + "\n" * (i % 5 == 0) for i in range(3000)]
    (root / "text.txt").write_text("".join(lines))
    return mixture.prepare(CONFIG, root / "cache", root)


@pytest.fixture(scope="module")
def trained(data: ProxyData, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    channel = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    names = ("short_conv", "gqa")
    spec = StackSpec(
        d_model=64,
        vocab_size=data.vocab_size,
        blocks=tuple(
            BlockSpec(mixers=(MixerSpec(name=name),), channel_mixer=channel) for name in names
        ),
    )
    folder = tmp_path_factory.mktemp("trained") / "weights"
    job = TrainJob(spec=spec, num_steps=30, seed=0, weights_to=folder)
    assert not train_and_score(job, data, CONFIG).diverged
    return load(folder, dtype=torch.float32).eval()


def bits(decoder: Decoder, runtime: str, quant: str, data: ProxyData) -> float:
    engine = registry.get("runtimes", runtime)()
    if missing := engine.missing_to_export():
        pytest.skip(missing)
    return quantised.scores(decoder, engine, quant, data, CONFIG)[TEXT].value


def test_nothing_is_lost_where_nothing_is_rounded(trained: Decoder, data: ProxyData) -> None:
    exact = scoring.evaluate(trained, data, CONFIG)[TEXT].value
    assert bits(trained, "torch_eager", "fp32", data) == exact
    half = bits(trained, "torch_eager", "bf16", data)
    assert half != exact
    assert half == pytest.approx(exact, rel=0.01)
    assert all(each.dtype == torch.float32 for each in trained.parameters()), "left as it was"


def test_fewer_bits_lose_more(trained: Decoder, data: ProxyData) -> None:
    exact = scoring.evaluate(trained, data, CONFIG)[TEXT].value
    int8, int4 = (bits(trained, "onnx_runtime", quant, data) for quant in ("int8", "int4"))
    assert abs(int8 - exact) < abs(int4 - exact)
    assert int4 > exact
    assert scoring.evaluate(trained, data, CONFIG)[TEXT].value == exact, "left as it was"


def test_a_stack_that_an_engine_does_not_run_has_no_scores_there(
    trained: Decoder, data: ProxyData
) -> None:
    class WithoutAttention(TorchEager):
        def unsupported(self, spec: StackSpec) -> str | None:
            return "block 1 has gqa" if "gqa" in spec.layout else None

    with pytest.raises(UserError, match="cannot run this stack: block 1 has gqa"):
        quantised.scores(trained, WithoutAttention(), "bf16", data, CONFIG)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("runtime", "quant"), [("openvino", "int4"), ("executorch", "8da4w"), ("llama_cpp", "q4_0")]
)
def test_every_engine_says_how_it_rounds(
    runtime: str, quant: str, trained: Decoder, data: ProxyData
) -> None:
    exact = scoring.evaluate(trained, data, CONFIG)[TEXT].value
    found = bits(trained, runtime, quant, data)
    assert found != exact
    assert found == pytest.approx(exact, rel=0.2)
