"""A folder thrown together from several habits is read right, or refused in one sentence that names one of them."""
import functools
import itertools
import pathlib
import random
import re
import shutil
import unicodedata
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline.data.image_folder import ImageFolder
from pipeline.runtime.problem import Problem

IMAGES = 6
PAIRS, TRIPLES = 200, 100  # of 400 and 4,000
LIGHT, DARK = (210, 190, 170), (40, 60, 80)


@dataclass(frozen=True)
class Habit:
    """How somebody makes the files of a folder. aspect: of what; two habits of one aspect share the images."""

    aspect: str  # image, mask, name, place or beside
    make: Any
    says: str = ""  # of the sentence that refuses it; "": it is read

    def __repr__(self) -> str:
        return self.make.__name__ if callable(self.make) else str(self.make)


@functools.cache
def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 (48, 72, 3) and its mask, bool; the object is well off the middle."""
    mask = np.zeros((48, 72), np.uint8)
    cv2.circle(mask, (14 + 3 * number, 12 + 2 * number), 9 + number, 1, -1)
    return np.where(mask[..., None], LIGHT, DARK).astype(np.uint8), mask.astype(bool)


# --- images: array, path without suffix -> file ------------------------------------------------------


def jpg(image, path): Image.fromarray(image).save(f"{path}.jpg", quality=95)
def upper_case_jpeg(image, path): Image.fromarray(image).save(f"{path}.JPEG", quality=95)
def png(image, path): Image.fromarray(image).save(f"{path}.png")
def tif(image, path): Image.fromarray(image).save(f"{path}.tif")
def grey(image, path): Image.fromarray(image).convert("L").save(f"{path}.png")
def rgba(image, path): Image.fromarray(image).convert("RGBA").save(f"{path}.png")
def palette(image, path): Image.fromarray(image).quantize(8).save(f"{path}.png")
def cmyk(image, path): Image.fromarray(image).convert("CMYK").save(f"{path}.jpg", quality=95)
def deep_png(image, path): cv2.imwrite(f"{path}.png", image.astype(np.uint16) * 257)
def deep_tif(image, path): cv2.imwrite(f"{path}.tif", image.astype(np.uint16) * 4)
def bmp(image, path): Image.fromarray(image).save(f"{path}.bmp")


def turned_jpg(image, path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = Image.fromarray(image).transpose(Image.Transpose.ROTATE_90)
    stored.save(f"{path}.jpg", quality=95, exif=exif)


# --- masks: bool array, path without suffix -> file --------------------------------------------------


def white(mask): return Image.fromarray(mask.astype(np.uint8) * 255)
def mask_255(mask, path): white(mask).save(f"{path}.png")
def mask_1(mask, path): Image.fromarray(mask.astype(np.uint8)).save(f"{path}.png")
def mask_65535(mask, path): Image.fromarray(mask.astype(np.uint16) * 65535).save(f"{path}.png")
def mask_bit(mask, path): white(mask).convert("1").save(f"{path}.png")
def mask_tif(mask, path): white(mask).save(f"{path}.tif")
def mask_jpg(mask, path): white(mask).save(f"{path}.jpg", quality=90)
def mask_rgb(mask, path): white(mask).convert("RGB").save(f"{path}.png")
def mask_rgba(mask, path): white(mask).convert("RGBA").save(f"{path}.png")
def mask_quantized(mask, path): white(mask).quantize(2).save(f"{path}.png")
def mask_adaptive(mask, path): white(mask).convert("RGB").convert("P", palette=1).save(f"{path}.png")
def mask_on_nothing(mask, path): Image.fromarray(np.dstack([mask.astype(np.uint8) * 255] * 4)).save(f"{path}.png")
def mask_red(mask, path): cv2.imwrite(f"{path}.png", np.dstack([mask * np.uint8(value) for value in (0, 0, 255)]))
def mask_in_range_100(mask, path): Image.fromarray(mask.astype(np.uint8) * 100).save(f"{path}.png")


def mask_smooth(mask, path):
    Image.fromarray(cv2.GaussianBlur(mask.astype(np.uint8) * 255, (3, 3), 0)).save(f"{path}.png")


def mask_voc(mask, path):
    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(f"{path}.png")


# --- names: number -> stem of the image, stem of the mask --------------------------------------------


def same(number): return f"p{number}", f"p{number}"
def ends_in_mask(number): return f"p{number}", f"p{number}_mask"
def ends_in_segmentation(number): return f"ISIC_{number:07}", f"ISIC_{number:07}_segmentation"
def blanks_and_dots(number): return f"scan {number}.v1", f"scan {number}.v1"


def decomposed(number):
    return unicodedata.normalize("NFD", f"é{number}"), unicodedata.normalize("NFC", f"é{number}")


# --- places: number -> folder of the image, folder of the mask ---------------------------------------


def flat(number): return "images", "masks"
def split_inside(number): return tuple(f"{kind}/{'val' if number % 2 else 'train'}" for kind in ("images", "masks"))
def split_outside(number): return tuple(f"{'test' if number % 2 else 'train'}/{kind}" for kind in ("images", "masks"))
def patients(number): return f"images/patient{number // 2}", f"masks/patient{number // 2}"


# --- what lies beside --------------------------------------------------------------------------------


def files_of_systems(folder):
    for name in ("images/Thumbs.db", "images/.DS_Store", "masks/._p0.png", "README.txt"):
        if (folder / name).parent.is_dir():
            (folder / name).write_text("?")


HABITS = [
    *(Habit("image", make) for make in (upper_case_jpeg, png, tif, grey, rgba, palette, cmyk, turned_jpg)),
    Habit("image", deep_png, "has 16 bits a colour"), Habit("image", deep_tif, "has 16 bits a colour"),
    Habit("image", bmp, "is not a JPEG, PNG or TIFF"),
    *(Habit("mask", make) for make in (
        mask_1, mask_65535, mask_bit, mask_tif, mask_jpg, mask_rgb, mask_rgba, mask_quantized, mask_adaptive,
        mask_on_nothing, mask_smooth, mask_voc)),
    Habit("mask", mask_red, "in colour"), Habit("mask", mask_in_range_100, "values 0, 100, but one object is"),
    *(Habit("name", make) for make in (ends_in_mask, ends_in_segmentation, blanks_and_dots, decomposed)),
    Habit("place", split_inside), Habit("place", split_outside),
    Habit("place", patients, r"sub-folders \(patient0, patient1, patient2\)"),
    Habit("beside", files_of_systems),
]  # fmt: skip
USUAL = {"image": jpg, "mask": mask_255, "name": same, "place": flat}
MIXED_PLACES = r"beside the sub-folders|has both images/ and|sub-folders \(|the sub-folders .* but a split is"


def write_folder(folder: pathlib.Path, habits: tuple[Habit, ...], images: int = IMAGES) -> dict[str, int]:
    """Write images and masks as these habits would; return the name of each image and its number."""
    number_of = {}
    for number in range(images):
        makers = {aspect: [habit.make for habit in habits if habit.aspect == aspect] for aspect in USUAL}
        make = {aspect: of[number // 2 % len(of)] if of else USUAL[aspect] for aspect, of in makers.items()}
        image, mask = draw(number)
        stems, places = make["name"](number), make["place"](number)
        for stem, place, save, values in zip(stems, places, (make["image"], make["mask"]), (image, mask)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            save(values, folder / place / stem)
        split = places[0].replace("images", "").strip("/")
        number_of[f"{split}/{stems[0]}" if split else stems[0]] = number
    for habit in habits:
        if habit.aspect == "beside":
            habit.make(folder)
    return number_of


def check_reading(folder: pathlib.Path, number_of: dict[str, int]) -> None:
    """Assert that the folder is read as it was drawn."""
    dataset = ImageFolder(folder, (), 255, None, None)
    assert set(dataset.names) == set(number_of)
    for name, number in number_of.items():
        image, mask = draw(number)
        assert (dataset.truth(name) != mask).mean() < 0.004, name  # a JPEG's edge
        assert ((dataset.read(name, 1).mean(-1) > 125) != mask).mean() < 0.02, name
    assert len(dataset.folds(2)) == IMAGES


def combinations() -> list[tuple[Habit, ...]]:
    pick = random.Random(0).sample
    sizes = ((1, len(HABITS)), (2, PAIRS), (3, TRIPLES))
    return [habits for size, count in sizes for habits in pick(list(itertools.combinations(HABITS, size)), count)]


def test_two_or_three_habits_are_read_right_or_named(tmp_path: pathlib.Path) -> None:
    """A habit that is read must not be refused for the company it keeps, and one that is refused never be read."""
    refused = 0
    for habits in combinations():
        folder = tmp_path / "folder"
        number_of = write_folder(folder, habits)
        says = [habit.says for habit in habits if habit.says]
        says += [MIXED_PLACES] if sum(habit.aspect == "place" for habit in habits) > 1 else []
        try:
            check_reading(folder, number_of)
            assert not says, habits
        except Problem as problem:
            refused += 1
            assert says and re.search("|".join(says), str(problem)), (habits, str(problem))
            assert str(problem).endswith(".") and "\n" not in str(problem)
        except AssertionError as error:
            pytest.fail(f"{habits}: {error}")
        shutil.rmtree(folder)
    assert 50 < refused < len(combinations()) / 2
