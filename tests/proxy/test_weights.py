"""A kept proxy: a checkpoint in float16 that answers as the trained one did."""

from pathlib import Path

import pytest
import torch

from archloop.checkpoints.loading import load
from archloop.evals import bits_per_byte
from archloop.evals.decoder_model import DecoderModel
from archloop.generation.model import load_model, stream
from archloop.generation.sampling import Sampling
from archloop.proxy import mixture, proxy
from archloop.proxy.config import ProxyConfig
from archloop.proxy.record import Rung, TrainJob
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

CONFIG = ProxyConfig(
    corpus={"source": "files", "paths": ("text.txt",), "heldout_share": 0.3},
    vocab_size=260,
    num_text_windows=8,
    rungs=(30,),
    training={"batch_size": 4, "seq_len": 32, "learning_rate": 1e-2},
)
SPEC = StackSpec(
    d_model=32,
    vocab_size=260,
    blocks=tuple(
        BlockSpec(mixers=(MixerSpec(name=name),), channel_mixer=ChannelMixerSpec(name="swiglu"))
        for name in ("short_conv", "mamba2")
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> mixture.ProxyData:
    folder = tmp_path_factory.mktemp("recipe")
    lines = [f"entry {i} holds {i * i}\n" + "\n" * (i % 5 == 0) for i in range(6000)]
    (folder / "text.txt").write_text("".join(lines))
    return mixture.prepare(CONFIG, folder / "cache", folder)


@pytest.fixture(scope="module")
def kept(data: mixture.ProxyData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rung, Path]:
    folder = tmp_path_factory.mktemp("trial") / "weights"
    job = TrainJob(spec=SPEC, num_steps=30, seed=3, weights_to=folder)
    return proxy.train_and_score(job, data, CONFIG), folder


def test_what_was_kept_scores_as_what_was_trained(
    kept: tuple[Rung, Path], data: mixture.ProxyData
) -> None:
    rung, folder = kept
    windows_NT = bits_per_byte.windows(data.heldout_T, 8, 32)
    model = DecoderModel(load(folder, torch.float32))
    found = bits_per_byte.measure(model, windows_NT, data.num_bytes_V)
    assert found.value == pytest.approx(rung.scores["bits_per_byte"].value, abs=2e-3)
    # Eight bits are a guess; this one learnt something, so the comparison says something.
    assert found.value < 6


def test_it_is_kept_in_float16_with_its_tokenizer_and_generates(kept: tuple[Rung, Path]) -> None:
    _, folder = kept
    dtypes = {name: weight.dtype for name, weight in load(folder).named_parameters()}
    assert dtypes["embedding.weight"] == torch.float16
    # What a mixer keeps in float32 whatever it is told, such as decays, stays so here.
    assert set(dtypes.values()) == {torch.float16, torch.float32}
    model = load_model(folder, torch.float32)
    assert len(model.stop_ids) == 1
    text = "".join(stream(model, "entry 1", Sampling(temperature=0), max_new_tokens=8))
    assert text


def test_keeping_changes_no_number(kept: tuple[Rung, Path], data: mixture.ProxyData) -> None:
    rung, _ = kept
    job = TrainJob(spec=SPEC, num_steps=30, seed=3)
    again = proxy.train_and_score(job, data, CONFIG)
    seconds = {"train_s", "eval_s"}
    assert again.model_dump(exclude=seconds) == rung.model_dump(exclude=seconds)


def test_a_training_that_diverged_keeps_what_was_there(
    kept: tuple[Rung, Path], data: mixture.ProxyData
) -> None:
    _, folder = kept
    before = (folder / "model.safetensors").read_bytes()
    wild = CONFIG.model_copy(
        update={"training": CONFIG.training.model_copy(update={"grad_clip": None})}
    )
    job = TrainJob(spec=SPEC, num_steps=30, seed=3, learning_rate=1e30, weights_to=folder)
    assert proxy.train_and_score(job, data, wild).diverged
    assert (folder / "model.safetensors").read_bytes() == before
