"""How many pictures fit into the memory, found by trying."""
import contextlib
import gc
import resource
import traceback
from collections.abc import Callable, Iterator

import torch

from pipeline.runtime.problem import Problem

MAX_BATCH_TRIED = {"cuda": 1024, "cpu": 64}  # pictures at once
# How allocators tell it that raise a plain RuntimeError: torch's for CPUs, C++'s, CUDA's own, cuBLAS's.
SIGNS = ("can't allocate memory", "bad_alloc", "CUDA error: out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's memory has an exception of its own; a CPU's has a sentence in the allocator's RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextlib.contextmanager
def explain_out_of_memory(explain: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error into a Problem; `explain` finds its sentence when the memory is free again."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
        failed = True
    else:
        failed = False
    if failed:  # outside the except block, which keeps the error and its frames alive
        release_memory()
        raise Problem(explain())


def too_large_message(batch_size: int, scale: int) -> str:
    """What to do when predicting ran out of memory."""
    return f"The memory is too small for predict.batch_size {batch_size} at data.scale {scale}; lower the batch size."


def smaller_batch_advice(
    batch_size: int, accumulate: int, processes: int, scale: int, largest: int | None, device: str
) -> str:
    """What to do when training ran out of memory. largest: pictures at once that were measured to fit, if any were."""
    what = f"The memory is too small for train.batch_size {batch_size} at data.scale {scale}"
    if largest is None:
        return f"{what}; set train.accumulate higher or train.checkpoint_activations=true."
    measured = f"{what}; measured: {found(largest, scale, device)}"
    at_once = batch_size // (accumulate * processes)
    fits = min(largest, at_once - 1)  # the memory may have been someone else's when it ran out
    if fits < 1:
        return f"{measured}; set data.scale higher or train.checkpoint_activations=true."
    parts = min(n for n in range(1, batch_size + 1) if batch_size % (n * processes) == 0 and batch_size // n <= fits)
    return (
        f"{measured}; set train.accumulate={parts}, which trains nearly the same in parts, "
        "or train.checkpoint_activations=true, or a smaller train.batch_size."
    )


def found(pictures: int, scale: int, device: str) -> str:
    or_more = "or more " if pictures in MAX_BATCH_TRIED.values() else ""
    return f"{pictures} pictures at once {or_more}fit on {device}, at data.scale {scale}"


def largest_that_fits(step: Callable[[int], object], at_most: int) -> int:
    """The largest number of pictures up to `at_most` for which `step(number)` does not run out of memory, or 0."""
    fits, fails = 0, at_most + 1
    while fails - fits > 1:
        number = min(max(1, 2 * fits), at_most) if fails > at_most else (fits + fails) // 2
        if step_fits(step, number):
            fits = number
        else:
            fails = number
    return fits


def step_fits(step: Callable[[int], object], number: int) -> bool:
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
    """On a CPU: have allocations beyond the memory that is free now refused. Linux would grant them and then kill."""
    if device.type == "cuda":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = kilobytes("/proc/self/status", "VmData") + kilobytes("/proc/meminfo", "MemAvailable")
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def kilobytes(path: str, key: str) -> int:
    """A figure of Linux's own tables, whose lines are like `MemAvailable:  12345 kB`."""
    with open(path) as table:
        return next(int(line.split()[1]) for line in table if line.startswith(f"{key}:"))


def release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
