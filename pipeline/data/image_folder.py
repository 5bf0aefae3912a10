"""Read your own images: a plain folder of images and masks, as a `data.dataset.SegmentationDataset`.

    images/NAME.jpg        images of any size, JPEG, PNG or TIFF, of 8 bits a colour; turned upright as their EXIF says
    masks/NAME.png         the mask of each, of the same size; `mask_files` says which values and colours mean what
    groups.csv             optional: image,group. Images of one group (patient, place, car) are held out together

`folder_files` says which other names and sub-folders are read. Every image is resized to data.height x data.width,
which is full size from then on: images by area averages or linearly, masks by their nearest pixels, so that classes are
never mixed.
"""
import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import grouping
from pipeline.data.folder_files import SUFFIXES, composed, find_files
from pipeline.data.images import (
    PILLOW_ERRORS, check_depth, coverage, downsample_image, downsample_labels, upright_rgb, upright_size,
)  # fmt: skip
from pipeline.data.mask_files import Colour, Mask, palette_colours, read_mask
from pipeline.data.spreadsheet import read_spreadsheet
from pipeline.masks.confusion import ignored
from pipeline.runtime.files import digest, digest_arrays, stamp
from pipeline.runtime.problem import Problem, counted

GROUPS = "groups.csv"
HEADER = ("image", "group")
MAX_NOTED = 100  # masks that are read at the start of a training for its notes
MAX_NAMES = 4  # of classes that a note lists


class MaskFacts(NamedTuple):
    """What one mask holds, from `ImageFolder.check`."""

    present: frozenset[int]  # class indices that a pixel has; of one object 0 for the background and 1
    grey_px: int  # of one object: pixels neither clearly background nor clearly object
    pixels: int


