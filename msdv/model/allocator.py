"""How the C library hands out memory for tensors on a processor."""

import ctypes
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Have memory that is freed used again, where the C library would give it back and ask for it anew.

    It does that with everything above 32 MB at the latest, and the system clears each page when it is first written: a
    quarter of the time of a denoising step of many frames (docs/measurements.md). Only glibc has this; elsewhere
    nothing happens.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_THRESHOLD, _MOST)
            mallopt(_TRIM_THRESHOLD, _MOST)
