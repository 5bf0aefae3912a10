"""The sequence of training batches is a function of the seed alone, and workers that fail are a Problem."""
import itertools
import os
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.carvana import CARVANA
from pipeline.data import augment, loader
from pipeline.data.loader import (
    BatchSchedule,
    TrainingDataset,
    ValidationDataset,
    shared_zeros,
    training_loader,
    validation_loader,
)
from pipeline.runtime.problem import Problem

STILL = {"flip": 0.0, "shift": 0.0, "zoom": 0.0, "rotate_deg": 0.0}
PALE = {"brightness": 0.0, "contrast": 0.0, "hue_deg": 0.0, "saturation": 0.0}
MOVING = {"flip": 0.5, "shift": 0.1, "zoom": 0.2, "rotate_deg": 10.0}
COLOURFUL = {"brightness": 0.2, "contrast": 0.2, "hue_deg": 20.0, "saturation": 0.2}
U8 = NDArray[np.uint8]


def training_images(folder: pathlib.Path, seed: int = 0, cache: bool = False, **limits: float) -> TrainingDataset:
    cars = CARVANA.open_dataset(folder)
    return TrainingDataset(cars, cars.names[:20], 8, augment.build(**{**STILL, **PALE, **limits}), seed, cache)


# --- which images make up which batch -------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 3))
def test_each_epoch_visits_each_image_at_most_once_in_whole_batches(count: int, batch: int, seed: int) -> None:
    count = max(count, batch)
    steps = list(BatchSchedule(count, batch, epochs=3, seed=seed))
    assert len(steps) == 3 * (count // batch)
    for epoch in range(3):
        draws = [draw for step in steps[epoch * (count // batch) :][: count // batch] for draw in step]
        assert [its_epoch for its_epoch, _ in draws] == [epoch] * len(draws)
        indices = [index for _, index in draws]
        assert len(set(indices)) == len(indices) == count // batch * batch
        assert set(indices) <= set(range(count))


def test_images_that_one_epoch_leaves_out_are_in_another() -> None:
    seen = {index for step in BatchSchedule(10, 8, epochs=10, seed=0) for _, index in step}
    assert seen == set(range(10))


def test_each_epoch_has_an_order_of_its_own_and_so_has_each_seed() -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        steps = [[index for _, index in step] for step in BatchSchedule(12, 4, epochs=4, seed=seed)]
        return [tuple(itertools.chain(*steps[first : first + 3])) for first in range(0, 12, 3)]

    assert len(set(orders(0) + orders(1))) == 8
    assert orders(0) == orders(0)


def test_a_schedule_from_any_step_is_the_tail_of_the_whole_one() -> None:
    whole = list(BatchSchedule(11, 3, epochs=3, seed=5))
    for first_step in range(len(whole) + 1):
        rest = BatchSchedule(11, 3, epochs=3, seed=5, first_step=first_step)
        assert list(rest) == whole[first_step:]
        assert len(rest) == len(whole) - first_step


# --- how an image is augmented --------------------------------------------------------------------


def test_without_augmentation_an_image_is_as_it_was_decoded(demo_folder: pathlib.Path) -> None:
    dataset = training_images(demo_folder)
    image, coverage = dataset[7, 3]
    expected_image, expected_coverage = dataset.images.decode(3)
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(coverage, expected_coverage)
    assert image.shape == (160, 240, 3) and coverage.shape == (160, 240)


def test_the_same_draw_is_augmented_alike_and_another_is_not(demo_folder: pathlib.Path) -> None:
    dataset, other_seed = (training_images(demo_folder, seed, **MOVING, **COLOURFUL) for seed in (0, 1))
    image, coverage = dataset[2, 3]
    for _ in dataset[0, 1], dataset[1, 3]:
        pass  # whatever was drawn in between
    again, coverage_again = dataset[2, 3]
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(coverage, coverage_again)
    assert (image != dataset[1, 3][0]).any()
    assert (image != other_seed[2, 3][0]).any()


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(demo_folder: pathlib.Path, workers: int) -> None:
    def batches(workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        dataset = training_images(demo_folder, cache=workers == 2, **MOVING, **COLOURFUL)
        return list(training_loader(dataset, BatchSchedule(20, 4, epochs=2, seed=0), workers, pin_memory=False))

    alone, spread = batches(0), batches(workers)
    assert len(alone) == len(spread) == 10
    for (image, coverage), (its_image, its_coverage) in zip(alone, spread):
        assert image.dtype == coverage.dtype == torch.uint8
        assert image.shape == (4, 160, 240, 3) and coverage.shape == (4, 160, 240)
        assert torch.equal(image, its_image) and torch.equal(coverage, its_coverage)


def test_the_cache_changes_nothing(demo_folder: pathlib.Path) -> None:
    fresh, cached = (training_images(demo_folder, cache=cache, **MOVING, **COLOURFUL) for cache in (False, True))
    for epoch in range(3):  # first the cache is filled, then it is read, and read again
        for index in range(0, 20, 6):
            for one, other in zip(fresh[epoch, index], cached[epoch, index]):
                np.testing.assert_array_equal(one, other)


def test_a_cached_image_is_decoded_once(demo_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = training_images(demo_folder, cache=True)
    first = dataset[0, 5]
    monkeypatch.setattr(dataset.dataset, "read", None)
    monkeypatch.setattr(dataset.dataset, "target", None)
    np.testing.assert_array_equal(dataset[1, 5][0], first[0])


def test_the_cache_is_filled_by_forked_workers_for_all(demo_folder: pathlib.Path) -> None:
    dataset = training_images(demo_folder, cache=True)
    list(training_loader(dataset, BatchSchedule(20, 4, epochs=1, seed=0), workers=2, pin_memory=False))
    assert dataset.images.cached is not None and dataset.images.cached[2].all()


def test_shared_zeros_are_zero_and_can_be_written() -> None:
    array = shared_zeros((3, 4, 5))
    assert array.shape == (3, 4, 5) and not array.any()
    array[1, 2] = 7
    assert array.sum() == 35


@pytest.fixture(scope="module")
def coverage(demo_folder: pathlib.Path) -> U8:
    return training_images(demo_folder).images.decode(4)[1]


@pytest.mark.parametrize("limits", [{"flip": 1.0}, {"shift": 0.2}, {"zoom": 0.3}, {"rotate_deg": 20.0}, MOVING])
def test_what_moves_the_image_moves_its_coverage_alike(coverage: U8, limits: dict[str, float]) -> None:
    """An image that shows nothing but its own coverage still does so afterwards."""
    transform = augment.build(**{**STILL, **PALE, **limits})
    image = np.repeat(coverage[:, :, None], 3, axis=2)
    moved = 0
    for seed in range(12):
        moved_image, moved_coverage = transform(image, coverage, seed)
        assert moved_coverage.dtype == np.uint8 and moved_coverage.shape == coverage.shape
        assert np.abs(moved_image.astype(int) - moved_coverage[:, :, None]).max() <= 2
        moved += (moved_coverage != coverage).any()
    assert moved > 6


def test_colours_change_the_image_and_leave_the_coverage(coverage: U8) -> None:
    image = np.repeat(coverage[:, :, None], 3, axis=2) // 2 + np.array([20, 60, 90], dtype=np.uint8)
    for limit in COLOURFUL:
        transform = augment.build(**{**STILL, **PALE, limit: COLOURFUL[limit]})
        changed_image, changed_coverage = transform(image, coverage, 1)
        assert (changed_image != image).any(), limit
        np.testing.assert_array_equal(changed_coverage, coverage)


def test_coverage_stays_a_fraction_when_it_is_rotated(coverage: U8) -> None:
    """Its soft edges are not rounded to car or not."""
    _, rotated = augment.build(**{**STILL, **PALE, "rotate_deg": 20.0})(np.zeros((160, 240, 3), np.uint8), coverage, 3)
    soft = (rotated > 20) & (rotated < 235)
    assert soft.sum() > ((coverage > 20) & (coverage < 235)).sum() / 2


def test_augmentation_leaves_its_input_alone(coverage: U8) -> None:
    image, before = np.repeat(coverage[:, :, None], 3, axis=2), coverage.copy()
    transform = augment.build(**MOVING, **COLOURFUL)
    for seed in range(5):
        transform(image, coverage, seed)
    np.testing.assert_array_equal(coverage, before)
    np.testing.assert_array_equal(image, np.repeat(before[:, :, None], 3, axis=2))


# --- held-out images ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_every_held_out_image_is_yielded_once_in_order_and_the_last_batch_is_filled_up(
    demo_folder: pathlib.Path, workers: int
) -> None:
    images = CARVANA.open_dataset(demo_folder)
    names = images.names[3:14]
    batches = list(validation_loader(ValidationDataset(images, names, (8, 4)), 4, workers, pin_memory=False))
    assert [len(batch[8]) for batch in batches] == [4, 4, 4]
    for scale in (8, 4):
        *read, filled = torch.cat([batch[scale] for batch in batches]).numpy()
        assert len(read) == len(names) and not filled.any()
        for image, name in zip(read, names):
            np.testing.assert_array_equal(image, images.read(name, scale))


def test_a_batch_is_not_larger_than_the_images_there_are(demo_folder: pathlib.Path) -> None:
    images = CARVANA.open_dataset(demo_folder)
    (batch,) = validation_loader(ValidationDataset(images, images.names[:3], (8,)), 16, workers=0, pin_memory=False)
    assert len(batch[8]) == 3


@pytest.mark.parametrize(
    "workers, batch_bytes, usable_bytes, ahead",
    [(8, 10**6, 10**9, 4), (1, 7_400_000, 2**25, 4), (2, 7_400_000, 2**25, 2), (4, 7_400_000, 2**25, 1),
     (16, 157 * 10**6, 10**11, 1), (8, 157 * 10**6, 10**11, 2)],
)  # fmt: skip
def test_as_many_batches_are_prepared_as_shared_memory_holds(
    workers: int, batch_bytes: int, usable_bytes: int, ahead: int
) -> None:
    assert loader.batches_ahead(workers, batch_bytes, usable_bytes) == ahead


def test_too_little_shared_memory_is_named_before_a_worker_dies() -> None:
    sentence = r"data\.workers is 12.* 118 MB of /dev/shm, of which 67 MB are free for them; set data\.workers=6, or"
    with pytest.raises(Problem, match=sentence):
        loader.batches_ahead(12, 9_830_400, 64 * 2**20)


def test_the_size_of_an_item_is_that_of_its_arrays(demo_folder: pathlib.Path) -> None:
    cars = CARVANA.open_dataset(demo_folder)
    training = training_images(demo_folder)
    assert training.item_bytes == sum(array.nbytes for array in training[0, 0])
    validation = ValidationDataset(cars, cars.names, (8, 4))
    assert validation.item_bytes == sum(array.nbytes for array in validation[0].values())


# --- workers that fail ----------------------------------------------------------------------------


def test_a_problem_in_a_worker_is_raised_with_the_same_sentence(demo_copy: pathlib.Path) -> None:
    images = CARVANA.open_dataset(demo_copy)
    name = images.names[2]
    (demo_copy / name).write_bytes(b"")
    dataset = ValidationDataset(CARVANA.open_dataset(demo_copy), images.names[:8], (8,))

    def sentence(workers: int) -> str:
        with pytest.raises(Problem) as caught:
            list(validation_loader(dataset, 4, workers, pin_memory=False))
        return str(caught.value)

    assert name in sentence(0)
    assert sentence(1) == sentence(0)


class Dies(ValidationDataset):
    """Kills the worker that reads it, as the kernel does when memory is short."""

    def __getitem__(self, index: int) -> dict[int, U8]:
        os.kill(os.getpid(), 9)
        raise AssertionError("never reached")


def test_a_worker_that_dies_is_a_problem_that_says_what_to_do(demo_folder: pathlib.Path) -> None:
    dataset = Dies(CARVANA.open_dataset(demo_folder), ["a.jpg"] * 8, (8,))
    with pytest.raises(Problem, match="died.*data.workers"):
        list(validation_loader(dataset, 4, workers=1, pin_memory=False))


def test_a_tmpdir_that_is_too_long_is_a_problem_and_not_an_endless_wait(
    demo_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "a" * 100)
    images = CARVANA.open_dataset(demo_folder)
    with pytest.raises(Problem, match="TMPDIR is /tmp/aaa.* data.workers to 0"):
        validation_loader(ValidationDataset(images, images.names[:2], (8,)), 2, workers=1, pin_memory=False)
