"""How a fused half's last product reaches the residual stream: as it is, or normed once more.

Shape suffixes: as in `runtimes.cuda.half`; K input width of the last product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.runtimes.cuda.kernels import gemv, rows
from archloop.runtimes.cuda.row import Norm, Row


@dataclass(frozen=True)
class Output:
    """The last product of a half and what stands between it and the stream.

    Attributes:
        matrix_DK: of the product.
        post_norm: the norm of what it gives; None: it is added as it is.
        overlap: see `FusedDecoder`.
    """

    matrix_DK: Tensor
    post_norm: Norm | None
    overlap: bool

    def rows(self, x_XD: Tensor, y_XK: Tensor, after: Norm) -> Tensor | None:
        """Add what becomes of many tokens to the stream `x_XD`, in place.

        Returns:
            As `Half.rows`: a kernel that norms what it adds norms the sum on its way out.
        """
        if self.post_norm is None:
            x_XD.addmm_(y_XK, self.matrix_DK.T)
            return None
        return rows.add_normed(x_XD, F.linear(y_XK, self.matrix_DK), self.post_norm, after=after)

    def one(self, row: Row, y_K: Tensor) -> None:
        """As `rows` in a decode step of one row."""
        if self.post_norm is None:
            gemv.linear(y_K, self.matrix_DK, row.x_D, residual=True, pdl=self.overlap)
            return
        out_D = gemv.linear(y_K, self.matrix_DK, torch.empty_like(row.x_D), pdl=self.overlap)
        row.add_later(out_D, self.post_norm)
