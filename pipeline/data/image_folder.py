"""Your own pictures: a plain folder of images and masks, as a `data.dataset.SegmentationDataset`.

    images/NAME.jpg        photos of any size, JPEG or PNG, of 8 bits a colour; turned upright as their EXIF says
    masks/NAME.png         of each its mask, of the same size, upright: a grey or palette PNG whose values are class
                           indices, or, of a binary task, 0 for the background and 1 or 255 for the object
    groups.csv             optional: image,group. Pictures of one group (patient, place, car) are held out together

Whatever its size, a picture is brought to data.height x data.width, which is full size from then on: photos by
averages or straight lines, masks by their nearest pixels, so that no class is mixed.
"""
import contextlib
import csv
import pathlib
from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data import grouping
from pipeline.data.images import downsample_image, coverage, downsample_labels, upright_rgb, upright_size
from pipeline.runtime.files import digest
from pipeline.masks.confusion import ignored, index_dtype
from pipeline.runtime.problem import Problem

SUFFIXES = (".jpg", ".jpeg", ".png")
GROUPS = "groups.csv"
HEADER = ["image", "group"]
UNREADABLE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class ImageFolder:
    """classes: their names, none for a binary task. ignore_index: the value in masks of pixels that are not judged.

    height, width: of full size; None: all pictures must have the size of the first. Raises Problem where images/ or
    masks/ is missing, an image has no mask or a mask no image, or groups.csv does not name the images.
    """

    stored_scale, channels = 1, 3

    def __init__(
        self, folder: pathlib.Path, classes: tuple[str, ...], ignore_index: int, height: int | None, width: int | None
    ):
        self.where, self.classes, self.ignore_index = str(folder), classes, ignore_index
        self.image_of = files_of(folder / "images", SUFFIXES)
        self.mask_of = files_of(folder / "masks", (".png",))
        self.names = sorted(self.image_of)
        if without := sorted(self.image_of.keys() - self.mask_of.keys()):
            first = f"{without[0]}.png"
            raise Problem(f"{folder / 'masks'} lacks the masks of {len(without)} images; the first is {first}.")
        if without := sorted(self.mask_of.keys() - self.image_of.keys()):
            raise Problem(f"{folder / 'images'} lacks the images of {len(without)} masks; the first is {without[0]}.")
        if ignore_index < len(classes):
            raise Problem(
                f"task.ignore_index is {ignore_index}, which is the class {classes[ignore_index]}; set it to a value "
                f"that no class has, {len(classes)} or more."
            )
        self.group_of = read_groups(folder / GROUPS, self.image_of)
        self.must_fit = height is None
        self.size_of_photo: dict[str, tuple[int, int]] = {}
        self.height, self.width = (height, width) if height and width else size_of(self.image_of[self.names[0]])
        files = [(path.name, path.stat().st_size) for of in (self.image_of, self.mask_of) for path in of.values()]
        self.fingerprint = digest(files, (self.height, self.width), classes)

    def read(self, name: str, scale: int) -> NDArray[np.uint8]:
        path = self.image_of[name]
        with opened(path) as image:
            pixels = upright_rgb(image, str(path))
        if pixels.shape[:2] != (self.height, self.width):
            if self.must_fit:
                raise Problem(
                    f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, but the first image is "
                    f"{self.width}x{self.height}; set data.height and data.width, and all are brought to that size."
                )
            smaller = pixels.shape[0] >= self.height and pixels.shape[1] >= self.width
            way = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            pixels = cv2.resize(pixels, (self.width, self.height), interpolation=way)
        return downsample_image(pixels, scale)

    def target(self, name: str, scale: int) -> NDArray:
        truth = self.truth(name)
        return downsample_labels(truth, scale) if self.classes else coverage(truth, scale)

    def truth(self, name: str) -> NDArray:
        path = self.mask_of[name]
        with opened(path) as mask:
            if mask.mode not in ("P", "L", "1") and not mask.mode.startswith("I"):
                raise Problem(
                    f"{path}: the mask's colours are {mask.mode}, but it must be a grey or palette PNG whose values "
                    "are class indices; save it as one."
                )
            values = np.asarray(mask)
        if name not in self.size_of_photo:  # for which all of a PNG must be read
            self.size_of_photo[name] = size_of(self.image_of[name])
        size = self.size_of_photo[name]
        if values.shape != size:
            raise Problem(
                f"{path}: the mask is {values.shape[1]}x{values.shape[0]}, but its image {size[1]}x{size[0]}; they "
                "must have the same size."
            )
        truth = self.indices(values, path) if self.classes else is_object(values, path)
        if truth.shape != (self.height, self.width):
            truth = nearest(truth, self.height, self.width)
        return truth

    def indices(self, values: NDArray, path: pathlib.Path) -> NDArray:
        """Class indices of a mask's values, with the mark of pixels that are not judged."""
        is_valid = values != self.ignore_index
        if wrong := values[is_valid & (values >= len(self.classes))][:1].tolist():
            raise Problem(
                f"{path}: the mask has the value {wrong[0]}, but task.classes has {len(self.classes)}, from 0 to "
                f"{len(self.classes) - 1}; name all classes, or set task.ignore_index to the value that is none."
            )
        dtype = index_dtype(len(self.classes))
        return np.where(is_valid, values, ignored(dtype)).astype(dtype)

    def folds(self, count: int) -> pd.DataFrame:
        return grouping.assign_images(self.group_of, count)


