"""Has the C library keep freed memory instead of returning it to the system.

Training allocates the same large tensors at every step and frees them again. By default glibc returns such memory to
the system, which then maps it anew, page by page and zeroed: at PlaNet's sizes that is up to half of a step on a CPU.
Memory that is kept is reused; the process then never shrinks below its peak.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT = {M_TRIM_THRESHOLD: -1, M_TOP_PAD: 64 << 20, M_MMAP_MAX: 0}
"""glibc's parameters (mallopt(3)): never trim the heap, grow it by 64 MiB at a time, allocate everything in it."""


def keep_freed_memory() -> bool:
    """Has the C library keep freed memory, in this process and its forks; returns whether it does.

    Changes nothing if the C library is not glibc, or if the user has configured it, by a `MALLOC_...` variable or with
    another allocator in `LD_PRELOAD`.
    """
    if "LD_PRELOAD" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(parameter, value) == 1 for parameter, value in KEPT.items()])
