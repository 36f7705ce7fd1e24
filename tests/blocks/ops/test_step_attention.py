"""One query token a row: parts of the slots, joined on a GPU, say what a loop over rows says."""

import pytest
import torch
from torch import Tensor

from accelerator import DEVICE, DTYPES, INTERPRETED
from archloop.blocks.ops.attention import attention_step
from archloop.blocks.ops.gpu import step_attention as gpu

pytestmark = pytest.mark.gpu

ERROR = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
# batch, KV heads, query heads of each, slots, key width, value width
SHAPES = [
    (1, 1, 1, 1, 64, 64),
    (2, 2, 3, 40, 64, 64),
    (1, 2, 4, 300, 128, 128),
    (3, 1, 20, 130, 20, 24),
    (2, 1, 6, 70, 576, 512),
]
LONG = [] if INTERPRETED else [(1, 2, 8, 32768, 256, 256), (2, 1, 128, 5000, 576, 512)]


def loop(q_BMGK: Tensor, k_BMSK: Tensor, v_BMSV: Tensor, last_B: Tensor, scale: float) -> Tensor:
    """From the definition, in float64, slots that are not seen cut off."""
    rows = []
    for q_MGK, k_MSK, v_MSV, last in zip(q_BMGK, k_BMSK, v_BMSV, last_B.tolist(), strict=True):
        k, v = k_MSK[:, : last + 1].double(), v_MSV[:, : last + 1].double()
        rows.append((scale * q_MGK.double() @ k.mT).softmax(-1) @ v)
    return torch.stack(rows)


def error(out: Tensor, ref: Tensor) -> float:
    assert torch.isfinite(out).all()
    return float((out.double() - ref).norm() / ref.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + LONG)
def test_parts_of_the_slots_say_what_a_loop_over_rows_says(shape, dtype, monkeypatch) -> None:
    batch, num_kv, group, slots, key_width, width = shape
    if INTERPRETED:
        # Parts of a few slots each, as a long context has on a card.
        monkeypatch.setattr(gpu, "SLOTS_OF_A_PART", 16)
    torch.manual_seed(0)
    q = torch.randn(batch, num_kv, group, key_width, device=DEVICE, dtype=dtype)
    # Rows of a cache with room for more; what nobody has written yet may be anything.
    cache = torch.randn(batch, num_kv, slots + 3, key_width + width, device=DEVICE, dtype=dtype)
    cache[:, :, slots:] = torch.nan
    k, v = cache[:, :, :slots, :key_width], cache[:, :, :slots, -width:]
    last = torch.randint(0, slots, (batch,), device=DEVICE)
    last[-1] = slots - 1
    for row, end in enumerate(last.tolist()):
        cache[row, :, end + 1 :] = torch.nan
    scale = key_width**-0.5
    out = gpu.attention_step(q, k, v, last, scale)
    assert error(out, loop(q, k, v, last, scale)) < ERROR[dtype]
    # Behind a ring's last slot every slot is seen.
    cache = torch.randn_like(cache)
    k, v = cache[:, :, :slots, :key_width], cache[:, :, :slots, -width:]
    out = gpu.attention_step(q, k, v, last + slots, scale)
    assert error(out, loop(q, k, v, last + slots, scale)) < ERROR[dtype]


@pytest.mark.skipif(INTERPRETED, reason="a dispatcher knows devices, no interpreter")
def test_a_step_without_gradients_is_dispatched_and_one_with_them_is_not() -> None:
    q = torch.randn(2, 1, 4, 64, device=DEVICE, requires_grad=True)
    k, v = (torch.randn(2, 1, 70, 64, device=DEVICE) for _ in range(2))
    last = torch.tensor([5, 69], device=DEVICE)
    out = attention_step(q, k, v, last, 0.2)
    out.sum().backward()
    assert q.grad is not None
    with torch.no_grad():
        compiled = torch.compile(attention_step, fullgraph=True)
        for found in (attention_step(q, k, v, last, 0.2), compiled(q, k, v, last, 0.2)):
            assert error(found, loop(q, k, v, last, 0.2)) < ERROR[torch.float32]
        few_bits = attention_step(q.bfloat16(), k, v, last, 0.2)
        assert error(few_bits, loop(q, k, v, last, 0.2)) < ERROR[torch.bfloat16]


def test_positions_may_be_a_view() -> None:
    torch.manual_seed(0)
    q = torch.randn(3, 1, 4, 64, device=DEVICE)
    k, v = (torch.randn(3, 1, 70, 64, device=DEVICE) for _ in range(2))
    last = torch.tensor([[60, 0], [50, 1], [69, 2]], device=DEVICE)[:, 0]
    assert error(gpu.attention_step(q, k, v, last, 0.1), loop(q, k, v, last, 0.1)) < 2e-6