def files_of(folder: pathlib.Path, suffixes: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Name without suffix -> file, of a folder's files with one of these suffixes."""
    if not folder.is_dir():
        raise Problem(f"There is no folder {folder}; a plain folder has images/ and masks/, name it with DATA=.")
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise Problem(f"{found[path.stem]} and {path} have the same name; rename one, and its mask.")
            found[path.stem] = path
    if not found:
        raise Problem(f"{folder} holds no file that ends in {', '.join(suffixes)}.")
    return found


def read_groups(path: pathlib.Path, image_of: dict[str, pathlib.Path]) -> dict[str, str]:
    """Image -> its group, as `groups.csv` names them; without that file each image is one by itself, named ""."""
    if not path.is_file():
        return dict.fromkeys(image_of, "")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{path} cannot be read as a table ({error}).") from None
    rows = [row for row in rows if row]
    if header != HEADER or any(len(row) != len(HEADER) for row in rows):
        raise Problem(f"{path} must have the columns image,group, and a line for each image.")
    stems = [pathlib.Path(image).stem if pathlib.Path(image).suffix.lower() in SUFFIXES else image for image, _ in rows]
    group_of = {stem: group for stem, (_, group) in zip(stems, rows)}
    if len(group_of) < len(rows):
        raise Problem(f"{path} has two lines for {max(stems, key=stems.count)}; each image is in one group.")
    if others := sorted(group_of.keys() ^ image_of.keys()):
        raise Problem(f"{path} and images/ do not name the same images: {others[0]} is in only one of them.")
    return group_of


def size_of(path: pathlib.Path) -> tuple[int, int]:
    """(height, width) of a photo, upright."""
    with opened(path) as image:
        return upright_size(image)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """A JPEG or PNG; Problem for what cannot be read."""
    try:
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            yield image
    except Problem:
        raise
    except UNREADABLE as error:
        raise Problem(f"{path} is no whole JPEG or PNG picture ({' '.join(str(error).split())[:80]}).") from None


def is_object(values: NDArray, path: pathlib.Path) -> NDArray[np.bool_]:
    """bool (height, width) of a binary mask's values: 0, and 1 or 255."""
    found = set(np.unique(values).tolist())
    if not (found <= {0, 1} or found <= {0, 255}):
        some = ", ".join(map(str, sorted(found)[:4]))
        raise Problem(
            f"{path}: the mask has the values {some}, but a binary one has 0 and 1, or 0 and 255; "
            "for several classes set task.kind multiclass and name them in task.classes."
        )
    return values > 0


def nearest(values: NDArray, height: int, width: int) -> NDArray:
    """A mask brought to another size, same dtype: of each pixel the one of the old mask in which its middle lies."""
    row = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(int)
    column = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(int)
    return values[np.ix_(row, column)]
