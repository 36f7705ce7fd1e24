"""How far a cache is read: exactly on a CPU, in whole steps on a GPU, never past its end."""

import torch

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
