"""Which mixers trace into a graph with a free number of tokens, and which do not yet."""

from pathlib import Path

import pytest

from archloop import registry
from archloop.runtimes import onnx_graph
from archloop.runtimes.exporting import build_random
from archloop.runtimes.graphs import StateGraph
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

SETTINGS = {"gqa": {"head_dim": 32}, "swa": {"head_dim": 32, "window": 32}}
OTHERS = sorted(set(registry.shipped("mixers")) - onnx_graph.MIXERS)


def stack(mixer: str, channel: str = "swiglu") -> StackSpec:
    block = BlockSpec(
        mixers=(MixerSpec(name=mixer, config=SETTINGS.get(mixer, {})),),
        channel_mixer=ChannelMixerSpec(name=channel),
    )
    return StackSpec(d_model=128, vocab_size=64, blocks=(block,))


def test_a_stack_is_refused_by_the_mixers_that_do_not_trace() -> None:
    assert onnx_graph.unsupported(stack("gqa")) is None
    assert "prefill of gla is not traced" in (onnx_graph.unsupported(stack("gla")) or "")
    assert "channel mixer moe" in (onnx_graph.unsupported(stack("gqa", "moe")) or "")


def test_the_slots_of_a_cache_are_found() -> None:
    graph = StateGraph(build_random(stack("gqa"), 0))
    assert [held.slots for held in graph.held] == [2, 2]
    assert [held.next_name for held in graph.held] == ["state_0_0_k_next", "state_0_0_v_next"]
    assert [held.slots for held in StateGraph(build_random(stack("short_conv"), 0)).held] == [None]


@pytest.mark.ci
@pytest.mark.parametrize(
    "mixer",
    [
        *sorted(onnx_graph.MIXERS),
        *(
            pytest.param(name, marks=pytest.mark.xfail(strict=True, reason="fixes its tokens"))
            for name in OTHERS
        ),
    ],
)
def test_traces_with_any_number_of_tokens(mixer: str, tmp_path: Path) -> None:
    onnx_graph.write(build_random(stack(mixer), 0), tmp_path)
    assert (tmp_path / onnx_graph.MODEL).exists()
