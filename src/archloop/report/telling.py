"""What tells stacks apart whose drawings look alike: the settings in which their specs differ."""

from collections.abc import Sequence

from archloop.stack.spec import StackSpec


def telling(specs: Sequence[StackSpec]) -> list[str]:
    """For each spec, the settings that differ among the specs of its layout; empty if it is alone.

    A setting is named once, with its values by block where these differ: ``kernel 3 7 3``.
    """
    settings = [_settings(spec) for spec in specs]
    words = []
    for spec, own in zip(specs, settings, strict=True):
        alike = [s for other, s in zip(specs, settings, strict=True) if other.layout == spec.layout]
        differing = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        words.append(", ".join(f"{key} {_compact(own[key])}" for key in differing))
    return words


def _settings(spec: StackSpec) -> dict[str, list[str]]:
    """Values by block of every setting of the mixers and channel mixers."""
    found: dict[str, list[str]] = {}
    for block in spec.blocks:
        for mixer in block.mixers:
            for key, value in mixer.config.items():
                found.setdefault(f"{mixer.name} {key}", []).append(str(value))
            for key in ("weights_from", "state_from"):
                shared = getattr(mixer, key)
                found.setdefault(key.replace("_", " "), []).append(
                    "-" if shared is None else str(shared)
                )
        if block.channel_mixer is not None:
            for key, value in block.channel_mixer.config.items():
                found.setdefault(f"{block.channel_mixer.name} {key}", []).append(str(value))
    return found


def _compact(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else " ".join(values)