class ImageFolder:
    """Images and masks of a folder.

    classes: their names, () for a binary task. ignore_index: the value in masks of pixels without a label.
    height, width: full size; None: all images must have the size of the first. Raises Problem if images/ or masks/
    is missing, an image has no mask or a mask no image, an image has more than 8 bits a colour, or groups.csv does not
    list exactly the images.
    """

    stored_scale, channels, has_angles = 1, 3, False

    def __init__(
        self, folder: pathlib.Path, classes: tuple[str, ...], ignore_index: int, height: int | None, width: int | None
    ):
        self.where, self.classes, self.ignore_index = str(folder), classes, ignore_index
        self.image_of, self.mask_of, self.fold_of, self.warning = find_files(folder)
        self.names = sorted(self.image_of)
        if ignore_index < len(classes):
            what = f"task.ignore_index is {ignore_index}, which is the class {classes[ignore_index]}"
            raise Problem(f"{what}; set it to a value that no class has, {len(classes)} or more.")
        self.group_of = read_groups(folder / GROUPS, self.image_of)
        for path in self.image_of.values():
            with open_image(path) as image:  # some 0.05 ms
                check_depth(image, str(path))
        self.resizes = height is not None
        self.size_of_image: dict[str, tuple[int, int]] = {}
        self.height, self.width = (height, width) if height and width else size_of(self.image_of[self.names[0]])
        self.fingerprint = digest((self.height, self.width), self.resizes, classes, ignore_index)

    def read(self, name: str, scale: int) -> NDArray[np.uint8]:
        path = self.image_of[name]
        with open_image(path) as image:
            pixels = upright_rgb(image, str(path))
        self.check_size(path, *pixels.shape[:2])
        if pixels.shape[:2] != (self.height, self.width):
            shrinks = pixels.shape[0] >= self.height and pixels.shape[1] >= self.width
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            pixels = cv2.resize(pixels, (self.width, self.height), interpolation=interpolation)
        return downsample_image(pixels, scale)

    def check_size(self, path: pathlib.Path, height: int, width: int) -> None:
        """Raise Problem for an image of another size than the first, if images are not resized."""
        if not self.resizes and (height, width) != (self.height, self.width):
            what = f"{path} is {width}x{height}, but the first image {self.width}x{self.height}"
            raise Problem(f"{what}; set data.height and data.width, and all are brought to that size.")

    def inspect(self, name: str) -> str:
        """Decode a JPEG at 1/8, which finds what cuts it short in a fifth of the time, and a PNG as a whole."""
        path = self.image_of[name]
        with open_image(path) as image:
            self.check_size(path, *upright_size(image))
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))  # of a PNG it changes nothing
            pixels = upright_rgb(image, str(path))
        return digest_arrays(pixels, self.truth(name))

    def stamp(self, name: str) -> str:
        return f"{stamp(self.image_of[name])} {stamp(self.mask_of[name])}"

    def target(self, name: str, scale: int) -> NDArray:
        truth = self.truth(name)
        return downsample_labels(truth, scale) if self.classes else coverage(truth, scale)

    def truth(self, name: str) -> NDArray:
        truth = self.read_mask(name).truth
        if truth.shape != (self.height, self.width):
            truth = resize_nearest(truth, self.height, self.width)
        return truth

    def read_mask(self, name: str) -> Mask:
        """Read the mask of an image as its file has it, upright but not resized."""
        path = self.mask_of[name]
        with open_image(path) as image:
            mask = read_mask(image, len(self.classes), self.ignore_index, str(path))
        if name not in self.size_of_image:  # to find it, all of a PNG must be read
            self.size_of_image[name] = size_of(self.image_of[name])
        size = self.size_of_image[name]
        if mask.truth.shape != size:
            what = f"{path}: the mask is {mask.truth.shape[1]}x{mask.truth.shape[0]}, but its image {size[1]}x{size[0]}"
            turned = " (upright: its EXIF turns it, so turn the mask, too)" if mask.truth.shape == size[::-1] else ""
            raise Problem(f"{what}{turned}; they must have the same size.")
        for index, colour in mask.colours.items():
            other, first = self.first_colours.get(index, (path, colour))
            if colour != first and (self.classes or index == 0):  # an object may have any colour
                what = f"{other} and {path} have palettes in which index {index} has different colours"
                raise Problem(f"{what}, so that it may not mean the same; save masks as grey PNGs without palette.")
        return mask

    @functools.cached_property
    def first_colours(self) -> dict[int, tuple[pathlib.Path, Colour]]:
        """Map palette index -> the first mask whose palette has it, and its colour there, from the masks' headers."""
        first: dict[int, tuple[pathlib.Path, Colour]] = {}
        for name in self.names:
            with open_image(self.mask_of[name]) as image:
                colours = palette_colours(image)
            if self.classes or not all(len(set(colour)) == 1 for colour in colours.values()):  # see `read_palette`
                for index, colour in colours.items():
                    first.setdefault(index, (self.mask_of[name], colour))
        return first

    def check(self, name: str) -> MaskFacts:
        """Read all of a mask and the header of its image, and return what the mask holds.

        Raises Problem for what `truth` and `read` would refuse, but for an image that is damaged behind its header.
        """
        truth, grey_px, _ = self.read_mask(name)
        self.check_size(self.image_of[name], *self.size_of_image[name])
        present = frozenset(np.unique(truth).astype(int).tolist())
        return MaskFacts(present - ({ignored(truth.dtype)} if self.classes else set()), grey_px, truth.size)

    def notes(self, names: list[str]) -> list[str]:
        """Return sentences on what is unusual in the masks of these images; of many images it reads MAX_NOTED masks."""
        count = min(len(names), MAX_NOTED)
        facts = [self.check(names[index * len(names) // count]) for index in range(count)]
        which = counted(len(names), "training mask")
        which = which if count == len(names) else f"{count} of the {which}"
        left_out = [self.warning] if self.warning else []
        return [*note_masks(facts, self.classes, which), *self.note_black(), *left_out]

    def note_black(self) -> list[str]:
        """Return a sentence if a class, but not the first, is black in the masks' palettes: often the background is."""
        colours = {index: colour for index, (_, colour) in self.first_colours.items() if index < len(self.classes)}
        black = [index for index, colour in colours.items() if not any(colour)]
        if not black or 0 in black:
            return []
        others = f"{self.classes[0]} is {colours[0]}" if 0 in colours else f"{self.classes[0]} has no colour"
        what = f"In the palettes of {self.where} black is the class {self.classes[black[0]]}, and {others}"
        return [f"{what}; if that is wrong, save masks as grey PNGs with class indices as their values."]

    def group_key(self, name: str) -> str:
        return name

    def folds(self, count: int) -> pd.DataFrame:
        """Columns image, group and fold: the official split if sub-folders give one, else `count` folds of groups."""
        if not self.fold_of:
            return grouping.assign_folds(self.group_of, count)
        rows = [(name, self.group_of[name], self.fold_of[name]) for name in self.names]
        table = pd.DataFrame(rows, columns=[*grouping.IMAGE_COLUMNS, "fold"])
        for group, fold in table[table["group"] != ""].groupby("group")["fold"]:
            if fold.nunique() > 1:
                what = f"{self.where}: group {group} of {GROUPS} has images both in train and held out"
                raise Problem(f"{what}; move them into one sub-folder, or take {GROUPS} away.")
        return table


def note_masks(facts: list[MaskFacts], classes: tuple[str, ...], which: str) -> list[str]:
    """Return sentences on classes that no pixel has and on grey pixels. which: the masks, as "20 training masks"."""
    present = frozenset().union(*(mask.present for mask in facts))
    names = classes or ("background", "object")
    absent = [name for index, name in enumerate(names) if index not in present]
    notes = []
    if absent:
        listed = ", ".join(absent[:MAX_NAMES]) + (", ..." if len(absent) > MAX_NAMES else "")
        what = f"{len(absent)} of the {len(names)} classes: {listed}" if classes else f"the {listed}"
        hint = "; for one object and its background remove the line `task:` from the config"
        notes.append(f"No pixel of {which} has {what}{hint if len(present) < 2 and classes else ''}.")
    if grey_px := sum(mask.grey_px for mask in facts):
        fraction = grey_px / sum(mask.pixels for mask in facts)
        what = f"{grey_px} pixels ({fraction:.2%}) of {which} are grey, neither black nor white"
        notes.append(f"{what}; those at or above half of the range, such as 128 of 255, are object.")
    return notes


def read_groups(path: pathlib.Path, image_of: dict[str, pathlib.Path]) -> dict[str, str]:
    """Map image -> its group in `groups.csv`; to "", a group of its own, if there is no such file."""
    if not path.is_file():
        return dict.fromkeys(image_of, "")
    table = read_spreadsheet(path, HEADER)
    name_of = {composed(name): name for name in image_of}
    stems = [stem_of_row(image, name_of) for image in table["image"]]
    group_of_stem = dict(zip(stems, table["group"]))
    if len(group_of_stem) < len(stems):
        raise Problem(f"{path} has two lines for {max(stems, key=stems.count)}; each image is in one group.")
    if only_one := sorted(group_of_stem.keys() ^ name_of.keys()):
        where = f"only in {path.name}" if only_one[0] in group_of_stem else "only in images/"
        split = "; names of an official split begin with its folder" if any("/" in name for name in name_of) else ""
        raise Problem(f"{path} and images/ do not name the same images: {only_one[0]} is {where}{split}.")
    return {name_of[stem]: group for stem, group in group_of_stem.items()}


def stem_of_row(image: str, name_of: dict[str, str]) -> str:
    """Return the NFC name of an image in `groups.csv`, which may have its suffix and the folders above it."""
    path = pathlib.PurePosixPath(composed(image))
    stem = str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else composed(image)
    return stem if stem in name_of else stem.rpartition("/")[2]


def size_of(path: pathlib.Path) -> tuple[int, int]:
    """(height, width) of an image, upright."""
    with open_image(path) as image:
        return upright_size(image)


@contextlib.contextmanager
def open_image(path: pathlib.Path) -> Iterator[Image.Image]:
    """Open a JPEG, PNG or TIFF. Raises Problem for what cannot be read, also while it is open."""
    try:
        with Image.open(path, formats=["JPEG", "PNG", "TIFF"]) as image:
            if image.format == "TIFF" and (pages := count_pages(image)) > 1:
                raise Problem(f"{path} has {pages} pages of one size; save each as a file of its own, with its mask.")
            yield image
    except Problem:
        raise
    except PILLOW_ERRORS as error:
        reason = " ".join(str(error).split())[:80]
        what = f"{path} is not a whole JPEG, PNG or TIFF image, or has colours or bits that are not read"
        advice = "copy it again from where it came, or save it as PNG of 8 bits a colour"
        raise Problem(f"{what} ({reason}); {advice}.") from None


def count_pages(image: Image.Image) -> int:
    """Return how many pages of a TIFF have the size of the first; smaller ones are previews of it."""
    size, count = image.size, getattr(image, "n_frames", 1)
    sizes = []
    for page in range(1, count):
        image.seek(page)
        sizes.append(image.size)
    image.seek(0)
    return 1 + sizes.count(size)


def resize_nearest(values: NDArray, height: int, width: int) -> NDArray:
    """Resize a mask, same dtype: each new pixel takes the value of the old pixel in which its centre lies."""
    row = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(int)
    column = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(int)
    return values[np.ix_(row, column)]
