"""The version, for Python and for setuptools, which reads it without importing torch."""

__version__ = "0.2.0"
