"""archloop finds the best hybrid language-model decoder for the device it will ship on."""

__version__ = "0.1.0"
