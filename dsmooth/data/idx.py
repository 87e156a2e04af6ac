"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

The format (http://yann.lecun.com/exdb/mnist): two zero bytes, the element type (8: unsigned byte),
the number of dimensions, each dimension as a big-endian 32-bit integer, the elements in C order.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsmooth.data.guard import Readable, Refused, guarded, open_regular, read_up_to, shown

# The largest file of this family, EMNIST by class, has 0.51 GiB.
MAX_IDX_BYTES = 1 << 30
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in the IDX file `path`, gzipped or not.

    ndim: the number of dimensions that it must have: 3 for images (N, H, W), 1 for labels (N,).
    The header is checked before the elements are decompressed: memory is what it promises, at most
    `MAX_IDX_BYTES`, however the file was packed.
    Raises ValueError for a file of another kind, element type or dimensionality, or one shorter,
    longer or larger than it may be. It names the file, what was expected and what was found.
    """
    with open_regular(path) as file, guarded(path, "an IDX file"):
        packed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not packed:
            return _read(path, ndim, file, os.fstat(file.fileno()).st_size)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(path, ndim, unpacked, None)
        except (zlib.error, gzip.BadGzipFile) as error:
            raise Refused(
                f"{shown(path)} is a damaged gzip file ({error}); fetch it again"
            ) from error


def _read(path: Path, ndim: int, stream: Readable, size: int | None) -> NDArray[np.uint8]:
    """size: the bytes in `stream`, or None if only decompressing can tell."""
    shape, header = _read_header(path, ndim, stream)
    expected = header + math.prod(shape)  # Python integers: a damaged header may pass 64 bits
    promise = f"its header promises {' x '.join(map(str, shape))}, so expected {expected} bytes"
    if size is not None and size != expected:
        fault = "cut" if size < expected else "too long"
        raise Refused(f"{shown(path)} is {fault}: {promise}, found {size}; fetch it again")
    if expected > MAX_IDX_BYTES:
        raise Refused(f"{shown(path)} is too large: {promise}; at most {MAX_IDX_BYTES} are read")
    elements = bytearray(read_up_to(stream, expected - header))
    if len(elements) < expected - header:
        raise Refused(
            f"{shown(path)} is cut: {promise}, found {header + len(elements)}; fetch it again"
        )
    try:
        more = stream.read(1)  # at the end of a gzip file this checks its CRC-32
    except EOFError as error:
        raise Refused(f"{shown(path)} is cut: its checksum is missing; fetch it again") from error
    if more:
        raise Refused(f"{shown(path)} is too long: {promise}, found more; fetch it again")
    return np.frombuffer(elements, np.uint8).reshape(shape)


def _read_header(path: Path, ndim: int, stream: Readable) -> tuple[list[int], int]:
    """Return the shape and the header's length."""
    magic, header = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    content = read_up_to(stream, header)
    if content[:4] != magic:
        raise Refused(
            f"{shown(path)} is not an IDX file of unsigned bytes with {ndim} dimension(s): "
            f"expected its first bytes to be {magic.hex()}, found "
            f"{content[:4].hex() or 'an empty file'}"
        )
    if len(content) < header:
        raise Refused(
            f"{shown(path)} is cut: expected a header of {header} bytes, found {len(content)}; "
            "fetch it again"
        )
    return [int(size) for size in np.frombuffer(content, ">u4", count=ndim, offset=4)], header
