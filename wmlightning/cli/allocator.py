"""What the C library does with memory that was freed.

Training asks for the same large tensors at every step and frees them again. By default glibc gives such memory back to
the system, which then hands it out anew, page by page and zeroed: at PlaNet's sizes that is up to half of a step on a
CPU. Kept, it is simply used again; a process then never shrinks below the most it has once needed.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT = {M_TRIM_THRESHOLD: -1, M_TOP_PAD: 64 << 20, M_MMAP_MAX: 0}
"""glibc's parameters (mallopt(3)): never trim the heap, grow it by 64 MiB at a time, and put all in it."""


def keep_freed_memory() -> bool:
    """Has the C library keep what is freed, in this process and its forks; returns whether it does.

    Nothing is done where the C library is not glibc, or where the user has set its behaviour, by a `MALLOC_...`
    variable or with another allocator in `LD_PRELOAD`.
    """
    if "LD_PRELOAD" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(parameter, value) == 1 for parameter, value in KEPT.items()])
