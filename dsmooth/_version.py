"""The one place that holds the version: read by setuptools, by `dsmooth --version` and by every written artefact."""

__version__ = "0.1.0"
