"""Time-invariant state spaces, one a channel, as chunked convolutions with exact state carry.

``x_t = A x_{t-1} + B u_t``, ``y_t = C x_t``. Within a chunk the outputs are a triangular Toeplitz
product of the inputs plus what the state at the chunk's start still contributes; states go from
chunk to chunk by A^size. So training costs matrix products alone, the state after any token is
exact, and nothing depends on a longest length. (An FFT would cost more here: chunks are short.)

Shape suffixes: B batch, T time, D channels, S real states per channel, M = S/2 modes, K chunks,
C tokens in a chunk.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.scan import Pair, scan_pair

CHUNK = 64
LONG_CARRY = 32
"""Chunks beyond which a dense carry runs in two levels."""


class ChunkMatrices(NamedTuple):
    """What one chunk does, per channel.

    Attributes:
        kernel_DC: response ``C A^j B`` to an input j tokens ago.
        write_DCS: what each token of a chunk adds to the state at the chunk's end.
        read_DSC: what the state at the chunk's start adds to each token's output.
    """

    kernel_DC: Tensor
    write_DCS: Tensor
    read_DSC: Tensor


class System:
    """A state space with C folded in; see `DiagonalSystem` and `DenseSystem`."""

    @abstractmethod
    def chunk(self, size: int) -> ChunkMatrices:
        """The matrices of a chunk of `size` (a power of two) tokens."""

    @abstractmethod
    def advance(self, x_DBS: Tensor, size: int) -> Tensor:
        """``A^size x`` for a power of two up to the chunk's size."""

    @abstractmethod
    def carry(self, added_DBKS: Tensor, start_DBS: Tensor, size: int) -> Tensor:
        """States at the start of each chunk, from what each chunk adds at its end."""


