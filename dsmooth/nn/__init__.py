"""The network as modules."""

from .pixelcnnpp import PixelCNNpp

__all__ = ["PixelCNNpp"]
