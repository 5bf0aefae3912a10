"""Pictures to be predicted, in batches of one shape, decoded at every scale that some network wants.

Unlike the batches of `dataset.validation_loader` these know their names, never change their size (what is compiled or
tuned for one shape meets no other), and can go on beyond a picture that cannot be read.
"""
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data.competition import ImageSet
from pipeline.data.loader import Loader, to_shareable_tensor, worker_options
from pipeline.data.images import grid_shape
from pipeline.runtime.problem import Problem


class LoadedImage(NamedTuple):
    """A picture, or what was wrong with it in the place of black pixels."""

    name: str
    image_of_scale: dict[int, NDArray[np.uint8]]  # scale -> (H, W, 3)
    problem: str


class Batch(NamedTuple):
    """Some pictures; the images go on behind the last name, in black, to the size of every batch."""

    names: list[str]
    image_of_scale: dict[int, Tensor]  # scale -> uint8 (N, H, W, 3)
    problems: dict[str, str]  # name -> what was wrong with it


class ImagesAtScales(Dataset):
    """`[name]` -> `LoadedImage`.

    shape: (height, width) at full size. forgive: hand on what is wrong with a picture instead of raising it.
    """

    def __init__(self, pictures: ImageSet, scales: tuple[int, ...], shape: tuple[int, int], on_bad_image: bool):
        self.pictures, self.scales, self.shape, self.on_bad_image = pictures, scales, shape, on_bad_image

    def __getitem__(self, name: str) -> LoadedImage:
        try:
            return LoadedImage(name, {scale: self.pictures.read(name, scale) for scale in self.scales}, "")
        except Problem as problem:
            if not self.on_bad_image:
                raise
            black = {scale: np.zeros((*grid_shape(*self.shape, scale), 3), np.uint8) for scale in self.scales}
            return LoadedImage(name, black, str(problem))


def stream(
    dataset: ImagesAtScales, name_batches: list[list[str]], batch_size: int, workers: int, pin_memory: bool
) -> Loader:
    """Yields a `Batch` for each of the lists of names, which have at most `batch_size` of them."""
    options = worker_options(workers, pin_memory)

    def collate(pictures: list[LoadedImage]) -> Batch:
        return filled_batch(pictures, batch_size)

    return Loader(dataset, batch_sampler=name_batches, collate_fn=collate, **options)


def filled_batch(pictures: list[LoadedImage], batch_size: int) -> Batch:
    images: dict[int, Tensor] = {}
    for scale, first in pictures[0].image_of_scale.items():
        filled = np.zeros((batch_size, *first.shape), np.uint8)
        for place, picture in enumerate(pictures):
            filled[place] = picture.image_of_scale[scale]
        images[scale] = to_shareable_tensor(filled)
    problems = {picture.name: picture.problem for picture in pictures if picture.problem}
    return Batch([picture.name for picture in pictures], images, problems)
