"""Routed experts (`blocks.fast.RoutedExperts`) through kernels.

Shape suffixes: as in `runtimes.cuda.half`; E experts, K chosen ones, F hidden width, P pairs of a
token and a chosen expert.
"""

from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.fast import RoutedExperts
from archloop.runtimes.cuda.half import Call, Half
from archloop.runtimes.cuda.kernels import experts, gemv, gemv_experts
from archloop.runtimes.cuda.row import Norm, Row


class ExpertsHalf(Half):
    """Norm, routed experts, residual.

    Attributes:
        counts_E: pairs that each expert got in the last call of `rows`, int32; the engine zeroes
            it before each pass.
    """

    def __init__(self, form: RoutedExperts, norm: Norm, overlap: bool, counts_E: Tensor) -> None:
        self.form, self.norm, self.overlap, self.counts_E = form, norm, overlap, counts_E

    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        del call
        assert h_XD is not None
        form = self.form
        weights_P, bins_EX = experts.route(
            F.linear(h_XD, form.router), form.bias_E, self.counts_E, form.top_k,
            normalize=form.normalize, routed_scale=form.routed_scale,
        )  # fmt: skip
        y_XKD = experts.experts(h_XD, weights_P, bins_EX, self.counts_E, form.gate_up, form.down)
        # Adding the experts' outputs and the norm that follows are one kernel.
        return experts.join(x_XD, y_XKD, *after)

    def one(self, row: Row, call: Call) -> None:
        del call
        form, x_D = self.form, row.settled()
        logits_E = x_D.new_empty(form.router.shape[0])
        gemv.linear(x_D, form.router, logits_E, norm=self.norm, pdl=self.overlap)
        hidden_KF = x_D.new_empty(form.top_k, form.down.shape[2])
        gemv_experts.experts_up(
            x_D, self.norm, logits_E, form.bias_E, form.gate_up, hidden_KF, pdl=self.overlap
        )
        gemv_experts.experts_down(
            hidden_KF, logits_E, form.bias_E, form.down, x_D, normalize=form.normalize,
            routed_scale=form.routed_scale, pdl=self.overlap,
        )  # fmt: skip
