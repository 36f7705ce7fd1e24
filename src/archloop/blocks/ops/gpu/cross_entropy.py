"""Cross-entropy of logits and its gradient, which takes the place of the logits.

A program takes a row: one pass for the sum of exponentials, one for the gradient, which finds the
row in the cache. Imported only where Triton is installed. Shape suffixes: X rows, V vocabulary.
"""

import triton
import triton.language as tl
from torch import Tensor

from archloop.blocks.ops.gpu.lengths import any_length

WIDEST_BLOCK = 8192


@any_length("row_stride")
def _kernel(
    logits_ptr, targets_ptr, count_ptr, losses_ptr, scale, ignored, row_stride,
    V: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    target = tl.load(targets_ptr + row)
    counted = target != ignored
    top, total = float("-inf"), 0.0
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32) * scale
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        top = higher
    log_sum = top + tl.log(total)
    aimed = tl.load(logits_ptr + tl.where(counted, target, 0)).to(tl.float32) * scale
    tl.store(losses_ptr + row, tl.where(counted, log_sum - aimed, 0.0))
    if GRADIENT:
        each = tl.where(counted, scale / tl.load(count_ptr), 0.0)
        # Every warp has read the target's logit before it is written over.
        tl.debug_barrier()
        for start in range(0, V, BLOCK):
            v = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32) * scale
            d = (tl.exp(x - log_sum) - tl.where(v == target, 1.0, 0.0)) * each
            # A row that is not counted may hold anything, infinities too.
            d = tl.where(counted, d, 0.0)
            tl.store(logits_ptr + v, d.to(logits_ptr.dtype.element_ty), mask=v < V)


def cross_entropy(
    logits_XV: Tensor,
    targets_X: Tensor,
    count: Tensor,
    losses_X: Tensor,
    scale: float,
    ignored: int,
    *,
    gradient: bool,
) -> None:
    """Write each row's loss of ``scale * logits`` (0 where the target is `ignored`).

    With `gradient`, the logits become the gradient of ``sum(losses) / count`` with regard to them.
    """
    rows, vocab = logits_XV.shape
    block = min(WIDEST_BLOCK, triton.next_power_of_2(vocab))
    _kernel[(rows,)](
        logits_XV, targets_X, count, losses_X, scale, ignored, logits_XV.stride(0),
        V=vocab, BLOCK=block, GRADIENT=gradient, num_warps=8 if block >= 2048 else 4,
    )  # fmt: skip
