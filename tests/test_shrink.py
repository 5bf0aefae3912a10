"""A shrunk copy: the same competition at a fraction of the pixels, still evaluated at full size."""
import pathlib

import numpy as np
import pytest

from pipeline.carvana import CARVANA
from pipeline.data import shrink
from pipeline.data.competition import CsvMasks
from pipeline.runtime.problem import Problem


@pytest.fixture(scope="module")
def half(demo_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("copy") / "half"
    shrink.main(demo_folder, folder, scale=2, quality=95)
    return folder


def test_the_copy_shows_the_same_images(demo_folder: pathlib.Path, half: pathlib.Path) -> None:
    original, copy = (CARVANA.open_images(folder, "test") for folder in (demo_folder, half))
    assert copy.names == original.names
    for scale in (2, 4, 8):
        mine, theirs = (images.read(original.names[3], scale).astype(int) for images in (copy, original))
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).mean() < 2


def test_the_masks_stay_at_full_size(demo_folder: pathlib.Path, half: pathlib.Path) -> None:
    original, copy = CARVANA.open_masks(demo_folder), CARVANA.open_masks(half)
    assert copy.names == original.names
    assert np.array_equal(copy.read(original.names[0]), original.read(original.names[0]))


def test_gif_masks_are_copied_as_run_lengths(demo_copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = CARVANA.open_masks(demo_copy)
    (demo_copy / "train_masks.csv.zip").unlink()
    shrink.main(demo_copy, tmp_path / "eighth", scale=8, quality=80)
    after = CARVANA.open_masks(tmp_path / "eighth")
    assert isinstance(after, CsvMasks)
    assert np.array_equal(after.read(before.names[5]), before.read(before.names[5]))


def test_a_copy_cannot_be_read_at_a_finer_scale_than_its_own(half: pathlib.Path) -> None:
    images = CARVANA.open_images(half, "train")
    with pytest.raises(Problem, match="copy at 1/2, but images at 1/1 are needed"):
        images.read(images.names[0], 1)


def test_a_copy_that_is_there_is_left_alone(demo_folder: pathlib.Path, half: pathlib.Path) -> None:
    before = (half / "train.zip").stat().st_mtime_ns
    shrink.main(demo_folder, half, scale=2, quality=95)
    assert (half / "train.zip").stat().st_mtime_ns == before


def test_a_folder_with_other_files_is_never_written_to(demo_folder: pathlib.Path, demo_copy: pathlib.Path) -> None:
    before = (demo_copy / "train.zip").read_bytes()
    with pytest.raises(Problem, match="holds other files"):
        shrink.main(demo_folder, demo_copy, scale=2, quality=95)
    assert (demo_copy / "train.zip").read_bytes() == before
