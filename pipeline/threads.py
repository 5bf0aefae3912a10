"""Work for threads, its results in order."""
import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Thing], Result], things: Iterable[Thing], threads: int = THREADS) -> Iterator[Result]:
    """`map(work, things)` by several threads; of `things` no more than twice as many are held as there are threads.

    `things` are drawn by the caller's thread. It pays where `work` releases the interpreter's lock, as numpy, zlib
    and OpenCV do.
    """
    things = iter(things)
    running: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        running.extend(pool.submit(work, thing) for thing in itertools.islice(things, 2 * threads))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(work, thing) for thing in itertools.islice(things, 1))


def batches(things: Iterable[Thing], size: int) -> Iterator[list[Thing]]:
    """Lists of `size` things, the last one shorter; as itertools.batched of Python 3.12."""
    things = iter(things)
    while batch := list(itertools.islice(things, size)):
        yield batch
