"""The one place that holds the version, read by setuptools without importing torch."""

__version__ = "0.2.0"
