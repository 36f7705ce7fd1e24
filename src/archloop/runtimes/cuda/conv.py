"""A gated short convolution (`blocks.fast.GatedConv`) through kernels.

Shape suffixes: as in `runtimes.cuda.half`; E = 3D.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.fast import GatedConv
from archloop.runtimes.cuda.half import Call, Half, PlainMixer
from archloop.runtimes.cuda.kernels import gemv, rows
from archloop.runtimes.cuda.output import Output
from archloop.runtimes.cuda.row import Norm, Row
from archloop.stack.state import DecoderState, MixerKey


class ConvHalf(Half):
    """Norm, gated convolution, residual."""

    is_mixer = True

    def __init__(
        self,
        plain: PlainMixer,
        form: GatedConv,
        key: MixerKey,
        norm: Norm,
        post_norm: Norm | None,
        overlap: bool,
    ) -> None:
        self._plain = plain
        self.form, self.key, self.norm, self.overlap = form, key, norm, overlap
        self.output = Output(form.out_proj, post_norm, overlap)

    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        if call.real_B is not None:
            # The kernel would leave padding in the window of past inputs.
            return self._plain.rows(x_XD, h_XD, call, after)
        assert h_XD is not None
        form, past_BLD = self.form, call.state.mixers[self.key]["conv"]
        bcu_XE = F.linear(h_XD, form.in_proj)
        if call.time is None:
            y_XD = rows.conv_step(bcu_XE, form.taps_DK, past_BLD)
        else:
            bcu_BTE = bcu_XE.view(-1, call.time, bcu_XE.shape[-1])
            y_XD = rows.conv(bcu_BTE, form.taps_DK, past_BLD).flatten(0, 1)
        return self.output.rows(x_XD, y_XD, after)

    def one(self, row: Row, call: Call) -> None:
        form, past_LD = self.form, call.state.mixers[self.key]["conv"][0]
        x_D, y_D = row.read(), torch.empty_like(row.x_D)
        gemv.conv(x_D, self.norm, form.in_proj, form.taps_DK, past_LD, y_D, pdl=self.overlap)
        self.output.one(row, y_D)

    def tail(self, time: int) -> int:
        return min(time, self.form.taps_DK.shape[1])

    def touched(self, state: DecoderState) -> list[Tensor]:
        return [state.mixers[self.key]["conv"]]
