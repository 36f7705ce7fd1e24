"""The head of the compression task: rebuild a sequence from a decoder's last position.

After MAD (arXiv 2403.17844): the last token's output plus a sine-cosine position goes through norm,
linear, GELU, norm, linear, GELU and an output matrix, once for each position to rebuild.

Shape suffixes: B batch, T time, D model width, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.linear import Linear
from archloop.blocks.norms import RMSNorm
from archloop.evals.base import IGNORE
from archloop.stack.decoder import Decoder
from archloop.training.batch import Batch


class AutoEncoder(nn.Module):
    """A decoder whose last output is expanded to the whole sequence again."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        width = decoder.spec.d_model
        self.decoder = decoder
        self.expand = nn.Sequential(
            RMSNorm(width),
            Linear(width, width, bias=True),
            nn.GELU(),
            RMSNorm(width),
            Linear(width, width, bias=True),
            nn.GELU(),
        )
        self.head = Linear(width, decoder.spec.vocab_size)
        # The decoder's own output matrix is not used; left trainable it would only decay.
        if decoder.head is not None:
            decoder.head.requires_grad_(False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits of every token of the sequence, (B, T, V)."""
        last_BD = self.decoder.hidden(ids_BT)[:, -1]
        # Made on the device: a copy from the host would keep a card's step from being captured.
        places_TD = sine_positions(ids_BT.shape[1], last_BD.shape[1], last_BD.device).to(last_BD)
        logits_BTV: Tensor = self.head(self.expand(last_BD[:, None] + places_TD))
        return logits_BTV


def sine_positions(num_positions: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sine-cosine positions (arXiv 1706.03762, section 3.5), (T, D) in float32."""
    steps_T1 = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None]
    rates_D = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    places_TD = torch.zeros(num_positions, width, device=device)
    places_TD[:, 0::2] = torch.sin(steps_T1 * rates_D)
    places_TD[:, 1::2] = torch.cos(steps_T1 * rates_D[: width // 2])
    return places_TD


def reconstruction_loss(model: AutoEncoder, batch: Batch) -> Tensor:
    """Mean cross-entropy over the tokens to rebuild."""
    logits_BTV = model(batch.ids_BT)
    return F.cross_entropy(
        logits_BTV.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=IGNORE
    )
