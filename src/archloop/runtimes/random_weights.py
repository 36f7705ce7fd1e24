"""Decoders with random weights: what profiling needs, since no engine asks what a weight means."""

from typing import TYPE_CHECKING

from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    from archloop.stack.decoder import Decoder


def build_random(spec: StackSpec, seed: int, device: str = "cpu") -> "Decoder":
    """A decoder in evaluation mode with the random weights of a seed, which profiling needs.

    The global random state is left as it was.

    Args:
        spec: of the decoder.
        seed: of the weights.
        device: that draws them; each type of device draws its own; the decoder is on the CPU.

    Raises:
        ValueError: the spec cannot be built.
    """
    import torch

    from archloop.stack.decoder import Decoder

    cards = [] if device == "cpu" else [torch.cuda.current_device()]
    with torch.random.fork_rng(devices=cards), torch.device(device):
        torch.manual_seed(seed)
        decoder = Decoder(spec).cpu()
    return decoder.eval().requires_grad_(False)