class DiagonalSystem(System):
    """Complex modes in conjugate pairs of which one is kept: ``y = 2 Re(sum_m C_m x_m)``.

    Args:
        log_a: logarithms of the decays, (real, imaginary) parts (D, M); real parts negative.
        b: input weights (D, M).
        c: output weights (D, M).

    The state is the modes' real parts, then their imaginary parts.
    """

    def __init__(self, log_a: Pair, b: Pair, c: Pair) -> None:
        self.log_a, self.b, self.c = log_a, b, c

    def power(self, exponent: int | Tensor) -> Pair:
        """``A^exponent``, without rounding errors that build up."""
        size = torch.exp(self.log_a[0] * exponent)
        angle = self.log_a[1] * exponent
        return size * angle.cos(), size * angle.sin()

    def chunk(self, size: int) -> ChunkMatrices:
        steps_C11 = torch.arange(size + 1, dtype=self.b[0].dtype, device=self.b[0].device)
        power_CDM = self.power(steps_C11[:, None, None])
        (wr, wi), (cr, ci) = times(power_CDM, self.b), self.c
        kernel_CD = 2 * (wr * cr - wi * ci)[:-1].sum(-1)
        write_CDS = torch.cat([wr, wi], -1)[:-1].flip(0)
        rr, ri = times(power_CDM, self.c)
        read_CDS = 2 * torch.cat([rr, -ri], -1)[1:]
        return ChunkMatrices(kernel_CD.T, write_CDS.transpose(0, 1), read_CDS.permute(1, 2, 0))

    def advance(self, x_DBS: Tensor, size: int) -> Tensor:
        ar, ai = self.power(size)
        re, im = times((ar[:, None], ai[:, None]), halves(x_DBS))
        return torch.cat([re, im], -1)

    def carry(self, added_DBKS: Tensor, start_DBS: Tensor, size: int) -> Tensor:
        channels, batch, num_chunks, states = added_DBKS.shape
        if num_chunks == 1:
            return start_DBS[:, :, None]
        # The scan wants (1, time, features): chunks are its time, and every channel, row and state
        # is one of its features.
        added_KDBS = added_DBKS[:, :, :-1].permute(2, 0, 1, 3)
        pair = tuple(half.reshape(1, num_chunks - 1, -1) for half in halves(added_KDBS))
        first = tuple(half.reshape(1, -1) for half in halves(start_DBS))
        decay = tuple(
            half[:, None].expand(-1, batch, -1).reshape(1, 1, -1) for half in self.power(size)
        )
        parts = scan_pair((decay[0], decay[1]), (pair[0], pair[1]), (first[0], first[1]))
        shape = (num_chunks - 1, channels, batch, states // 2)
        later_KDBS = torch.cat([part.view(shape) for part in parts], -1)
        return torch.cat([start_DBS[:, :, None], later_KDBS.permute(1, 2, 0, 3)], 2)


class DenseSystem(System):
    """Any real A (D, S, S), B (D, S), C (D, S); powers by repeated squaring."""

    def __init__(self, a_DSS: Tensor, b_DS: Tensor, c_DS: Tensor) -> None:
        self.b, self.c = b_DS, c_DS
        self.powers = {1: a_DSS}

    def power(self, size: int) -> Tensor:
        """``A^size`` for a power of two."""
        if size not in self.powers:
            half = self.power(size // 2)
            self.powers[size] = half @ half
        return self.powers[size]

    def chunk(self, size: int) -> ChunkMatrices:
        columns_DSm, rows_DmS = self.b[:, :, None], self.c[:, None] @ self.power(1)
        count = 1
        while count < size:
            power_DSS = self.power(count)
            columns_DSm = torch.cat([columns_DSm, power_DSS @ columns_DSm], -1)
            rows_DmS = torch.cat([rows_DmS, rows_DmS @ power_DSS], 1)
            count *= 2
        kernel_DC = (self.c[:, None] @ columns_DSm)[:, 0]
        write_DCS = columns_DSm.flip(-1).transpose(1, 2)
        return ChunkMatrices(kernel_DC, write_DCS, rows_DmS.transpose(1, 2))

    def advance(self, x_DBS: Tensor, size: int) -> Tensor:
        return x_DBS @ self.power(size).transpose(1, 2)

    def carry(self, added_DBKS: Tensor, start_DBS: Tensor, size: int) -> Tensor:
        channels, batch, num_chunks, states = added_DBKS.shape
        if num_chunks <= LONG_CARRY:
            return dense_carry(self.power(size), added_DBKS[:, :, :-1], start_DBS)
        # Groups of chunks all at once from zero, then group after group, then each group again
        # from its own start: about 3 sqrt(K) sequential steps instead of K.
        group = 1 << ((num_chunks - 1).bit_length() + 1) // 2
        num_groups = -(-num_chunks // group)
        padded = F.pad(added_DBKS, (0, 0, 0, num_groups * group - num_chunks))
        grouped = padded.reshape(channels, batch * num_groups, group, states)
        none = start_DBS.new_zeros(channels, batch * num_groups, states)
        ends = dense_carry(self.power(size), grouped, none)[:, :, -1]
        ends = ends.view(channels, batch, num_groups, states)
        starts = dense_carry(self.power(size * group), ends[:, :, :-1], start_DBS)
        all_states = dense_carry(self.power(size), grouped[:, :, :-1], starts.flatten(1, 2))
        return all_states.view(channels, batch, num_groups * group, states)[:, :, :num_chunks]


def dense_carry(a_DSS: Tensor, added_DBKS: Tensor, start_DBS: Tensor) -> Tensor:
    """The start, and the state after each ``x_{k+1} = A x_k + s_k``: (D, B, K + 1, S)."""
    states_DBKS: Tensor = apply(_DenseCarry, a_DSS, added_DBKS, start_DBS)
    return states_DBKS


class _DenseCarry(torch.autograd.Function):
    """`dense_carry` with one product for all gradients of A."""

    @staticmethod
    def forward(ctx: Any, a_DSS: Tensor, added_DBKS: Tensor, start_DBS: Tensor) -> Tensor:
        turned_DSS = a_DSS.transpose(1, 2)
        states = [start_DBS]
        for added_DBS in added_DBKS.unbind(2):
            states.append(torch.baddbmm(added_DBS, states[-1], turned_DSS))
        states_DBKS = torch.stack(states, 2)
        ctx.save_for_backward(a_DSS, states_DBKS)
        return states_DBKS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a_DSS, states_DBKS = ctx.saved_tensors
        given = grads[0].unbind(2)
        backs = [given[-1]]
        for grad_DBS in given[-2::-1]:
            backs.append(torch.baddbmm(grad_DBS, backs[-1], a_DSS))
        start_DBS = backs.pop()
        if not backs:
            added_DBKS = states_DBKS[:, :, :0]
            return torch.zeros_like(a_DSS), added_DBKS, start_DBS
        added_DBKS = torch.stack(backs[::-1], 2)
        a_grad = added_DBKS.flatten(1, 2).transpose(1, 2) @ states_DBKS[:, :, :-1].flatten(1, 2)
        return a_grad, added_DBKS, start_DBS


def naive_state_space(system: DenseSystem, u_BTD: Tensor, start_BDS: Tensor) -> Tensor:
    """Outputs (B, T, D) one step at a time, straight from the equations."""
    x_BDS, outputs = start_BDS, []
    for u_BD in u_BTD.unbind(1):
        x_BDS = torch.einsum("dij,bdj->bdi", system.powers[1], x_BDS) + u_BD[..., None] * system.b
        outputs.append((system.c * x_BDS).sum(-1))
    return torch.stack(outputs, 1)


def state_space(
    system: System,
    u_BTD: Tensor,
    start_BDS: Tensor | None = None,
    lengths_B: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Outputs (B, T, D) and, given a start, the state (B, D, S) after each row's last token.

    Args:
        system: the state spaces, in the dtype of the computation (at least float32).
        u_BTD: inputs, in that dtype.
        start_BDS: the state before the first token; None is zero, and then none is returned.
        lengths_B: real tokens per row; None when all are.
    """
    batch, time, channels = u_BTD.shape
    size = chunk_size(time)
    num_chunks = -(-time // size)
    kernel_DC, write_DCS, read_DSC = system.chunk(size)
    padded_BTD = F.pad(u_BTD, (0, 0, 0, num_chunks * size - time))
    u_DXC = padded_BTD.view(batch * num_chunks, size, channels).permute(2, 0, 1)
    added_DBKS = (u_DXC @ write_DCS).view(channels, batch, num_chunks, -1)
    if start_BDS is None:
        start_DBS = added_DBKS.new_zeros(channels, batch, added_DBKS.shape[-1])
    else:
        start_DBS = start_BDS.transpose(0, 1)
    starts_DBKS = system.carry(added_DBKS, start_DBS, size)
    y_DXC = torch.baddbmm(u_DXC @ toeplitz(kernel_DC), starts_DBKS.flatten(1, 2), read_DSC)
    y_BTD = y_DXC.permute(1, 2, 0).reshape(batch, num_chunks * size, channels)[:, :time]
    if start_BDS is None:
        return y_BTD, None
    return y_BTD, _last_state(system, u_DXC, starts_DBKS, write_DCS, time, lengths_B)


def chunk_size(time: int) -> int:
    """The power of two in which `time` tokens are processed."""
    return min(CHUNK, 1 << (time - 1).bit_length())


def toeplitz(kernel_DC: Tensor) -> Tensor:
    """Matrices (D, C, C) by which rows of a chunk's inputs give its outputs."""
    size = kernel_DC.shape[1]
    steps_C = torch.arange(size, device=kernel_DC.device)
    lag_CC = steps_C - steps_C[:, None]
    return torch.where(lag_CC >= 0, kernel_DC[:, lag_CC.clamp(min=0)], 0.0)


def times(a: Pair, b: Pair) -> Pair:
    """Complex product of two pairs whose shapes broadcast."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def halves(x: Tensor) -> Pair:
    """Real and imaginary half of the last dimension: (..., 2 M) as two (..., M)."""
    re, im = x.chunk(2, -1)
    return re, im


def _last_state(
    system: System,
    u_DXC: Tensor,
    starts_DBKS: Tensor,
    write_DCS: Tensor,
    time: int,
    lengths_B: Tensor | None,
) -> Tensor:
    """The state after each row's last token: its chunk's start moved on by powers of two."""
    channels, batch, num_chunks, _ = starts_DBKS.shape
    size = write_DCS.shape[1]
    u_DBKC = u_DXC.view(channels, batch, num_chunks, size)
    if lengths_B is None:
        x_DBS, u_DBC = starts_DBKS[:, :, -1], u_DBKC[:, :, -1]
        left = time - (num_chunks - 1) * size
        left_B = torch.full((batch,), left, device=u_DXC.device)
        sizes = [p for p in _powers_down(size) if p & left]
    else:
        rows_B = torch.arange(batch, device=lengths_B.device)
        chunk_B = (lengths_B // size).clamp(max=num_chunks - 1)
        x_DBS, u_DBC = starts_DBKS[:, rows_B, chunk_B], u_DBKC[:, rows_B, chunk_B]
        left_B, sizes = lengths_B - chunk_B * size, _powers_down(size)
    done_B = torch.zeros_like(left_B)
    for power in sizes:
        takes_B = (left_B & power) > 0
        at_Bp = done_B[:, None] + torch.arange(power, device=u_DXC.device)
        at_DBp = at_Bp.clamp(max=size - 1).expand(channels, -1, -1)
        moved = system.advance(x_DBS, power) + u_DBC.gather(2, at_DBp) @ write_DCS[:, -power:]
        x_DBS = torch.where(takes_B[:, None], moved, x_DBS)
        done_B = done_B + power * takes_B
    return x_DBS.transpose(0, 1)


def _powers_down(size: int) -> list[int]:
    return [1 << bit for bit in range(size.bit_length() - 1, -1, -1)]
