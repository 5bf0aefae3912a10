"""What the engine knows of the pictures that it learns from: no more than a `SegmentationDataset`.

Three readers stand behind it, and `data.kind` in a config chooses one: the competition's archives (`competition`),
NYU Depth v2's one file (`nyuv2`), or a plain folder of images and masks (`image_folder`). A reader is imported when it
is wanted. A fourth is a class with the names below and a line in `open_dataset`.
"""
import pathlib
from typing import Protocol

import pandas as pd
from numpy.typing import NDArray

from pipeline.config import Data, Task


class SegmentationDataset(Protocol):
    """Pictures with the truth about them, all of one size, checked when opened as far as that costs no decoding.

    An instance may be handed to forked workers; one that keeps a file open opens it again in each process. Methods
    raise Problem for what cannot be read. Class indices have the dtype of
    `pipeline.masks.confusion.index_dtype`, whose largest value marks pixels that are not judged.
    """

    names: list[str]  # of all pictures with a truth, sorted
    height: int  # pixels at full size
    width: int
    stored_scale: int  # 1, or the scale at which a light copy of the pictures was made
    channels: int  # 3: red, green, blue. 4: and depth, 0 near to 255 far
    classes: tuple[str, ...]  # their names, by index; of a binary collection ()
    where: str  # the folder or file, for messages
    fingerprint: str  # tells most other data from these at little cost, wherever they lie; "" where nothing does

    def read(self, name: str, scale: int) -> NDArray:
        """A picture at 1/scale, uint8 (rows, columns, channels), on the grid of `images.grid_shape`."""

    def target(self, name: str, scale: int) -> NDArray:
        """What a network learns on that grid: coverage uint8 (rows, columns), 0 to 255, or class indices."""

    def truth(self, name: str) -> NDArray:
        """What it is judged by at full size: mask bool (height, width), or class indices."""

    def folds(self, count: int) -> pd.DataFrame:
        """Which unit is held out when: a table with the columns of `data.folds.HEADERS`, by whole groups.

        count: how many folds; a collection with an official split may have its own. Problem when it cannot be.
        """


def open_dataset(data: Data, task: Task, folder: pathlib.Path) -> SegmentationDataset:
    """The collection in `folder`, read as these settings say. Raises Problem where it is not what they say."""
    if data.kind == "nyuv2":
        from pipeline.data.nyuv2 import NyuV2

        return NyuV2(folder, classes=task.count, inputs=data.inputs)
    if data.kind == "folder":
        from pipeline.data.image_folder import ImageFolder

        return ImageFolder(folder, task.names, task.ignore_index, data.height, data.width)
    from pipeline.data.competition import Carvana

    return Carvana(folder, data.hq)
