"""A shrunk copy: the same competition at a fraction of the pixels, still evaluated at full size."""
import dataclasses
import json
import pathlib
import zipfile

import cv2
import numpy as np
import pytest
from tiny_run import CONFIG

from pipeline.__main__ import main
from pipeline.carvana import CARVANA
from pipeline.data import shrink
from pipeline.data.competition import CsvMasks, FileMasks
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


# --- for the slowest link: training images alone, at a low quality ----------------------------------------------------


@pytest.fixture(scope="module")
def light(demo_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("copy") / "light"
    shrink.main(demo_folder, folder, scale=2, quality=30, train_only=True)
    return folder


def test_a_copy_for_training_has_no_test_images_and_no_table_of_them(
    demo_folder: pathlib.Path, light: pathlib.Path
) -> None:
    names = {path.name for path in light.iterdir()}
    assert names == {".lock", "shrink.json", "train.zip", "train_masks.csv.zip", "metadata.csv.zip"}
    assert json.loads((light / "shrink.json").read_text())["train_only"] is True
    assert (light / "train_masks.csv.zip").read_bytes() == (demo_folder / "train_masks.csv.zip").read_bytes()


def test_a_low_quality_takes_a_third_of_the_bytes_and_keeps_the_edges(half: pathlib.Path, light: pathlib.Path) -> None:
    assert (light / "train.zip").stat().st_size < (half / "train.zip").stat().st_size / 3
    fine, coarse = (CARVANA.open_images(folder, "train") for folder in (half, light))
    for name in fine.names[::9]:
        error = fine.read(name, 2).astype(float) - coarse.read(name, 2)
        assert 10 * np.log10(255**2 / np.square(error).mean()) > 32  # dB


def test_the_images_are_progressive_jpegs_which_are_smaller(demo_folder: pathlib.Path, light: pathlib.Path) -> None:
    with zipfile.ZipFile(light / "train.zip") as archive:
        data = archive.read(archive.namelist()[3])
    assert b"\xff\xc2" in data  # the marker of a progressive frame; that of a baseline frame is \xff\xc0
    images = CARVANA.open_images(demo_folder, "train")
    bgr = cv2.cvtColor(images.read(images.names[3], 2), cv2.COLOR_RGB2BGR)
    assert len(data) < len(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 30])[1])


def test_a_copy_for_training_trains_and_says_why_it_predicts_nothing(
    light: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("tiny.yaml").write_text(CONFIG)
    common = ["--config", "tiny.yaml", "--data", str(light), "--set", "train.epochs=1"]
    assert main(["folds", *common]) == main(["train", *common]) == 0
    pathlib.Path("runs/tiny/threshold.json").write_text('{"threshold": 0.5}')
    capsys.readouterr()
    assert main(["predict", "--run", "tiny", "--data", str(light)]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "sample_submission.csv" in error and "TRAIN_ONLY=1" in error


def test_a_copy_with_and_one_without_test_images_are_not_taken_for_each_other(
    demo_folder: pathlib.Path, demo_copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for train_only in (True, False):
        shrink.main(demo_folder, tmp_path / "copy", scale=8, quality=50, train_only=train_only)
        assert (tmp_path / "copy/test.zip").exists() != train_only


@pytest.mark.parametrize("source", ["a plain table", "GIFs"])
def test_masks_are_packed_whatever_they_come_as(demo_copy: pathlib.Path, tmp_path: pathlib.Path, source: str) -> None:
    packed = demo_copy / "train_masks.csv.zip"
    with zipfile.ZipFile(packed) as archive:
        table = archive.read("train_masks.csv")
    packed.unlink()
    if source == "a plain table":
        (demo_copy / "train_masks.csv").write_bytes(table)
    shrink.main(demo_copy, tmp_path / "copy", scale=8, quality=50, train_only=True)
    copy = tmp_path / "copy/train_masks.csv.zip"
    assert copy.stat().st_size < len(table) / 2
    with zipfile.ZipFile(copy) as archive:
        assert sorted(archive.read("train_masks.csv").split()) == sorted(table.split())


def test_a_competition_without_a_table_of_masks_keeps_its_mask_files(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_table = dataclasses.replace(CARVANA, mask_table="")
    monkeypatch.setattr(shrink, "competition_of", lambda kind: without_table)
    shrink.main(demo_folder, tmp_path / "eighth", scale=8, quality=50, train_only=True)
    before, after = (without_table.open_masks(folder) for folder in (demo_folder, tmp_path / "eighth"))
    assert isinstance(after, FileMasks) and after.names == before.names
    assert np.array_equal(after.read(after.names[5]), before.read(before.names[5]))


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_out_of_range_is_a_problem(demo_folder: pathlib.Path, tmp_path: pathlib.Path, quality: int) -> None:
    with pytest.raises(Problem, match="must lie between 1 and 100"):
        shrink.main(demo_folder, tmp_path / "copy", scale=2, quality=quality, train_only=True)
    assert not (tmp_path / "copy").exists()
