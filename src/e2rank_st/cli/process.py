"""The process of a command → threads and memory that suit torch on any machine."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

__all__ = ["settle"]

# Of mallopt(3) in the C library of GNU.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT, KEPT_BY_OLD = 2**30, 2**25  # bytes; old versions of the library take no more
TUNED = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def settle() -> None:
    """Set up this process; call it before torch is imported.

    * Threads that spin while they wait made a busy 2-core machine 5 times slower, so they sleep.
    * The C library gives large blocks back to the system when they are freed. The next forward pass asks for the same
      blocks, and the system fills each page with zeros first: a fifth of the time of a base-sized encoder. So the
      process keeps them.

    OMP_WAIT_POLICY and the C library's own environment variables decide where they are set.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not any(name in os.environ for name in TUNED):
        with suppress(AttributeError, OSError, TypeError):  # of another system, whose C library has no such call
            mallopt = ctypes.CDLL(None).mallopt
            # Each of the two stops the library from adapting both to the program: so the second needs the first.
            if mallopt(MMAP_THRESHOLD, KEPT) or mallopt(MMAP_THRESHOLD, KEPT_BY_OLD):
                mallopt(TRIM_THRESHOLD, KEPT)
