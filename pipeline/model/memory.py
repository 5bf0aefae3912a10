"""How many pictures fit into the memory, found by trying."""
import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator

import torch

from pipeline.problem import Problem


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's memory has an exception of its own; a CPU's has a sentence in the allocator's RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextlib.contextmanager
def out_of_memory_told(explain: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error into a Problem; `explain` finds its sentence when the memory is free again."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
        failed = True
    else:
        failed = False
    if failed:  # outside the except block, which keeps the error and its frames alive
        give_back()
        raise Problem(explain())


def too_large(batch_size: int, scale: int) -> str:
    """What to do when predicting ran out of memory."""
    return f"The memory is too small for predict.batch_size {batch_size} at data.scale {scale}; lower the batch size."


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
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return False
    finally:
        give_back()
    return True


def give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
