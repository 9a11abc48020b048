"""The process of a command → threads and memory that suit torch on any machine."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

__all__ = ["settle"]

# Of mallopt(3) in the C library of GNU.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = 2**30  # bytes


def settle() -> None:
    """Set up this process; call it before torch is imported.

    * Threads that spin while they wait made a busy 2-core machine 5 times slower, so they sleep.
    * The C library gives large blocks back to the system when they are freed. The next forward pass asks for the same
      blocks, and the system fills each page with zeros first: a fifth of the time of a base-sized encoder. So the
      process keeps them.

    The environment variables OMP_WAIT_POLICY and MALLOC_MMAP_THRESHOLD_ still decide where they are set.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with suppress(AttributeError, OSError, TypeError):  # of another system, whose C library has no such call
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(MMAP_THRESHOLD, KEPT)
            mallopt(TRIM_THRESHOLD, KEPT)
