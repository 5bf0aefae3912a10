"""Read your own images: a plain folder of images and masks, as a `data.dataset.SegmentationDataset`.

    images/NAME.jpg        images of any size, JPEG or PNG, of 8 bits a colour; turned upright as their EXIF says
    masks/NAME.png         the mask of each, of the same size, upright: a grey or palette PNG whose values are class
                           indices or, for a binary task, 0 for the background and 1 or 255 for the object
    groups.csv             optional: image,group. Images of one group (patient, place, car) are held out together

Every image is resized to data.height x data.width, which is full size from then on: images by area averages or
linearly, masks by their nearest pixels, so that classes are never mixed.
"""
import contextlib
import pathlib
from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import grouping
from pipeline.data.csv_table import stream_rows
from pipeline.data.images import (
    PILLOW_ERRORS, coverage, downsample_image, downsample_labels, upright_rgb, upright_size,
)  # fmt: skip
from pipeline.masks.confusion import ignored, index_dtype
from pipeline.runtime.files import digest
from pipeline.runtime.problem import Problem

SUFFIXES = (".jpg", ".jpeg", ".png")
GROUPS = "groups.csv"
HEADER = ["image", "group"]


class ImageFolder:
    """Images and masks of a folder.

    classes: their names, () for a binary task. ignore_index: the value in masks of pixels without a label.
    height, width: full size; None: all images must have the size of the first. Raises Problem if images/ or masks/
    is missing, an image has no mask or a mask no image, or groups.csv does not list exactly the images.
    """

    stored_scale, channels, has_angles, notes = 1, 3, False, ""

    def __init__(
        self, folder: pathlib.Path, classes: tuple[str, ...], ignore_index: int, height: int | None, width: int | None
    ):
        self.where, self.classes, self.ignore_index = str(folder), classes, ignore_index
        self.image_of = files_of(folder / "images", SUFFIXES)
        self.mask_of = files_of(folder / "masks", (".png",))
        self.names = sorted(self.image_of)
        if missing := sorted(self.image_of.keys() - self.mask_of.keys()):
            first = f"{missing[0]}.png"
            raise Problem(f"{folder / 'masks'} lacks the masks of {len(missing)} images; the first is {first}.")
        if missing := sorted(self.mask_of.keys() - self.image_of.keys()):
            raise Problem(f"{folder / 'images'} lacks the images of {len(missing)} masks; the first is {missing[0]}.")
        if ignore_index < len(classes):
            what = f"task.ignore_index is {ignore_index}, which is the class {classes[ignore_index]}"
            raise Problem(f"{what}; set it to a value that no class has, {len(classes)} or more.")
        self.group_of = read_groups(folder / GROUPS, self.image_of)
        self.resizes = height is not None
        self.size_of_image: dict[str, tuple[int, int]] = {}
        self.height, self.width = (height, width) if height and width else size_of(self.image_of[self.names[0]])
        files = [(path.name, path.stat().st_size) for of in (self.image_of, self.mask_of) for path in of.values()]
        self.fingerprint = digest(files, (self.height, self.width), classes)

    def read(self, name: str, scale: int) -> NDArray[np.uint8]:
        path = self.image_of[name]
        with open_image(path) as image:
            pixels = upright_rgb(image, str(path))
        if pixels.shape[:2] != (self.height, self.width):
            if not self.resizes:
                what = f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, but the first image {self.width}x{self.height}"
                raise Problem(f"{what}; set data.height and data.width, and all are brought to that size.")
            shrinks = pixels.shape[0] >= self.height and pixels.shape[1] >= self.width
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            pixels = cv2.resize(pixels, (self.width, self.height), interpolation=interpolation)
        return downsample_image(pixels, scale)

    def target(self, name: str, scale: int) -> NDArray:
        truth = self.truth(name)
        return downsample_labels(truth, scale) if self.classes else coverage(truth, scale)

    def truth(self, name: str) -> NDArray:
        path = self.mask_of[name]
        with open_image(path) as mask:
            if mask.mode not in ("P", "L", "1") and not mask.mode.startswith("I"):
                what = "but it must be a grey or palette PNG whose values are class indices"
                raise Problem(f"{path}: the mask's colours are {mask.mode}, {what}; save it as one.")
            values = np.asarray(mask)
        if name not in self.size_of_image:  # to find it, all of a PNG must be read
            self.size_of_image[name] = size_of(self.image_of[name])
        size = self.size_of_image[name]
        if values.shape != size:
            what = f"{path}: the mask is {values.shape[1]}x{values.shape[0]}, but its image {size[1]}x{size[0]}"
            raise Problem(f"{what}; they must have the same size.")
        truth = self.to_class_indices(values, path) if self.classes else to_mask(values, path)
        if truth.shape != (self.height, self.width):
            truth = resize_nearest(truth, self.height, self.width)
        return truth

    def to_class_indices(self, values: NDArray, path: pathlib.Path) -> NDArray:
        """Convert a mask's values to class indices; pixels without a label get the largest value of the dtype."""
        is_valid = values != self.ignore_index
        if wrong := values[is_valid & (values >= len(self.classes))][:1].tolist():
            known = f"{len(self.classes)}, from 0 to {len(self.classes) - 1}"
            advice = "name all classes, or set task.ignore_index to the value without a label"
            raise Problem(f"{path}: the mask has the value {wrong[0]}, but task.classes has {known}; {advice}.")
        dtype = index_dtype(len(self.classes))
        return np.where(is_valid, values, ignored(dtype)).astype(dtype)

    def group_key(self, name: str) -> str:
        return name

    def folds(self, count: int) -> pd.DataFrame:
        return grouping.assign_folds(self.group_of, count)


