"""Memory that runs out: recognise it, turn it into a Problem, and find by trying how many images fit."""
import contextlib
import gc
import os
import pathlib
import resource
import traceback
from collections.abc import Callable, Iterator

import torch

from pipeline.runtime.problem import Problem

PROCESSES_HERE = "PROCESSES_HERE"  # environment variable: how many processes of one command share this machine
MAX_BATCH_TRIED = {"cuda": 1024, "cpu": 64}  # images at once
# What allocators that raise a plain RuntimeError say: torch's for CPUs, C++'s, CUDA's runtime and driver, cuBLAS's; and
# cuDNN, when none of its algorithms gets its workspace.
OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory", "bad_alloc", "CUDA error: out of memory", "CUDA driver error: out of memory",
    "ALLOC_FAILED", "unable to find an engine",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: a GPU's allocator raises its own error, a CPU's a RuntimeError that says so."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY_MESSAGES)


@contextlib.contextmanager
def explain_out_of_memory(explain: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error into a Problem; `explain` makes its sentence when the memory is free again."""
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
    # Outside the except block, which keeps the error and its frames alive.
    release_memory()
    raise Problem(explain())


def too_large_message(batch_size: int, scale: int) -> str:
    """Return what to do when predicting ran out of memory."""
    return f"The memory is too small for predict.batch_size {batch_size} at data.scale {scale}; lower the batch size."


def largest_that_fits(step: Callable[[int], object], at_most: int, at_least: int = 1) -> int:
    """Return the largest number of images up to `at_most` for which `step(number)` does not run out of memory, or 0.

    at_least: the smallest number that is tried.
    """
    fits, fails = at_least - 1, at_most + 1
    while fails - fits > 1:
        number = min(max(at_least, 2 * fits), at_most) if fails > at_most else (fits + fails) // 2
        if step_fits(step, number):
            fits = number
        else:
            fails = number
    return fits if fits >= at_least else 0


def step_fits(step: Callable[[int], object], number: int) -> bool:
    """Return whether `step(number)` does not run out of memory; other errors are raised."""
    try:
        step(number)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return False
    finally:
        release_memory()
    return True


@contextlib.contextmanager
def limited_to_free_memory(device: torch.device) -> Iterator[None]:
    """On a CPU, refuse allocations beyond the memory that is free now. Linux would grant them and then kill."""
    if device.type == "cuda":
        yield
        return
    before = soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit_kb = read_kb("/proc/self/status", "VmData") + read_kb("/proc/meminfo", "MemAvailable")
    limits = [1024 * limit_kb, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def processes_here() -> int:
    """Return how many processes of one command share this machine."""
    return int(os.environ.get(PROCESSES_HERE, "1"))


def free_memory() -> int:
    """Return the bytes of memory that may be filled for good, of a container those up to its limit, caches counted."""
    free = 1024 * read_kb("/proc/meminfo", "MemAvailable")
    with contextlib.suppress(OSError, ValueError):  # no such files, or "max"
        limit, used = (int(pathlib.Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free


def read_kb(path: str, key: str) -> int:
    """Read a figure from one of Linux's tables, whose lines look like `MemAvailable:  12345 kB`."""
    with open(path) as table:
        return next(int(line.split()[1]) for line in table if line.startswith(f"{key}:"))


def release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
