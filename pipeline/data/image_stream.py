"""Images to predict, in batches of one shape, decoded at every scale that some network needs.

Unlike the batches of `loader.validation_loader` these know their names, and can continue past an image that cannot be
read.
"""
import functools
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data.competition import ImageSet
from pipeline.data.images import grid_shape
from pipeline.data.loader import Loader, bytes_at_scales, to_shareable_tensor, worker_options
from pipeline.runtime.problem import Problem

OnBadImage = Literal["error", "empty"]  # what to do with an image that cannot be read: stop, or write an empty row


class LoadedImage(NamedTuple):
    """An image; or black pixels and the reason why it cannot be read."""

    name: str
    image_of_scale: dict[int, NDArray[np.uint8]]  # scale -> (H, W, 3)
    problem: str  # "" for a good image


class Batch(NamedTuple):
    """Images of `names`, followed by black ones up to the common batch size."""

    names: list[str]
    image_of_scale: dict[int, Tensor]  # scale -> uint8 (N, H, W, 3)
    problems: dict[str, str]  # name of a bad image -> what is wrong with it


class ImagesAtScales(Dataset):
    """`[name]` -> `LoadedImage`.

    shape: (height, width) at full size. on_bad_image: "error" raises Problem for an image that cannot be read, "empty"
    returns black pixels with the reason.
    """

    def __init__(self, images: ImageSet, scales: tuple[int, ...], shape: tuple[int, int], on_bad_image: OnBadImage):
        self.images, self.scales, self.shape, self.on_bad_image = images, scales, shape, on_bad_image

    def __getitem__(self, name: str) -> LoadedImage:
        try:
            return LoadedImage(name, {scale: self.images.read(name, scale) for scale in self.scales}, "")
        except Problem as problem:
            if self.on_bad_image == "error":
                raise
            black = {scale: np.zeros((*grid_shape(*self.shape, scale), 3), np.uint8) for scale in self.scales}
            return LoadedImage(name, black, str(problem))


def stream(
    dataset: ImagesAtScales, name_batches: list[list[str]], batch_size: int, workers: int, pin_memory: bool
) -> Loader:
    """Return a loader that yields a `Batch` for each of the lists of names, which have at most `batch_size` of them."""
    collate = functools.partial(fill_batch, batch_size=batch_size)
    options = worker_options(workers, pin_memory, batch_size * bytes_at_scales(dataset.scales, *dataset.shape, 3))
    return Loader(dataset, batch_sampler=name_batches, collate_fn=collate, **options)


def fill_batch(images: list[LoadedImage], batch_size: int) -> Batch:
    """Stack images, and black ones after them, to a batch of `batch_size`."""
    image_of_scale: dict[int, Tensor] = {}
    for scale, first in images[0].image_of_scale.items():
        image_NHWC = np.zeros((batch_size, *first.shape), np.uint8)
        for place, image in enumerate(images):
            image_NHWC[place] = image.image_of_scale[scale]
        image_of_scale[scale] = to_shareable_tensor(image_NHWC)
    problems = {image.name: image.problem for image in images if image.problem}
    return Batch([image.name for image in images], image_of_scale, problems)
