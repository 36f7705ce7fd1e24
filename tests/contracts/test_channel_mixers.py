"""Every channel mixer of the library keeps its contract."""

from archloop import registry
from archloop.testing import ChannelMixerContract


class TestChannelMixers(ChannelMixerContract):
    names = registry.shipped("channel_mixers")
