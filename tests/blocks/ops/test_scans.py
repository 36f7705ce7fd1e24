"""Fast forms of recurrences equal their loops: outputs, last states and gradients.

On a CPU in float64; `test_scan_kernels` holds Triton's kernels against the plain forms.
"""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from archloop.blocks.ops import (
    cell_scan,
    chunks,
    liquid_scan,
    long_conv,
    ranked_ssd,
    triton_kernels,
)
from archloop.blocks.ops import selective_scan as selective
from archloop.blocks.ops.scan import doubled, naive_scan, scan, scan_pair

B, D, N = 2, 5, 3
Form = Callable[..., tuple[Tensor, ...]]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def compare(fast: Form, plain: Form, inputs: list[Tensor], tolerance: float = 1e-10) -> None:
    """Kernels are off for the plain form, also while its backward pass computes parts again."""
    inputs = [x.requires_grad_() for x in inputs]
    results = []
    for form, around in ((fast, nullcontext()), (plain, triton_kernels.disabled())):
        with around:
            outputs = form(*inputs)
            torch.manual_seed(7)
            loss = sum((y.double() * torch.randn(y.shape).to(y.device)).sum() for y in outputs)
            results.append([*outputs, *torch.autograd.grad(loss, inputs)])
    for mine, reference in zip(*results, strict=True):
        error = (mine - reference).abs().max() / reference.abs().max().clamp(min=1e-3)
        assert error < tolerance


@pytest.mark.parametrize("time", [1, 2, 65, 130])
def test_diagonal_scans(time: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.rand(B, time, D).double(), randn(B, time, D), randn(B, D)]
    compare(lambda *x: (scan(*x),), lambda *x: (naive_scan(*x),), inputs)

    def pairs(*x: Tensor) -> tuple[Tensor, ...]:
        return scan_pair((x[0], x[1]), (x[2], x[3]), (x[4], x[5]))

    def complex_loop(*x: Tensor) -> tuple[Tensor, ...]:
        a, b, start = (torch.complex(x[i], x[i + 1]) for i in (0, 2, 4))
        h = naive_scan(a, b, start)
        return h.real, h.imag

    decay = [torch.rand(1, 1, D).double() * 0.7 for _ in range(2)]
    rest = [randn(B, time, D), randn(B, time, D), randn(B, D), randn(B, D)]
    compare(pairs, complex_loop, [*decay, *rest])


@pytest.mark.parametrize("time", [1, 2, 5, 64, 65])
def test_the_exported_form_gives_the_same_states(time: int) -> None:
    torch.manual_seed(0)
    decay, added, start = torch.rand(B, time, D).double(), randn(B, time, D), randn(B, D)
    expected = naive_scan(decay, added, start)
    torch.testing.assert_close(doubled((decay,), (added,), (start,))[0], expected)
    a, b, h = ((0.7 * randn(*shape), randn(*shape)) for shape in [(B, time, D)] * 2 + [(B, D)])
    expected = naive_scan(*(torch.complex(*pair) for pair in (a, b, h)))
    torch.testing.assert_close(torch.complex(*doubled(a, b, h)), expected)


def test_an_exported_program_has_no_loop_and_no_complex_numbers() -> None:
    class Scans(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor, start: Tensor) -> tuple[Tensor, ...]:
            return scan(a, b, start), *scan_pair((a, a), (b, b), (start, start))

    given = (torch.rand(1, 64, D), torch.randn(1, 64, D), torch.randn(1, D))
    program = torch.export.export(Scans(), given, strict=False)
    made = [node.meta["val"] for node in program.graph.nodes if node.op == "call_function"]
    assert not any(isinstance(x, Tensor) and x.is_complex() for x in made)
    # A loop would have more than that of getting and computing steps alone.
    assert len(made) < 4 * 64
    for found, expected in zip(program.module()(*given), Scans()(*given), strict=True):
        torch.testing.assert_close(found, expected)


def selective_inputs(time: int, channels: int = D) -> list[Tensor]:
    torch.manual_seed(0)
    keys = [randn(B, time, N), randn(B, time, N)]
    steps = torch.rand(B, time, channels).double()
    poles = -3 * torch.rand(channels, N).double()
    return [randn(B, time, channels), steps, poles, *keys, randn(B, channels, N)]


def liquid_inputs(time: int, channels: int = D) -> list[Tensor]:
    torch.manual_seed(0)
    weights = [0.3 * randn(channels, N) for _ in range(6)]
    start = [randn(B, channels, N) for _ in range(2)]
    return [randn(B, time, channels).tanh(), *weights, *start]


def liquid(form: Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]]) -> Form:
    def run(v: Tensor, *x: Tensor) -> tuple[Tensor, ...]:
        y, last = form(v, x[0:2], x[2:4], x[4:6], x[6:8])
        return y, *last

    return run


@pytest.mark.parametrize("time, most_bytes", [(1, 1), (63, 1), (65, 2**24), (130, 2**24)])
def test_selective_and_liquid_scans(
    time: int, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the longest chunks and, where states are large, the shortest."""
    monkeypatch.setattr(chunks, "MOST_BYTES", most_bytes)
    compare(selective.selective_scan, selective.naive_selective_scan, selective_inputs(time))
    fast, plain = liquid(liquid_scan.liquid_scan), liquid(liquid_scan.naive_liquid_scan)
    compare(fast, plain, liquid_inputs(time))


@pytest.mark.parametrize("time", [1, 63, 2_113])
def test_dense_state_spaces(time: int) -> None:
    torch.manual_seed(0)
    a = randn(D, N, N)
    a = 0.99 * a / torch.linalg.matrix_norm(a, 2)[:, None, None]
    inputs = [a, randn(D, N), randn(D, N), randn(B, time, D), randn(B, D, N)]

    def fast(*x: Tensor) -> tuple[Tensor, ...]:
        return (long_conv.state_space(long_conv.DenseSystem(*x[:3]), x[3], x[4])[0],)

    def plain(*x: Tensor) -> tuple[Tensor, ...]:
        return (long_conv.naive_state_space(long_conv.DenseSystem(*x[:3]), x[3], x[4]),)

    compare(fast, plain, inputs)


def test_cells() -> None:
    torch.manual_seed(0)
    inputs = [randn(B, 9, N), randn(N, D), randn(3 * D, N), randn(3 * D), randn(B, D), randn(D)]

    def head(o: Tensor, scale: Tensor) -> Tensor:
        f, g, gate = o.chunk(3, -1)
        return scale * torch.lerp(f.tanh(), g.tanh(), gate.sigmoid())

    compare(
        lambda *x: (cell_scan.cell_scan(*x[:5], head, x[5]),),
        lambda *x: (cell_scan.naive_cell_scan(*x[:5], head, x[5]),),
        inputs,
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranked_ssd(ranks: int) -> None:
    torch.manual_seed(0)
    time = 150
    keys = [randn(B, 2, time, ranks, N) for _ in range(2)]
    inputs = [*keys, randn(B, 2, time, ranks, D), -torch.rand(B, 2, time).double()]

    def fast(*x: Tensor) -> tuple[Tensor, ...]:
        q, k, v, g, start = x
        states, last = ranked_ssd.states(k, v, g, start)
        return ranked_ssd.read(q, k, v, g, states), last

    compare(fast, ranked_ssd.naive, [*inputs, randn(B, 2, N, D)])
