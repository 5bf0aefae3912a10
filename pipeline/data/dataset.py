"""What training and validation know of the images that they read: no more than a `SegmentationDataset`.

`data.kind` in a config chooses a reader: a Kaggle competition's archives (`competition`), NYU Depth v2's one file
(`nyuv2`), or a plain folder of images and masks (`image_folder`). A reader is imported only when it is used. Another
competition is a file of facts such as `pipeline/carvana.py` and a line in COMPETITIONS; another reader is a class
with the names below and a line in DATASETS.
"""
import importlib
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from numpy.typing import NDArray

from pipeline.runtime.problem import Problem

if TYPE_CHECKING:  # so that `pipeline.config` may import the tables
    import pandas as pd

    from pipeline.config import Data, Task
    from pipeline.data.competition import Competition


class TrainableImages(Protocol):
    """What a training reads: images and targets by their names, all of one size."""

    height: int  # pixels at full size
    width: int
    channels: int  # 3: red, green, blue. 4: and depth, 0 near to 255 far
    classes: tuple[str, ...]  # their names, by index; () if binary

    def read(self, name: str, scale: int) -> NDArray:
        """Return an image at 1/scale, uint8 (rows, columns, channels), on the grid of `images.grid_shape`."""

    def target(self, name: str, scale: int) -> NDArray:
        """Return what a network learns on that grid: coverage uint8 (rows, columns), 0 to 255, or class indices."""


class SegmentationDataset(TrainableImages, Protocol):
    """Images with their masks, all of one size, checked when opened as far as that needs no decoding.

    An instance may be passed to forked workers; one that keeps a file open opens it again in each process. Methods
    raise Problem for what cannot be read. Class indices have the dtype of `pipeline.masks.confusion.index_dtype`,
    whose largest value marks pixels without a label, which no metric counts.
    """

    names: list[str]  # of all images with a mask, sorted
    stored_scale: int  # 1, or the scale at which `make shrink` copied the images
    where: str  # the folder or file, for messages
    fingerprint: str  # of what decides what is read, beside the files: full size and classes; "" if nothing does
    warning: str  # a sentence on its files that is known when they are opened; "" if nothing is unusual
    has_angles: bool  # whether each key (car) was seen from the same numbered angles, as Carvana's cars were

    def truth(self, name: str) -> NDArray:
        """Return what metrics compare with at full size: mask bool (height, width), or class indices."""

    def inspect(self, name: str) -> str:
        """Return a hash of the pixels of an image and its mask. Raises Problem if a training cannot read them."""

    def stamp(self, name: str) -> str:
        """Return a text that differs once the files of an image have changed, without reading them."""

    def notes(self, names: list[str]) -> list[str]:
        """Return sentences, for the start of a training, on what is unusual in the masks of these images; often []."""

    def group_key(self, name: str) -> str:
        """Return what the first column of folds.csv lists for an image: its car, or its own name."""

    def folds(self, count: int) -> "pd.DataFrame":
        """Return which whole groups each of `count` folds holds out: columns key, group, fold under names of their own.

        A data set with an official split may have another number. Raises Problem if there are too few groups.
        """


def open_nyuv2(data: "Data", task: "Task", folder: pathlib.Path) -> SegmentationDataset:
    from pipeline.data.nyuv2 import NyuV2
    return NyuV2(folder, classes=task.count, inputs=data.inputs)


def open_image_folder(data: "Data", task: "Task", folder: pathlib.Path) -> SegmentationDataset:
    from pipeline.data.image_folder import ImageFolder
    return ImageFolder(folder, task.names, task.ignore_index, data.height, data.width)


# data.kind -> the module and the name there of a `Competition`, or the function that opens another data set.
COMPETITIONS = {"carvana": "pipeline.carvana:CARVANA"}
DATASETS: dict[str, "Callable[[Data, Task, pathlib.Path], SegmentationDataset]"] = {
    "nyuv2": open_nyuv2, "folder": open_image_folder,
}  # fmt: skip


def open_dataset(data: "Data", task: "Task", folder: pathlib.Path) -> SegmentationDataset:
    """Open the data set in `folder` as the settings say. Raises Problem if it is not what they say."""
    if data.kind in DATASETS:
        return DATASETS[data.kind](data, task, folder)
    return competition_of(data.kind).open_dataset(folder, data.hq)


def group_key_of(kind: str) -> Callable[[str], str]:
    """Return `SegmentationDataset.group_key` of this `data.kind` without its images."""
    return competition_of(kind).group_key if kind in COMPETITIONS else str


def competition_of(kind: str) -> "Competition":
    """Look up the facts of the competition with this `data.kind`. Raises Problem if it is not a competition."""
    if kind not in COMPETITIONS:
        raise Problem(f"data.kind is {kind}, but this needs a Kaggle competition: {', '.join(COMPETITIONS)}.")
    module, _, name = COMPETITIONS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
