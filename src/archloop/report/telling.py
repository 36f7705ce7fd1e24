"""What tells stacks apart whose drawings look alike: the settings in which their specs differ."""

from collections.abc import Sequence

from archloop.stack.spec import StackSpec


def telling(specs: Sequence[StackSpec]) -> list[str]:
    """For each spec, the settings that differ among the specs of its layout; empty if it is alone.

    A setting is named once, with its values by block where these differ: ``kernel 3 7 3``.
    """
    settings = [_settings(spec) for spec in specs]
    alike: dict[tuple[str, ...], list[int]] = {}
    for index, spec in enumerate(specs):
        alike.setdefault(tuple(spec.layout), []).append(index)
    words = [""] * len(specs)
    for indices in alike.values():
        keys = dict.fromkeys(key for index in indices for key in settings[index])
        differing = {
            key for key in keys if len({_all(settings[index].get(key)) for index in indices}) > 1
        }
        for index in indices:
            own = settings[index]
            words[index] = ", ".join(
                f"{key} {_compact(own[key])}" for key in own if key in differing
            )
    return words


def _all(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


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
