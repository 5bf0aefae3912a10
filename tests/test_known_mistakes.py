"""The best-known mistakes of submissions are named before they cost a submission, and right masks give no alarm."""
import csv
import pathlib
import shutil
import zipfile
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from salt import SALT

from pipeline import check
from pipeline.__main__ import main
from pipeline.carvana import CARVANA, HEIGHT_PX, WIDTH_PX, image_name
from pipeline.data.competition import Competition
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline.submission import known_mistakes
from pipeline.submission.known_mistakes import Bounds, find_mistake, mean_masks, most_frequent_distance

Mask = NDArray[np.bool_]
Masks = dict[str, Mask]


def resized(mask: Mask, rows: int, columns: int) -> Mask:
    return cv2.resize(mask.view(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST).view(bool)


@pytest.fixture(scope="module")
def masks(demo_folder: pathlib.Path) -> Masks:
    """The true masks of the drawn test car, from 16 angles."""
    with open(demo_folder / "solution.csv", newline="") as file:
        return {row["img"]: rle.decode(row["rle_mask"], HEIGHT_PX, WIDTH_PX) for row in csv.DictReader(file)}


def save(masks: dict[str, Mask], path: pathlib.Path) -> pathlib.Path:
    path.write_text("img,rle_mask\n" + "".join(f"{name},{rle.encode(mask)}\n" for name, mask in masks.items()))
    return path


def rolled(masks: Masks, by: int) -> Masks:
    """Under each name the mask of the image `by` rows before."""
    return dict(zip(masks, np.roll(np.array(list(masks.values())), by, axis=0)))


def each(change: Callable[[Mask], Mask]) -> Callable[[Masks], Masks]:
    return lambda masks: {name: change(mask) for name, mask in masks.items()}


MADE: dict[str, tuple[Callable[[Masks], Masks], str]] = {
    "column-major": (each(lambda mask: mask.T), "the pixels are counted down the columns instead of along the rows"),
    "1920 wide": (each(lambda mask: np.pad(mask, ((0, 0), (0, 2)))), "the masks are 1920 pixels wide instead of 1918"),
    "1024 wide": (each(lambda mask: resized(mask, 1024, 1024)), "the masks are 1024 pixels wide instead of 1918"),
    "half size": (each(lambda mask: resized(mask, 640, 959)), "the masks are 959 pixels wide instead of 1918"),
    "sides exchanged": (each(lambda mask: resized(mask, 1918, 1280)), "or the masks are 1280 pixels wide"),
    "upside down": (each(lambda mask: mask[::-1]), "the masks are upside down"),
    "mirrored": (each(lambda mask: mask[:, ::-1]), "left and right are exchanged"),
    "rotated": (each(lambda mask: mask[::-1, ::-1]), "the masks are rotated by 180 degrees"),
    "background": (each(lambda mask: ~mask), "the masks cover the background"),
    "one row down": (lambda masks: rolled(masks, 1), "each mask is that of the image before"),
    "one row up": (lambda masks: rolled(masks, -1), "each mask is that of the next image"),
    "any order": (
        lambda masks: dict(zip(masks, np.random.default_rng(3).permutation(list(masks.values())))),
        "the masks are not those of their names",
    ),
}


@pytest.mark.parametrize("mistake", MADE)
def test_a_known_mistake_is_named(
    demo_folder: pathlib.Path, masks: Masks, tmp_path: pathlib.Path, mistake: str
) -> None:
    make, sentence = MADE[mistake]
    with pytest.raises(Problem, match=rf"x\.csv: .*{sentence}.*; correct that, or run `make submit FORCE=1`"):
        check.main(save(make(masks), tmp_path / "x.csv"), demo_folder)


def test_force_says_that_it_is_meant(
    demo_folder: pathlib.Path, masks: Masks, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(MADE["upside down"][0](masks), tmp_path / "x.csv")
    arguments = ["check", "--file", "x.csv", "--data", str(demo_folder)]
    pathlib.Path("configs").mkdir()
    pathlib.Path("configs/unet_640.yaml").touch()
    assert main(arguments) == 1 and "upside down" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0 and "upside down" in capsys.readouterr().out


WEAK: dict[str, Callable[[Mask], Mask]] = {
    "right": lambda mask: mask,
    "blurred": lambda mask: cv2.blur(mask.astype(np.float32), (201, 201)) > 0.4,
    "too high": lambda mask: np.roll(mask, -60, axis=0),
    "too far right": lambda mask: np.roll(mask, 120, axis=1),
    "the lower half is missed": lambda mask: mask & (np.arange(HEIGHT_PX)[:, None] < 700),
    "the left half is missed": lambda mask: mask & (np.arange(WIDTH_PX) > 900),
    "noise": lambda mask: mask ^ (np.random.default_rng(0).random(mask.shape) < 0.01),
    "from a coarse grid": lambda mask: np.kron(mask[::8, ::8], np.ones((8, 8), bool))[:, :WIDTH_PX],
    "one box everywhere": lambda mask: np.pad(np.ones((500, 1000), bool), ((400, 380), (450, 468))),
    "a band over all columns": lambda mask: np.pad(np.ones((300, WIDTH_PX), bool), ((400, 580), (0, 0))),
    "nothing": np.zeros_like,
}


@pytest.mark.parametrize("weakness", WEAK)
def test_masks_of_a_weak_network_give_no_alarm(demo_folder: pathlib.Path, masks: Masks, weakness: str) -> None:
    means = mean_masks(CARVANA.open_masks(demo_folder), CARVANA)
    assert find(each(WEAK[weakness])(masks), means=means) is None


def find(masks: Masks, competition: Competition = CARVANA, means: dict[int, NDArray[np.float32]] = {}) -> str | None:
    """What is said of masks that are laid out as the competition counts pixels."""
    bounds = {name: rle.bounds(mask.T if competition.column_major else mask) for name, mask in masks.items()}
    counts = [known_mistakes.count_first_column(runs, competition) for runs in bounds.values()]
    first_column = (sum(first for first, _ in counts), sum(before for _, before in counts))
    return find_mistake(bounds, list(bounds), competition, means, first_column)


def test_without_training_masks_the_length_of_rows_still_tells_and_the_rest_does_not(
    demo_folder: pathlib.Path, masks: Masks, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(demo_folder / "sample_submission.csv.zip", tmp_path)
    with pytest.raises(Problem, match="1920 pixels wide instead of 1918"):
        check.main(save(MADE["1920 wide"][0](masks), tmp_path / "x.csv"), tmp_path)
    check.main(save(MADE["mirrored"][0](masks), tmp_path / "x.csv"), tmp_path)
    assert "The masks were not compared with training masks" in capsys.readouterr().out


def test_the_gifs_serve_where_there_is_no_table(
    demo_folder: pathlib.Path, masks: Masks, tmp_path: pathlib.Path
) -> None:
    for name in ("sample_submission.csv.zip", "train_masks.zip"):
        shutil.copy(demo_folder / name, tmp_path)
    with zipfile.ZipFile(tmp_path / "train_masks.zip") as archive:
        assert len(archive.namelist()) > 16
    with pytest.raises(Problem, match="upside down"):
        check.main(save(MADE["upside down"][0](masks), tmp_path / "x.csv"), tmp_path)


def test_starts_counted_from_0_show_in_masks_that_touch_the_first_column(masks: Masks) -> None:
    touching = {name: mask.copy() for name, mask in masks.items()}
    for mask in touching.values():
        mask[600:700, :50] = True
    assert find(touching) is None
    message = find({name: np.roll(mask, -1) for name, mask in touching.items()})
    assert message is not None and message.startswith("the starts of runs are counted from 0")
    assert find({name: np.roll(mask, -1) for name, mask in masks.items()}) is None  # one pixel to the left


def test_a_competition_whose_pixels_count_down_the_columns_has_columns_of_a_length(masks: Masks) -> None:
    """Salt: 101 x 90 pixels, without angles."""
    small = {name: resized(mask, SALT.height_px, SALT.width_px) for name, mask in masks.items()}
    assert find(small, SALT) is None
    message = find({name: mask.T for name, mask in small.items()}, SALT)
    assert message is not None and "counted along the rows instead of down the columns" in message
    message = find({name: np.pad(mask, ((0, 6), (0, 0))) for name, mask in small.items()}, SALT)
    assert message is not None and "the masks are 96 pixels high instead of 90" in message


def test_stripes_inside_rows_are_not_rows() -> None:
    stripes = np.tile(np.arange(WIDTH_PX) % 600 < 200, (HEIGHT_PX, 1))
    bounds: list[Bounds] = [rle.bounds(stripes)] * 20
    assert most_frequent_distance(bounds, WIDTH_PX)[2] > 0.9
    assert find({image_name(f"{number:012x}", "01"): stripes for number in range(20)}) is None


def test_the_sample_is_spread_over_all_names_and_angles() -> None:
    names = [image_name(f"{car:012x}", f"{angle:02d}") for car in range(6254) for angle in range(1, 17)]
    sample = known_mistakes.sample_names(names)
    assert len(sample) == 256 and sample == sorted(sample) and known_mistakes.sample_names(names[:50]) == names[:50]
    assert {name[13:15] for name in sample} == {f"{angle:02d}" for angle in range(1, 17)}


def test_names_without_an_angle_are_not_compared(masks: Masks, demo_copy: pathlib.Path) -> None:
    bounds = {f"image {number}.jpg": rle.bounds(mask) for number, mask in enumerate(masks.values())}
    means = mean_masks(CARVANA.open_masks(demo_copy), CARVANA)
    assert means and find_mistake(bounds, list(bounds), CARVANA, means) is None
    (demo_copy / "train_masks.csv").write_text("img,rle_mask\nfoo.jpg,1 1\n")
    assert known_mistakes.read_mean_masks(demo_copy, CARVANA)[0] == {}
