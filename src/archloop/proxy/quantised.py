"""Scores of a trained proxy in the numbers that an engine's quantisation would leave of it.

A proxy is trained and scored in float32, a target computes with int8 or int4. What that costs is
asked of eager PyTorch with the engine's own rounding (`Runtime.products`, which exports are
compared with), so a whole evaluation takes seconds and no engine that answers token by token.

Engines that round a call's inputs by one scale (ONNX Runtime's int8) see one row a call. Here a
call is a batch, whose scale is a little coarser: their loss is overstated rather than missed.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch

from archloop.errors import UserError
from archloop.evals.base import Score
from archloop.proxy import scoring
from archloop.proxy.config import ProxyConfig
from archloop.proxy.mixture import ProxyData
from archloop.runtimes.base import Runtime
from archloop.runtimes.rounding import rounded_products
from archloop.scratch import Scratch
from archloop.stack.decoder import Decoder


def scores(
    decoder: Decoder, runtime: Runtime, quant: str, data: ProxyData, config: ProxyConfig
) -> Mapping[str, Score]:
    """What a proxy scores as an engine computes it.

    Args:
        decoder: in float32 on a CPU.
        runtime: of the target; one that can export here.
        quant: one of its.
        data: text and tasks of the study.
        config: the recipe's.

    Raises:
        UserError: the runtime cannot export here, or not this stack.
    """
    runtime.check(quant)
    if reason := runtime.unsupported(decoder.spec):
        raise UserError(f"runtime {runtime.name} cannot run this stack: {reason}")
    dtype = getattr(torch, runtime.reference_dtype(quant))
    if dtype != torch.float32:
        return scoring.evaluate(copy.deepcopy(decoder).to(dtype), data, config)
    with Scratch("quantised") as folder:
        if runtime.rounds_by_artifact:
            runtime.write(decoder, Path(folder), quant)
        products = runtime.products(decoder, Path(folder), quant)
    with rounded_products(decoder, products, attention=runtime.attention()):
        return scoring.evaluate(decoder, data, config)
