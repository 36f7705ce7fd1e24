"""The contract that every mixer keeps, run over the mixers in plugins/: pytest test_my_mixer.py."""

from pathlib import Path

from archloop.testing import MixerContract


class TestMyMixer(MixerContract):
    """Each file in plugins/mixers is tested, with its defaults and with each value of its genes."""

    folder = Path(__file__).parent / "plugins"