def files_of(folder: pathlib.Path, suffixes: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Map name without suffix -> file, for a folder's files with one of these suffixes."""
    if not folder.is_dir():
        raise Problem(f"There is no folder {folder}; a plain folder has images/ and masks/, name it with DATA=.")
    path_of: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in path_of:
                raise Problem(f"{path_of[path.stem]} and {path} have the same name; rename one, and its mask.")
            path_of[path.stem] = path
    if not path_of:
        raise Problem(f"{folder} holds no file that ends in {', '.join(suffixes)}.")
    return path_of


def read_groups(path: pathlib.Path, image_of: dict[str, pathlib.Path]) -> dict[str, str]:
    """Map image -> its group in `groups.csv`; to "", a group of its own, if there is no such file."""
    if not path.is_file():
        return dict.fromkeys(image_of, "")
    header, *rows = [fields for _, fields in stream_rows(path, advice="correct that row")] or [[]]
    if header != HEADER:
        raise Problem(f"{path} must have the columns image,group, and a line for each image.")
    stems = [pathlib.Path(image).stem if pathlib.Path(image).suffix.lower() in SUFFIXES else image for image, _ in rows]
    group_of = {stem: group for stem, (_, group) in zip(stems, rows)}
    if len(group_of) < len(rows):
        raise Problem(f"{path} has two lines for {max(stems, key=stems.count)}; each image is in one group.")
    if only_one := sorted(group_of.keys() ^ image_of.keys()):
        raise Problem(f"{path} and images/ do not name the same images: {only_one[0]} is in only one of them.")
    return group_of


def size_of(path: pathlib.Path) -> tuple[int, int]:
    """(height, width) of an image, upright."""
    with open_image(path) as image:
        return upright_size(image)


@contextlib.contextmanager
def open_image(path: pathlib.Path) -> Iterator[Image.Image]:
    """Open a JPEG or PNG. Raises Problem for what cannot be read, also while it is open."""
    try:
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            yield image
    except Problem:
        raise
    except PILLOW_ERRORS as error:
        raise Problem(f"{path} is not a whole JPEG or PNG image ({' '.join(str(error).split())[:80]}).") from None


def to_mask(values: NDArray, path: pathlib.Path) -> NDArray[np.bool_]:
    """Convert a binary mask's values, 0 and 1 or 0 and 255, to bool (height, width)."""
    distinct = set(np.unique(values).tolist())
    if not (distinct <= {0, 1} or distinct <= {0, 255}):
        shown = ", ".join(map(str, sorted(distinct)[:4]))
        what = f"{path}: the mask has the values {shown}, but a binary one has 0 and 1, or 0 and 255"
        raise Problem(f"{what}; for several classes set task.kind multiclass and name them in task.classes.")
    return values > 0


def resize_nearest(values: NDArray, height: int, width: int) -> NDArray:
    """Resize a mask, same dtype: each new pixel takes the value of the old pixel in which its centre lies."""
    row = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(int)
    column = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(int)
    return values[np.ix_(row, column)]
