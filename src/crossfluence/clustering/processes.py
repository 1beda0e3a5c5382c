"""Processes of one thread each for retraining: threads of several busy processes wait for each other, these do not."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30  # of glibc's mallopt
WORTH = 6.0  # seconds of work, below which starting processes takes longer than it saves


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps small networks' arithmetic on one thread.

    Operations of some ten thousand numbers gain nothing from a second thread, and where other processes are busy each
    waits for a thread that is not running: a step of training was seen to take fifty times as long.

    Yields:
        None.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory() -> None:
    """Keeps freed memory in this process, so that large temporaries are not asked of the system again and again.

    glibc gives large blocks back as soon as they are freed, and the system clears each page anew: half of the time of
    a curvature of 10,000 rows. The peak is the same; what was used at it stays in use until the process ends. Nothing
    where the C library is another one.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            libc.mallopt(option, KEPT_BYTES)


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def side_by_side(count: int) -> Iterator[ProcessPoolExecutor | None]:
    """An executor of several processes, or nothing for one.

    Its processes leave Ctrl-C to the one that started them, and end when that one ends, however it does.

    Args:
        count: Of processes.

    Yields:
        The executor.
    """
    if count < 2:
        yield None
        return
    spawned = multiprocessing.get_context("spawn")  # a copy of a process with threads would hang
    pool = ProcessPoolExecutor(count, mp_context=spawned, initializer=_begin)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    import torch

    keep_memory()
    if sys.stderr is not None:
        sys.stderr.isatty = lambda: False  # bars of several processes would run into each other
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
