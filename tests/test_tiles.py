"""Tiles along the edge: how they cover unsure cells, and what a refiner learns from."""
import copy
import pathlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.carvana import CARVANA
from pipeline.data import augment, loader
from pipeline.data.images import upsample_u8
from pipeline.data.loader import BatchSchedule, DecodedImages
from pipeline.data.tiles import TileDataset, batches_of_tiles, cover, stack_tiles, unsure_cells, window
from pipeline.inference.oof import png

MAPS = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.booleans())


def test_a_cell_is_unsure_beside_an_unsure_one_too() -> None:
    prob_u8 = np.zeros((5, 6), np.uint8)
    prob_u8[:, 3:] = 255
    assert not unsure_cells(prob_u8).any()
    prob_u8[2, 2] = 128
    expected = np.zeros((5, 6), bool)
    expected[1:4, 1:4] = True
    assert np.array_equal(unsure_cells(prob_u8), expected)


@pytest.mark.parametrize("value, is_unsure", [(0, False), (5, False), (6, True), (249, True), (250, False)])
def test_a_cell_is_sure_up_to_a_fiftieth(value: int, is_unsure: bool) -> None:
    assert unsure_cells(np.full((1, 1), value, np.uint8)).all() == is_unsure


@given(unsure=MAPS, side=st.integers(1, 12))
def test_squares_cover_each_unsure_cell_exactly_once(unsure: np.ndarray, side: int) -> None:
    rows, columns = unsure.shape
    covered = np.zeros((rows + side, columns + side), int)
    for row, column in cover(unsure, side):
        assert 0 <= row < rows and 0 <= column < columns
        covered[row : row + side, column : column + side] += 1
    assert covered.max(initial=0) <= 1  # they do not overlap
    assert (covered[:rows, :columns][unsure] == 1).all()


def test_no_square_is_needed_where_all_is_sure() -> None:
    assert cover(np.zeros((4, 5), bool), 2).shape == (0, 2)


def test_a_window_repeats_the_border_where_it_hangs_over_it() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(window(image, 1, 1, 2), [[5, 6], [9, 10]])
    assert np.array_equal(window(image, -1, 2, 3), [[2, 3, 3], [2, 3, 3], [6, 7, 7]])


# --- the training set ------------------------------------------------------------------------------------------------

SIDE, MARGIN = 64, 8


@pytest.fixture(scope="module")
def tiles(demo_folder: pathlib.Path) -> TileDataset:
    dataset = CARVANA.open_dataset(demo_folder)
    names = dataset.names[:4]
    coarse = {name: png(cv2.GaussianBlur(dataset.target(name, 8), (5, 5), 0)) for name in names}
    nothing = augment.build(
        flip=0.0, shift=0.0, zoom=0.0, rotate_deg=0.0, brightness=0.0, contrast=0.0, hue_deg=0.0, saturation=0.0
    )
    tiles = TileDataset(dataset, names, 8, 1, SIDE, MARGIN, 5, nothing, seed=0)
    tiles.coarse_png_of = coarse
    return tiles


def test_a_draw_gives_the_same_tiles_always_and_another_draw_others(tiles: TileDataset) -> None:
    one, again, other = tiles[3, 1], tiles[3, 1], tiles[4, 1]
    assert all(np.array_equal(*pair) for pair in zip(one, again))
    assert not np.array_equal(one[0], other[0])


