"""Kernels of the scans, convolution and rotation equal their plain forms, gradients too."""

import pytest
import torch
from test_scans import B, Form, compare, liquid, liquid_inputs, randn, selective_inputs
from torch import Tensor

from accelerator import DEVICE, INTERPRETED
from archloop.blocks.mixers.mamba3 import biased_rotation
from archloop.blocks.ops import conv, liquid_scan, ranked_ssd, selective_scan
from archloop.blocks.ops.scan import scan

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

# The interpreter walks an associative scan element by element.
TIMES, FEATURES = ([1, 70], 5) if INTERPRETED else ([1, 63, 300], 40)


@pytest.mark.parametrize("time", TIMES)
def test_equal_the_plain_forms(time: int) -> None:
    flat = [torch.rand(B, time, FEATURES), randn(B, time, FEATURES), randn(B, FEATURES)]
    turned = [randn(B, time, 1, 16), randn(4, 1, 16), randn(B, 4, time, 4)]
    decays = [randn(B, 3, 1, 64, 64), -torch.rand(B, 3, 1, 64)]
    cases: list[tuple[Form, list[Tensor]]] = [
        (lambda *x: (scan(*x),), flat),
        (selective_scan.selective_scan, selective_inputs(time, FEATURES)),
        (liquid(liquid_scan.liquid_scan), liquid_inputs(time, FEATURES)),
        (lambda *x: (conv.causal_conv(*x),), [randn(B, time, FEATURES), randn(FEATURES, 4)]),
        (lambda *x: (biased_rotation(*x),), turned),
        (ranked_ssd.decayed_scores, decays),
        (lambda scores, g: ranked_ssd.decayed_scores(scores, g, -1), decays),
    ]
    for form, inputs in cases:
        on_device = [x.detach().float().to(DEVICE) for x in inputs]
        compare(form, form, on_device, tolerance=1e-4)
