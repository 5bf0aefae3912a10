"""Out of memory: a Problem that names a batch that fits, and that batch found by trying."""
import gc
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.loader import Kind
from pipeline.runtime.device import explain_missing_kernel
from pipeline.runtime.memory import (
    MAX_BATCH_TRIED,
    explain_out_of_memory,
    largest_that_fits,
    limited_to_free_memory,
)
from pipeline.runtime.problem import Problem
from pipeline.training.find_batch import describe_fit, smaller_batch_advice


IMAGES = Kind("images", "train", "data.scale 2", "data.scale higher")


@given(limit=st.integers(0, 1500), kind=st.sampled_from(["cpu", "cuda"]))
def test_the_largest_batch_is_found(limit: int, kind: str) -> None:
    tried = []

    def step(images: int) -> None:
        tried.append(images)
        if images > limit:
            raise torch.OutOfMemoryError() if kind == "cuda" else RuntimeError("CPUAllocator: can't allocate memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.runtime.memory.release_memory", lambda: None)  # slow, and there is nothing to release
        assert largest_that_fits(step, MAX_BATCH_TRIED[kind]) == min(limit, MAX_BATCH_TRIED[kind])
    assert max(tried) <= MAX_BATCH_TRIED[kind] and len(tried) <= 2 * 11


@pytest.mark.parametrize("limit, largest", [(0, 0), (1, 0), (2, 2), (3, 3), (9, 9)])
def test_no_batch_below_the_least_is_tried_nor_named(limit: int, largest: int) -> None:
    tried = []

    def step(images: int) -> None:
        tried.append(images)
        if images > limit:
            raise MemoryError

    assert largest_that_fits(step, at_most=64, at_least=2) == largest
    assert min(tried) == 2


def test_another_error_of_a_step_is_not_hidden() -> None:
    def step(images: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(step, at_most=4)
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(lambda: "never called"):
        step(1)


class Filling:
    """Represents what fills the memory."""


def test_the_memory_is_free_again_when_the_sentence_is_made() -> None:
    watched: list[weakref.ref[Filling]] = []

    def step() -> None:
        filling = Filling()
        watched.append(weakref.ref(filling))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def explain() -> str:
        gc.collect()
        return "free" if watched[0]() is None else "still full"

    with pytest.raises(Problem, match="^free$"), explain_out_of_memory(explain):
        step()


def test_on_a_cpu_a_step_that_is_too_large_is_refused_and_not_killed() -> None:
    def step(images: int) -> None:
        torch.empty(images, 2**30)  # 4 GB each, never touched

    free_gb = int(open("/proc/meminfo").read().split("MemAvailable:")[1].split()[0]) / 2**20
    with limited_to_free_memory(torch.device("cpu")):
        assert largest_that_fits(step, at_most=64) == pytest.approx(free_gb / 4, abs=1)


@pytest.mark.parametrize(
    "batch_size, accumulate, world_size, largest, advice",
    [
        (16, 1, 1, 5, "train.accumulate=4,"),
        (16, 1, 1, 99, "train.accumulate=2,"),  # it fits now, but it failed
        (16, 4, 1, 3, "train.accumulate=8,"),
        (1, 1, 1, 0, "data.scale higher"),
        (16, 1, 4, None, "train.accumulate higher"),
    ],
)
def test_the_advice_is_a_setting_that_training_accepts(
    batch_size: int, accumulate: int, world_size: int, largest: int | None, advice: str
) -> None:
    sentence = smaller_batch_advice(batch_size, accumulate, world_size, IMAGES, largest, torch.device("cpu"))
    assert f"train.batch_size {batch_size} at data.scale 2" in sentence and advice in sentence


@pytest.mark.parametrize(
    "batch_size, accumulate, largest, advice",
    [
        (16, 1, 5, "set train.accumulate=4,"),
        (6, 2, 2, "set train.accumulate=3,"),
        (5, 1, 3, "set train.batch_size=3, data.scale higher or train.check"),  # 5 cannot be split into twos and threes
        (2, 1, 0, "set data.scale higher or train.checkpoint_activations=true."),
    ],
)
def test_a_step_that_needs_two_images_is_not_advised_to_take_one(
    batch_size: int, accumulate: int, largest: int, advice: str
) -> None:
    arguments = batch_size, accumulate, 1, IMAGES, largest, torch.device("cpu")
    assert advice in smaller_batch_advice(*arguments, least=2)


@pytest.mark.parametrize("kind, images, is_limit", [("cuda", 1024, True), ("cuda", 64, False), ("cpu", 64, True)])
def test_or_more_is_said_only_of_the_largest_batch_that_is_tried_on_that_device(
    monkeypatch: pytest.MonkeyPatch, kind: str, images: int, is_limit: bool
) -> None:
    monkeypatch.setattr("pipeline.training.find_batch.describe", str)
    assert ("or more" in describe_fit(images, IMAGES, torch.device(kind))) == is_limit


def test_a_lower_limit_of_the_shell_stays_in_force() -> None:
    code = (
        "import resource, torch; from pipeline.runtime import memory; data = resource.RLIMIT_DATA; "
        "low = 1024 * memory.read_kb('/proc/self/status', 'VmData') + 2**28; resource.setrlimit(data, (low, low)); "
        "context = memory.limited_to_free_memory(torch.device('cpu')); context.__enter__(); "
        "print(resource.getrlimit(data) == (low, low)); context.__exit__(None, None, None)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "True\n", ended.stderr


def test_an_operation_without_a_deterministic_kernel_is_a_problem_and_other_errors_pass() -> None:
    with pytest.raises(Problem, match="^cumsum_cuda_kernel has no deterministic kernel"):
        with explain_missing_kernel():
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")
    with pytest.raises(RuntimeError, match="shapes"), explain_missing_kernel():
        raise RuntimeError("shapes cannot be multiplied")
