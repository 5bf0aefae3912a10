"""Out of memory: told with a batch that fits, and that batch found by trying."""
import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.memory import largest_that_fits, out_of_memory_told
from pipeline.problem import Problem


@given(limit=st.integers(0, 300), at_most=st.integers(1, 200), on_gpu=st.booleans())
def test_the_largest_batch_is_found(limit: int, at_most: int, on_gpu: bool) -> None:
    tried = []

    def step(pictures: int) -> None:
        tried.append(pictures)
        if pictures > limit:
            raise torch.OutOfMemoryError() if on_gpu else RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.model.memory.give_back", lambda: None)  # slow, and nothing to give back
        assert largest_that_fits(step, at_most) == min(limit, at_most)
    assert max(tried) <= at_most and len(tried) <= 2 * 9


def test_another_error_of_a_step_is_not_hidden() -> None:
    def step(pictures: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(step, at_most=4)
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_told(lambda: "never asked"):
        step(1)


class Filling:
    """Stands for what fills the memory."""


def test_the_memory_is_free_again_when_the_sentence_is_made() -> None:
    watched: list[weakref.ref[Filling]] = []

    def step() -> None:
        filling = Filling()
        watched.append(weakref.ref(filling))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def explain() -> str:
        gc.collect()
        return "free" if watched[0]() is None else "still full"

    with pytest.raises(Problem, match="^free$"), out_of_memory_told(explain):
        step()
