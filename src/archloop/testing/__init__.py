"""Contract tests for plug-ins: the kits that archloop's own plug-ins pass, to run on yours.

Each kit is a class of pytest tests; inherit from it and say whose plug-ins to test:

    from pathlib import Path
    from archloop.testing import MixerContract

    class TestMine(MixerContract):
        folder = Path(__file__).parent / "plugins"  # with plugins/mixers/mine.py
"""

from pkgutil import iter_modules

try:
    import pytest
except ImportError as error:
    raise ImportError(
        "archloop.testing needs pytest; install it with pip install 'archloop[test]'"
    ) from error

# Before the kits are imported, so that a failing assertion shows its values.
pytest.register_assert_rewrite(*(f"{__name__}.{file.name}" for file in iter_modules(__path__)))

from archloop.testing.channel_mixers import ChannelMixerContract  # noqa: E402
from archloop.testing.devices import DeviceContract  # noqa: E402
from archloop.testing.evaluations import EvaluationContract  # noqa: E402
from archloop.testing.layouts import LayoutContract  # noqa: E402
from archloop.testing.mixers import MixerContract  # noqa: E402
from archloop.testing.presets import PresetContract  # noqa: E402
from archloop.testing.runtimes import RuntimeContract  # noqa: E402
from archloop.testing.strategies import StrategyContract  # noqa: E402
from archloop.testing.tasks import TaskContract  # noqa: E402

__all__ = [
    "ChannelMixerContract",
    "DeviceContract",
    "EvaluationContract",
    "LayoutContract",
    "MixerContract",
    "PresetContract",
    "RuntimeContract",
    "StrategyContract",
    "TaskContract",
]
