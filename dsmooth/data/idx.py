"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

The format (http://yann.lecun.com/exdb/mnist): two zero bytes, the element type (8: unsigned byte),
the number of dimensions, each dimension as a big-endian 32-bit integer, the elements in C order.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_GZIP_MAGIC = b"\x1f\x8b"


def read_maybe_gzipped(path: Path) -> bytes:
    """Return the content of `path`, decompressed if it begins as a gzip file, whatever its name.

    Of a gzip file that was cut this returns what can be decompressed: the caller knows the size
    that the content should have and can name both numbers.
    Raises ValueError where the compressed data is damaged (gzip carries a CRC-32).
    """
    raw = path.read_bytes()
    if not raw.startswith(_GZIP_MAGIC):
        return raw
    parts = []
    while raw.startswith(_GZIP_MAGIC):  # a gzip file may have several members
        inflate = zlib.decompressobj(wbits=31)
        try:
            parts.append(inflate.decompress(raw))
        except zlib.error as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
        raw = inflate.unused_data
    return b"".join(parts)


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in the IDX file `path`, read-only.

    ndim: the number of dimensions that it must have: 3 for images (N, H, W), 1 for labels (N,).
    Raises ValueError, naming the file, what was expected and what was found, for a file of another
    kind, element type or dimensionality, or one shorter or longer than its header says.
    """
    content = read_maybe_gzipped(path)
    magic = bytes((0, 0, 8, ndim))
    if content[:4] != magic:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes with {ndim} dimension(s): expected its "
            f"first bytes to be {magic.hex()}, found {content[:4].hex() or 'an empty file'}"
        )
    header = 4 + 4 * ndim
    if len(content) < header:
        raise ValueError(
            f"{path} is cut: expected a header of {header} bytes, found {len(content)}; "
            "fetch it again"
        )
    shape = [int(size) for size in np.frombuffer(content, ">u4", count=ndim, offset=4)]
    expected = header + math.prod(shape)  # Python integers: a damaged header may pass 64 bits
    if len(content) != expected:
        fault = "cut" if len(content) < expected else "too long"
        raise ValueError(
            f"{path} is {fault}: its header promises {' x '.join(map(str, shape))}, so expected "
            f"{expected} bytes, found {len(content)}; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
