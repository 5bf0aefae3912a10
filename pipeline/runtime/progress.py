"""Iterating over work: with a bar and a stopwatch for people, in batches, and by several threads in order."""
import collections
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress(items: Iterable[Any] | None = None, label: str = "", wanted: bool = True, **options: Any) -> tqdm:
    """Iterate with a bar on stderr, only if that is a terminal, so that a log file stays readable."""
    disable = None if wanted else True  # None: unless stderr is a terminal
    return tqdm(items, desc=label, disable=disable, dynamic_ncols=True, leave=False, **options)


def print_above_bars(text: str, target: IO[str] | None = None) -> None:
    """Print a line at once, on stdout if no target is given, while bars are shown."""
    target = target or sys.stdout
    tqdm.write(text, file=target)
    target.flush()


def duration(seconds: float) -> str:
    """Return a time for people, such as "2 h 5 min"."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS) -> Iterator[Result]:
    """Yield `map(work, items)`, computed by several threads; hold at most twice as many items as there are threads.

    The caller's thread draws the items. It pays where `work` releases the interpreter's lock, as numpy, zlib and
    OpenCV do.
    """
    items = iter(items)
    running: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        running.extend(pool.submit(work, item) for item in itertools.islice(items, 2 * threads))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(work, item) for item in itertools.islice(items, 1))


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last one shorter; as itertools.batched of Python 3.12."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


class Stopwatch:
    """Measure how fast steps follow one another since `restart`, and how long they waited for their images.

    `Stopwatch(n, **readings)` continues from the `readings()` of an earlier process.
    """

    def __init__(self, images_per_step: int, images: int = 0, waited_s: float = 0.0, elapsed_s: float = 0.0):
        self.images_per_step = images_per_step
        self.images, self.waited_s = images, waited_s
        self.started = time.monotonic() - elapsed_s

    def restart(self) -> None:
        self.images, self.waited_s, self.started = 0, 0.0, time.monotonic()

    def readings(self) -> dict[str, float]:
        return {"images": self.images, "waited_s": self.waited_s, "elapsed_s": self.seconds()}

    def waiting_for(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches, and add up the time that each was waited for."""
        asked = time.monotonic()
        for batch in batches:
            self.waited_s += time.monotonic() - asked
            self.images += self.images_per_step
            yield batch
            asked = time.monotonic()

    def images_per_s(self) -> float:
        return self.images / max(1e-9, self.seconds())

    def waited_fraction(self) -> float:
        return self.waited_s / max(1e-9, self.seconds())

    def seconds(self) -> float:
        return time.monotonic() - self.started


class Timer:
    """Say when something is due: `seconds` after the last `restart`, and at every step divisible by `every_steps`."""

    def __init__(self, seconds: float, every_steps: int | None = None):
        self.seconds, self.every_steps = seconds, every_steps
        self.restart()

    def restart(self) -> None:
        self.restarted = time.monotonic()

    def is_due(self, step: int) -> bool:
        is_its_step = self.every_steps is not None and step % self.every_steps == 0
        return is_its_step or time.monotonic() - self.restarted > self.seconds
