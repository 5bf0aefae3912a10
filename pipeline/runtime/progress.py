"""What a person sees while a stage works, and how fast it goes."""
import collections
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

Thing = TypeVar("Thing")


def progress(things: Iterable[Any] | None = None, label: str = "", wanted: bool = True, **options: Any) -> tqdm:
    """A bar on stderr, only where that is a terminal: a log stays readable."""
    disable = None if wanted else True  # None: unless stderr is a terminal
    return tqdm(things, desc=label, disable=disable, dynamic_ncols=True, leave=False, **options)


class Stopwatch:
    """How fast steps follow one another since `restart`, and how long they waited for their pictures.

    `Stopwatch(n, **readings)` goes on from the `readings()` of an earlier process.
    """

    def __init__(self, images_per_step: int, images: int = 0, waited_s: float = 0.0, elapsed_s: float = 0.0):
        self.images_per_step = images_per_step
        self.images, self.waited_s = images, waited_s
        self.started = time.monotonic() - elapsed_s

    def restart(self) -> None:
        self.images, self.waited_s, self.started = 0, 0.0, time.monotonic()

    def readings(self) -> dict[str, float]:
        return {"images": self.images, "waited_s": self.waited_s, "elapsed_s": self.seconds()}

    def waiting_for(self, batches: Iterable[Thing]) -> Iterator[Thing]:
        """Hand the batches on, counting the time that each was waited for."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited_s += time.monotonic() - asked
            self.images += self.images_per_step
            yield batch

    def images_per_s(self) -> float:
        return self.images / max(1e-9, time.monotonic() - self.started)

    def waited_fraction(self) -> float:
        return self.waited_s / max(1e-9, time.monotonic() - self.started)

    def seconds(self) -> float:
        return time.monotonic() - self.started


# --- threads ---------------------------------------------------------------------------------------------------------

# Work for threads, its results in order.

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
