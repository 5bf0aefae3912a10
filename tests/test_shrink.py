"""A light copy: the same competition at a fraction of the pixels, judged at full size all the same."""
import pathlib

import numpy as np
import pytest

from pipeline.data import competition
from pipeline.runtime.problem import Problem
from pipeline.data import shrink


@pytest.fixture(scope="module")
def half(demo_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("copy") / "half"
    shrink.main(demo_folder, folder, scale=2, quality=95)
    return folder


def test_the_copy_shows_the_same_pictures(demo_folder: pathlib.Path, half: pathlib.Path) -> None:
    whole, copy = (competition.ImageSet(folder, "test") for folder in (demo_folder, half))
    assert copy.names == whole.names
    for scale in (2, 4, 8):
        mine, theirs = (pictures.read(whole.names[3], scale).astype(int) for pictures in (copy, whole))
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).mean() < 2


def test_the_masks_stay_at_full_size(demo_folder: pathlib.Path, half: pathlib.Path) -> None:
    whole, copy = competition.open_masks(demo_folder), competition.open_masks(half)
    assert copy.names == whole.names
    assert np.array_equal(copy.read(whole.names[0]), whole.read(whole.names[0]))


def test_gif_masks_travel_as_run_lengths(demo_copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = competition.open_masks(demo_copy)
    (demo_copy / "train_masks.csv.zip").unlink()
    shrink.main(demo_copy, tmp_path / "eighth", scale=8, quality=80)
    after = competition.open_masks(tmp_path / "eighth")
    assert isinstance(after, competition.CsvMasks)
    assert np.array_equal(after.read(before.names[5]), before.read(before.names[5]))


def test_a_copy_has_no_finer_pictures_than_it_holds(half: pathlib.Path) -> None:
    pictures = competition.ImageSet(half, "train")
    with pytest.raises(Problem, match="copy at 1/2, but data.scale is 1"):
        pictures.read(pictures.names[0], 1)


def test_a_copy_that_is_there_is_left_alone(demo_folder: pathlib.Path, half: pathlib.Path) -> None:
    before = (half / "train.zip").stat().st_mtime_ns
    shrink.main(demo_folder, half, scale=2, quality=95)
    assert (half / "train.zip").stat().st_mtime_ns == before


def test_a_folder_with_other_files_is_never_written_to(demo_folder: pathlib.Path, demo_copy: pathlib.Path) -> None:
    before = (demo_copy / "train.zip").read_bytes()
    with pytest.raises(Problem, match="holds other files"):
        shrink.main(demo_folder, demo_copy, scale=2, quality=95)
    assert (demo_copy / "train.zip").read_bytes() == before
