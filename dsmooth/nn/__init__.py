"""The network as modules."""

from .pixelcnnpp import PixelCNNpp as PixelCNNpp
