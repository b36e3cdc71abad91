"""Keeps Python's collector of cyclic garbage away from imports."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """A block that imports much. What it creates lives as long as the process, so the collector never looks at it.

    Collections take a tenth of the time of the API's imports. Later, one that looked at all of these objects would
    delay every stream by 50 ms.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
