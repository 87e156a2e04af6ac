"""Which implementation an op uses: the argument `impl`, or the `use_impl` block around the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Impl = Literal["auto", "reference", "triton", "native"]

# One value for the process, not per thread: torch.compile can guard on a module global.
_current: Impl = "auto"


def resolve_impl(impl: Impl) -> Impl:
    """Return `impl`, or the one set by `use_impl` when `impl` is "auto"."""
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")
    return _current if impl == "auto" else impl


@contextmanager
def use_impl(impl: Impl) -> Iterator[None]:
    """Make `impl` the choice of every op inside the block whose own `impl` is "auto".

    An explicit choice that cannot run raises at the op, with the reason; "auto" may fall back.
    The setting belongs to the process, not to the thread.
    """
    global _current
    previous = _current
    resolve_impl(impl)
    _current = impl
    try:
        yield
    finally:
        _current = previous
