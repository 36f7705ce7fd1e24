"""archloop's version, in a file that every part can import without importing the package."""

__version__ = "0.1.0"
