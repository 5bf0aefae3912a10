"""Drawn cars and the demo competition: images, masks and archives."""
import csv
import io
import pathlib
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline import carvana
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline.synthetic import cars, write_competition
from pipeline.synthetic.car_makes import MAKES, make_car

IMAGE_SHAPE = (carvana.HEIGHT_PX, carvana.WIDTH_PX)


def test_same_car_and_angle_give_the_same_pixels() -> None:
    first, second = (cars.draw_car(make_car("Fjord", 7), [3])[0] for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_an_angle_is_the_same_alone_and_among_all_16() -> None:
    car = make_car("Hazel", 1)
    images = cars.draw_car(car)
    assert len(images) == carvana.ANGLES
    image, mask = cars.draw_car(car, [11])[0]
    np.testing.assert_array_equal(images[10][0], image)
    np.testing.assert_array_equal(images[10][1], mask)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("angle", [2, 5])
def test_a_mask_is_one_component_inside_the_image(make: str, angle: int) -> None:
    image, mask = cars.draw_car(make_car(make, 2), [angle])[0]
    assert image.shape == (*IMAGE_SHAPE, 3) and image.dtype == np.uint8
    assert mask.shape == IMAGE_SHAPE and mask.dtype == np.bool_
    assert 0.08 < mask.mean() < 0.40
    assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    assert components == 1


def test_makes_cars_and_angles_differ() -> None:
    def mask_of(make: str, seed: int, angle: int) -> np.ndarray:
        return cars.draw_car(make_car(make, seed), [angle])[0][1]

    saloon = mask_of("Aster", 0, 5)
    for other in (mask_of("Gale", 0, 5), mask_of("Aster", 1, 5), mask_of("Aster", 0, 1)):
        assert np.mean(saloon != other) > 0.01


def test_mask_edges_lie_on_image_edges() -> None:
    """The image changes more across the mask's outline than a few pixels beside it."""
    image, mask = cars.draw_car(make_car("Ember", 2), [4])[0]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    gradient = np.abs(np.diff(grey, axis=1))
    outline = mask[:, 1:] != mask[:, :-1]
    off_by_4 = np.roll(outline, 4, axis=1) & ~outline
    assert gradient[outline].mean() > 4 * gradient[off_by_4].mean()


def read_table(folder: pathlib.Path, name: str) -> list[dict[str, str]]:
    with zipfile.ZipFile(folder / f"{name}.zip") as archive:
        csv.field_size_limit(10**7)
        return list(csv.DictReader(io.StringIO(archive.read(name).decode())))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data") / "demo"
    write_competition.main(folder, cars=2, test_cars=1, workers=2)
    return folder


def test_demo_has_kaggles_files_and_members(demo: pathlib.Path) -> None:
    assert {path.name for path in demo.iterdir()} == {*write_competition.FILES, "demo.json", ".lock"}
    metadata = read_table(demo, "metadata.csv")
    assert list(metadata[0]) == ["id", "year", "make", "model", "trim1", "trim2"]
    ids = {row["id"] for row in metadata}
    assert len(ids) == 3 and set(write_competition.NUMBER_LIKE_IDS) <= ids

    names = {}
    for set_name in ("train", "train_masks", "test"):
        with zipfile.ZipFile(demo / f"{set_name}.zip") as archive:
            assert archive.testzip() is None
            folders, names[set_name] = zip(*(name.split("/") for name in archive.namelist()))
            assert set(folders) == {set_name}
    assert len(names["train"]) == 32 and len(names["test"]) == 16
    assert all(carvana.CARVANA.pattern(".jpg").fullmatch(name) for name in names["train"] + names["test"])
    assert list(names["train_masks"]) == [carvana.CARVANA.mask_file(name) for name in names["train"]]
    assert not {name[:12] for name in names["train"]} & {name[:12] for name in names["test"]}

    sample = read_table(demo, "sample_submission.csv")
    assert [row["img"] for row in sample] == sorted(names["test"])
    assert {row["rle_mask"] for row in sample} == {"1 1"}
    solution = list(csv.DictReader((demo / "solution.csv").read_text().splitlines()))
    assert [row["img"] for row in solution] == sorted(names["test"])
    assert {row["Usage"] for row in solution} == {"Public", "Private"}


def test_demo_masks_are_the_same_in_gif_and_csv(demo: pathlib.Path) -> None:
    rows = {row["img"]: row["rle_mask"] for row in read_table(demo, "train_masks.csv")}
    with zipfile.ZipFile(demo / "train_masks.zip") as archive:
        for name in list(rows)[::5]:
            gif = Image.open(io.BytesIO(archive.read(f"train_masks/{carvana.CARVANA.mask_file(name)}")))
            assert gif.mode == "P"
            mask = np.asarray(gif)
            assert mask.shape == IMAGE_SHAPE and set(np.unique(mask)) == {0, 1}
            np.testing.assert_array_equal(rle.decode(rows[name], *IMAGE_SHAPE), mask == 1)


def test_demo_is_left_alone_and_drawn_again_to_the_same_bytes(
    demo: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (demo / name).read_bytes() for name in write_competition.FILES}
    written = (demo / "test.zip").stat().st_mtime_ns
    write_competition.main(demo, cars=2, test_cars=1)
    assert "is there already" in capsys.readouterr().out
    assert (demo / "test.zip").stat().st_mtime_ns == written

    (demo / "train_masks.csv.zip").unlink()  # as if interrupted
    write_competition.main(demo, cars=2, test_cars=1, workers=1)
    assert {name: (demo / name).read_bytes() for name in write_competition.FILES} == before


def test_demo_never_overwrites_a_competition(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.zip").write_bytes(b"5,088 images")
    with pytest.raises(Problem, match="train.zip.*demo.json"):
        write_competition.main(tmp_path, cars=1, test_cars=1)
    assert (tmp_path / "train.zip").read_bytes() == b"5,088 images"
