"""Run lengths that are cut off are refused or named at the start, instead of being learnt."""
import csv
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.carvana import ANGLES, CARVANA, HEIGHT_PX, WIDTH_PX
from pipeline.data.competition import CsvMasks
from pipeline.data.csv_table import read_table
from pipeline.data.cut_off import are_cut_off, area_fractions, last_row_fraction
from pipeline.masks import rle
from pipeline.runtime.problem import Problem


@pytest.fixture
def folder(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The drawn competition without its GIF masks."""
    for name in ("train.zip", "train_masks.csv.zip", "metadata.csv.zip"):
        shutil.copy(demo_folder / name, tmp_path)
    return tmp_path


def halve(text: str, fraction: float = 0.5) -> str:
    """Keep the first runs of a row."""
    numbers = text.split()
    return " ".join(numbers[: 2 * int(len(numbers) / 2 * fraction)])


def write_table(folder: pathlib.Path, every: int, fraction: float = 0.5) -> list[str]:
    """Write train_masks.csv with one row in `every` cut off; return their images."""
    table = read_table(folder, "train_masks.csv", CARVANA.submission_header)
    shortened = table.index % every == 3 % every
    table.loc[shortened, "rle_mask"] = table.loc[shortened, "rle_mask"].map(lambda text: halve(text, fraction))
    table.to_csv(folder / "train_masks.csv", index=False, quoting=csv.QUOTE_MINIMAL)
    return table.loc[shortened, "img"].tolist()


def test_a_whole_table_gives_no_warning(folder: pathlib.Path, demo_folder: pathlib.Path) -> None:
    assert CARVANA.open_dataset(folder).warning == "" == CARVANA.open_dataset(demo_folder).warning


def test_rows_that_are_cut_off_are_named(folder: pathlib.Path) -> None:
    shortened = write_table(folder, every=16)
    notes = CARVANA.open_dataset(folder).warning
    assert f"{folder / 'train_masks.csv'}: the run lengths of {len(shortened)} masks seem to end too early" in notes
    assert all(name in notes for name in shortened)


def test_a_table_whose_rows_are_all_cut_off_is_a_warning_too(folder: pathlib.Path) -> None:
    assert len(write_table(folder, every=1)) == 64
    notes = CARVANA.open_dataset(folder).warning
    assert int(notes.split(" masks seem")[0].rpartition(" ")[2]) > 50


@pytest.mark.parametrize("every, fraction", [(16, 0.5), (1, 0.9)])
def test_a_row_that_differs_from_its_gif_is_a_problem_that_names_it(
    folder: pathlib.Path, demo_folder: pathlib.Path, every: int, fraction: float
) -> None:
    shutil.copy(demo_folder / "train_masks.zip", folder)
    shortened = write_table(folder, every, fraction)
    sentence = rf"train_masks\.csv, row ({'|'.join(shortened)}): the run lengths cover .*masks\.zip"
    with pytest.raises(Problem, match=sentence):
        CARVANA.open_dataset(folder)


def test_an_odd_mask_that_its_gif_confirms_is_no_warning(folder: pathlib.Path, demo_folder: pathlib.Path) -> None:
    (name,) = write_table(folder, every=64)
    masks = CARVANA.open_masks(folder)
    assert name in CARVANA.open_dataset(folder).warning
    (folder / "train_masks").mkdir()
    image = Image.fromarray(masks.read(name).view(np.uint8))
    image.save(folder / "train_masks" / CARVANA.mask_file(name))
    assert CARVANA.open_dataset(folder).warning == ""


def test_damaged_gifs_that_nothing_reads_do_not_matter(folder: pathlib.Path) -> None:
    (folder / "train_masks.zip").write_bytes(b"PK")
    assert CARVANA.open_dataset(folder).warning == ""


def test_a_row_that_cannot_be_read_is_left_to_the_inspection_before_training(folder: pathlib.Path) -> None:
    table = read_table(folder, "train_masks.csv", CARVANA.submission_header)
    table.loc[5, "rle_mask"] += " 7"
    table.to_csv(folder / "train_masks.csv", index=False)
    dataset = CARVANA.open_dataset(folder)
    assert dataset.warning == ""
    with pytest.raises(Problem, match=rf"train_masks\.csv, row {table.loc[5, 'img']}: \d+ numbers"):
        dataset.inspect(table.loc[5, "img"])


def test_folds_prints_the_warning(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (name,) = write_table(folder, every=64)
    monkeypatch.chdir(folder)
    pathlib.Path("x.yaml").write_text("data: {folds: 2}\n")
    assert main(["folds", "--config", "x.yaml", "--data", "."]) == 0
    assert name in capsys.readouterr().out


def test_areas_are_compared_with_what_object_and_angle_lead_to_expect() -> None:
    sizes, angles = np.array([100_000, 150_000, 240_000, 90_000]), np.linspace(0.5, 1.5, ANGLES)
    areas = np.outer(sizes, angles).round().astype(np.int64)
    assert np.allclose(area_fractions(areas.ravel(), ANGLES), 1, atol=1e-4)
    areas[2, 7] //= 2
    fractions = area_fractions(areas.ravel(), ANGLES).reshape(4, ANGLES)
    assert fractions[2, 7] == pytest.approx(0.5, abs=1e-3) and (fractions > 0.99).sum() == 63


def test_the_last_row_of_a_mask_that_is_cut_off_is_as_long_as_the_others() -> None:
    disc = (np.arange(HEIGHT_PX)[:, None] - 600) ** 2 + (np.arange(WIDTH_PX) - 900) ** 2 < 400**2
    bounds = rle.bounds(disc)
    assert last_row_fraction(bounds, WIDTH_PX) < 0.1 < 1 < last_row_fraction(bounds[:400], WIDTH_PX)
    assert last_row_fraction(bounds[:0], WIDTH_PX) == 0
    assert are_cut_off([bounds] * 31 + [bounds[:400]], WIDTH_PX, ANGLES).tolist() == [False] * 31 + [True]
    band = np.array([[5 * WIDTH_PX, 9 * WIDTH_PX]])
    assert last_row_fraction(band, WIDTH_PX) == 1


def test_masks_from_files_are_not_a_table(demo_folder: pathlib.Path, folder: pathlib.Path) -> None:
    (folder / "train_masks.csv.zip").unlink()
    shutil.copy(demo_folder / "train_masks.zip", folder)
    assert not isinstance(CARVANA.open_masks(folder), CsvMasks) and CARVANA.open_dataset(folder).warning == ""