def test_the_cache_changes_no_tile_and_no_image_is_decoded_again(
    tiles: TileDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = copy.copy(tiles)
    cached.images = DecodedImages(tiles.dataset, tiles.names, 1, None, keep=len(tiles.names))
    first = cached[0, 1]
    assert all(np.array_equal(*pair) for pair in zip(first, tiles[0, 1]))
    again = tiles[3, 1]
    monkeypatch.setattr(tiles.dataset, "read", None)
    monkeypatch.setattr(tiles.dataset, "target", None)
    assert all(np.array_equal(*pair) for pair in zip(cached[3, 1], again))


def test_images_that_would_fill_the_memory_are_not_kept(tiles: TileDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * tiles.images.item_bytes
    for free, cached in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(loader, "free_memory", lambda: free)
        assert (DecodedImages(tiles.dataset, tiles.names, 1, None, keep=4).cached is not None) == cached
    monkeypatch.setenv("PROCESSES_HERE", "2")
    monkeypatch.setattr(loader, "free_memory", lambda: 3 * needed)
    assert DecodedImages(tiles.dataset, tiles.names, 1, None, keep=4).cached is None


def test_tiles_have_the_pixels_the_coarse_probability_and_the_mask_of_one_place(tiles: TileDataset) -> None:
    name = tiles.names[2]
    image, mask = tiles.dataset.read(name, 1), tiles.dataset.truth(name)
    coarse_u8 = cv2.imdecode(np.frombuffer(tiles.coarse_png_of[name], np.uint8), cv2.IMREAD_UNCHANGED)
    prob_u8 = upsample_u8(coarse_u8 / np.float32(255), 8, *mask.shape)
    crops, targets = tiles[0, 2]
    assert crops.shape == (5, SIDE, SIDE, 4) and targets.shape == (5, SIDE, SIDE)
    assert tiles.item_bytes == crops.nbytes + targets.nbytes
    for tile, target in zip(crops, targets):
        matches = cv2.matchTemplate(image, np.ascontiguousarray(tile[..., :3]), cv2.TM_SQDIFF)
        top, left = np.unravel_index(int(matches.argmin()), matches.shape)
        place = slice(top, top + SIDE), slice(left, left + SIDE)
        assert np.array_equal(image[place], tile[..., :3])
        assert np.array_equal(prob_u8[place], tile[..., 3])
        assert np.array_equal(mask[place] * np.uint8(255), target)


def test_every_tile_has_an_unsure_cell_behind_its_margin(tiles: TileDataset) -> None:
    unsure = unsure_cells(cv2.imdecode(np.frombuffer(tiles.coarse_png_of[tiles.names[0]], np.uint8), -1))
    for top, left in tiles.draw_places(unsure, 8, np.random.default_rng(0)):
        inner = ((start + MARGIN, start + SIDE - MARGIN) for start in (top, left))
        rows, columns = (slice(max(0, -(-first // 8)), -(-end // 8)) for first, end in inner)
        assert unsure[rows, columns].any()  # a cell whose top left pixel lies there


def test_the_coarse_probability_moves_with_its_tile(tiles: TileDataset) -> None:
    moving = augment.build(
        flip=0.5, shift=0.2, zoom=0.2, rotate_deg=20.0, brightness=0.0, contrast=0.0, hue_deg=0.0, saturation=0.0
    )
    target = cv2.GaussianBlur(tiles.dataset.target(tiles.names[0], 8), (5, 5), 0)
    tile = np.dstack((*[np.zeros_like(target)] * 3, target))
    for seed in range(5):
        moved, moved_target = moving(tile, target, seed)
        assert not np.array_equal(moved_target, target)
        assert np.abs(moved[..., 3].astype(int) - moved_target).max() <= 1  # another rounding


def test_an_image_without_an_unsure_cell_has_tiles_too(tiles: TileDataset) -> None:
    places = list(tiles.draw_places(np.zeros((160, 240), bool), 8, np.random.default_rng(0)))
    assert len(places) == 5


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_has_one_tile_of_each_image_and_a_resume_skips_what_was_trained() -> None:
    numbers = np.arange(6, dtype=np.uint8).reshape(2, 3)  # of 2 images with 3 tiles each
    tile, target = stack_tiles([(image.reshape(3, 1, 1, 1), image.reshape(3, 1, 1)) for image in numbers])
    batches = list(batches_of_tiles([(tile, target)] * 2, skip=0))
    assert [batch.flatten().tolist() for batch, _ in batches] == [[0, 3], [1, 4], [2, 5]] * 2
    resumed = list(batches_of_tiles([(tile, target)] * 2, skip=2))
    assert [batch.flatten().tolist() for batch, _ in resumed] == [[2, 5], [0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("first_step", range(0, 24, 5))
def test_a_schedule_of_several_steps_a_batch_continues_in_the_batch_of_its_step(first_step: int) -> None:
    whole = BatchSchedule(8, 4, epochs=3, seed=0, steps_per_batch=4)
    assert whole.total_steps == 24 and whole.steps_per_epoch == 8 and len(whole) == 6
    rest = BatchSchedule(8, 4, epochs=3, seed=0, steps_per_batch=4, first_step=first_step)
    assert list(rest) == list(whole)[first_step // 4 :]
    assert whole.batch(first_step) == list(whole)[first_step // 4]
