"""HiPPO-LegS and its diagonal-plus-low-rank form, from which structured state spaces start.

``A = V (Lambda - P P^*) V^*`` (arXiv 2111.00396, theorem 1 and appendix C). Eigenvalues come in
conjugate pairs, of which one each is kept: N/2 complex modes stand for N real states.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from archloop.blocks.ops.precision import recurrent_dtype


class Dplr(NamedTuple):
    """One of each conjugate pair, ordered by frequency; M = N/2 modes.

    Attributes:
        poles_M: eigenvalues of the normal part, real part -1/2.
        low_rank_M: P in the eigenbasis.
        input_M: B in the eigenbasis.
        basis_NM: the eigenvectors V.
    """

    poles_M: Tensor
    low_rank_M: Tensor
    input_M: Tensor
    basis_NM: Tensor


def legs(num_states: int) -> tuple[Tensor, Tensor]:
    """The HiPPO-LegS matrices A (N, N) and B (N)."""
    n = torch.arange(num_states, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    a_NN = -(root[:, None] * root).tril(-1) - torch.diag(n + 1)
    return a_NN, root


def linear_poles(num_channels: int, num_modes: int) -> tuple[Tensor, Tensor]:
    """S4D-Lin, which stands in for the poles of HiPPO-LegS (arXiv 2206.11893): -1/2 + i pi n.

    Returns:
        Logarithm of the decay, and frequency, (D, M) each.
    """
    real = recurrent_dtype(torch.get_default_dtype())
    log_decay_DM = torch.full((num_channels, num_modes), math.log(0.5), dtype=real)
    frequency_M = math.pi * torch.arange(num_modes, dtype=real)
    return log_decay_DM, frequency_M.repeat(num_channels, 1)


def dplr(num_states: int) -> Dplr:
    """HiPPO-LegS of `num_states` (even) real states in diagonal-plus-low-rank form.

    On torch's default device, as any tensor that a module makes for itself.
    """
    device = torch.get_default_device()
    return Dplr(*(part.to(device) for part in _dplr(num_states)))


@cache
def _dplr(num_states: int) -> Dplr:
    # A decoder may be built on the meta device, which has no values to decompose.
    with torch.device("cpu"):
        a_NN, b_N = legs(num_states)
        p_N = (torch.arange(num_states, dtype=torch.float64) + 0.5).sqrt()
        skew_NN = a_NN + p_N[:, None] * p_N + 0.5 * torch.eye(num_states, dtype=torch.float64)
        frequency_N, v_NN = torch.linalg.eigh(-1j * skew_NN)
        keep = frequency_N > 0
        v_NM = v_NN[:, keep]
        poles_M = torch.complex(torch.full_like(frequency_N[keep], -0.5), frequency_N[keep])
        to_basis = v_NM.conj().T
        return Dplr(poles_M, to_basis @ p_N.to(v_NM.dtype), to_basis @ b_N.to(v_NM.dtype), v_NM)
