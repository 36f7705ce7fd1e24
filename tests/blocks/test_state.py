"""How far a cache is read: exactly on a CPU, in whole steps on a GPU, never past its end."""

import pytest
import torch

from archloop import registry
from archloop.blocks.base import State

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def held(num_tokens: int, max_context: int = 1000) -> State:
    state = State(max_context, k=torch.zeros(1))
    state.num_tokens = num_tokens
    return state


def test_reach_counts_tokens_and_stops_at_the_end() -> None:
    assert held(7).reach(3) == 10
    assert held(999).reach(5) == 1000


def test_decode_on_a_gpu_reads_whole_steps() -> None:
    assert [held(n).step_reach(GPU) for n in (0, 255, 256, 900)] == [256, 256, 512, 1000]
    assert [held(n).step_reach(CPU) for n in (0, 255)] == [1, 256]


def test_a_static_state_is_always_read_whole() -> None:
    state = held(3)
    state.static = True
    assert state.reach(1) == state.step_reach(GPU) == state.step_reach(CPU) == 1000


# At d_model 1024, 4,096 tokens, bfloat16: 2 bytes a cached value, 4 a recurrent one.
STATE_BYTES = {
    "short_conv": 2 * 2 * 1024,
    "gqa": 2 * 2 * 4 * 64 * 4096,
    "swa": 2 * 2 * 4 * 64 * 512,
    "mla": 2 * (128 + 32) * 4096,
    "gla": 4 * 16 * 32 * 64,
    "hgrn2": 4 * 16 * 64 * 64,
    "gated_deltanet": 4 * 32 * 64 * 64 + 2 * 3 * 4096,
    "kda": 4 * 16 * 64 * 64 + 2 * 3 * 3072,
    "mamba": 4 * 2048 * 16 + 2 * 3 * 2048,
    "mamba2": 4 * 32 * 128 * 64 + 2 * 3 * 2304,
    "mamba3": 4 * 32 * (64 * 64 + 16 + 64 + 64),
    "s4": 4 * 1024 * 32,
    "s4d": 4 * 1024 * 32,
    "liquid_s4": 4 * 1024 * 16,
    "rtf": 4 * 1024 * 16,
    "s5": 4 * 2 * 512,
    "cfc": 4 * 1024,
    "linear_cfc": 4 * 1024,
}


@pytest.mark.parametrize("name", STATE_BYTES)
def test_state_is_as_large_as_the_family_says(name: str) -> None:
    config = registry.get("mixers", name).Config()
    assert config.state_bytes(1024, 4096, torch.bfloat16) == STATE_BYTES[name]


def test_state_takes_the_dtype_of_activations_where_some_parameters_stay_float32() -> None:
    state = registry.get("mixers", "mamba2").Config().build(128).bfloat16().init_state(2, 8)
    assert (state["conv"].dtype, state["kv"].dtype) == (torch.bfloat16, torch.float32)
    assert state["conv"].shape[0] == state["kv"].shape[0] == 2
