"""Where trainings run on this machine, on how many threads, and how many jobs it allows at once."""

from collections.abc import Sequence

from archloop.devices.cores import usable_cores
from archloop.devices.host import training_claims
from archloop.devices.lease import exclude
from archloop.search.recipe.recipe import Recipe


def places(recipe: Recipe) -> tuple[str, ...]:
    """The device of each training that may run at once, in PyTorch's words."""
    asked = recipe.executor
    if asked.devices:
        return asked.devices
    if asked.name != "local":
        # Only the cluster knows its devices; each node resolves the recipe's word for itself.
        return (recipe.proxy.device,) * (asked.workers or 1)
    devices = _devices(recipe.proxy.device)
    count = asked.workers or len(devices) * asked.per_device
    return tuple(devices[index % len(devices)] for index in range(count))


def training_threads(recipe: Recipe) -> int:
    """Threads of each training: what the recipe says, or its share of this machine's cores.

    Trainings that share cores wait for one another at every operation (`docs/log.md`).
    """
    return recipe.threads or max(1, usable_cores() // len(places(recipe)))


def wants_mps(recipe: Recipe) -> bool:
    """Whether trainings are to share cards through NVIDIA's Multi-Process Service, if it is there.

    Only on this machine: on a cluster, a node's cards are shared out by the cluster.
    """
    if recipe.executor.name != "local" or recipe.executor.cuda_mps is not None:
        return bool(recipe.executor.cuda_mps)
    on_cards = [device for device in places(recipe) if device.startswith("cuda")]
    return len(on_cards) > len(set(on_cards))


def num_jobs(recipe: Recipe) -> int:
    """Jobs at once: what the recipe says, or as many as keep the machine busy."""
    asked = recipe.executor
    if asked.workers is not None:
        return asked.workers
    training = places(recipe)
    targets = [target.claims() for target in recipe.targets.values()]
    claims = [training_claims(device) for device in training]
    # One job for each place to train on. A measurement that can run beside a training is one job
    # more; one that excludes all trainings runs instead of them.
    overlaps = any(not exclude(one, other) for one in targets for other in claims)
    return len(training) + overlaps


def _devices(name: str) -> Sequence[str]:
    """All cards, where a card is asked for and not which one."""
    if name != "cuda":
        return (name,)
    import torch

    count = torch.cuda.device_count()
    return [f"cuda:{index}" for index in range(count)] if count > 1 else (name,)
