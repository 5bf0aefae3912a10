"""Tiles along the edge: where a coarse network is unsure, cut out of the image for the network that refines them.

A coarse network is unsure of few cells, nearly all of them along the edge of the object, and nearly all of its loss
lies there (docs/EXPERIMENTS.md). A tile is a square of pixels around some of them. It has four channels: red, green,
blue, and the coarse probability, 0 to 255, brought to the size of the image.
"""
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import Augment
from pipeline.data.competition import CsvMasks
from pipeline.data.dataset import TrainableImages
from pipeline.data.images import grid_shape, upsample_u8
from pipeline.data.loader import DecodedImages, Draw, Kind, Sampling, SizedDataset, seed_of, to_shareable_tensor

SURE_U8 = 5  # probabilities up to 5 / 255 and from 250 / 255 on are sure, 0.02 and 0.98
GROWN_CELLS = 1  # cells beside an unsure one count as unsure, too


def unsure_cells(prob_u8: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which cells of a coarse probability, 0 to 255, (rows, columns), are unsure or beside an unsure one."""
    unsure = ((prob_u8 > SURE_U8) & (prob_u8 < 255 - SURE_U8)).view(np.uint8)
    side = 2 * GROWN_CELLS + 1
    return cv2.dilate(unsure, np.ones((side, side), np.uint8)).view(bool)


def cover(unsure: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """Cover all unsure cells with squares of `side` cells that do not overlap.

    Returns their top left cells, int64 (squares, 2), as few as a simple rule finds: a strip of rows starts at the
    first row that is not covered yet, a square of it at its first column that is not. On real images that takes a
    quarter less than a fixed grid. Squares may hang over the lower and right edge.
    """
    places = []
    row = next_set(unsure.any(axis=1), 0)
    while row >= 0:
        in_strip = unsure[row : row + side].any(axis=0)
        column = next_set(in_strip, 0)
        while column >= 0:
            places.append((row, column))
            column = next_set(in_strip, column + side)
        row = next_set(unsure.any(axis=1), row + side)
    return np.array(places, np.int64).reshape(-1, 2)


def next_set(flags: Any, start: int) -> int:
    """Return the first index from `start` on at which a flag, bool (n,), is set, -1 if there is none."""
    rest = flags[start:]
    return start + int(rest.argmax()) if rest.any() else -1


class TileDataset(SizedDataset):
    """`[(epoch, index)]` -> `tiles_per_image` tiles of an image and their targets, each augmented by itself.

    Tiles are uint8 (tiles, tile_px, tile_px, 4), targets uint8 (tiles, tile_px, tile_px), coverage 0 to 255, both at
    1/scale. Each tile lies around an unsure cell that is drawn at random. An image is decoded once an epoch for all of
    its tiles, which takes longer than to train on one of them; or once in all.

    tile_px, margin_px: of a tile; the top left pixel of the drawn cell is at least `margin_px` away from its border.
    sampling, cache: as of `TrainingDataset`.
    `coarse_png_of`: name -> the coarse probability of an image as PNG, uint8 on the grid at 1/coarse_scale; to be set
    before a tile is drawn.
    """

    def __init__(
        self, dataset: TrainableImages, names: list[str], coarse_scale: int, scale: int, tile_px: int,
        margin_px: int, tiles_per_image: int, augment: Augment, seed: int, relabelled: CsvMasks | None = None,
        sampling: Sampling | None = None, cache: bool = False,
    ):
        self.dataset, self.names = dataset, names
        self.sampling = sampling or Sampling(len(names))
        self.images = DecodedImages(dataset, names, scale, relabelled, self.sampling.always if cache else 0)
        self.coarse_png_of: dict[str, bytes] = {}
        self.coarse_scale, self.scale, self.tile_px, self.margin_px = coarse_scale, scale, tile_px, margin_px
        self.augment, self.seed = augment, seed
        self.steps_per_batch = tiles_per_image  # of a batch of images: on their first tiles, their second ones, ...

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kind(self) -> Kind:
        return Kind("tiles", "refine", f"refine.tile_px {self.tile_px}", "refine.tile_px lower")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return rows, columns and channels of a tile."""
        return self.tile_px, self.tile_px, 4

    @property
    def item_bytes(self) -> int:
        """Return the size of the tiles of an image and their targets."""
        return self.steps_per_batch * self.tile_px**2 * (4 + 1)

    def example(self) -> tuple[NDArray[np.uint8], NDArray]:
        """Return a black tile and its target, to measure how many of them fit into memory."""
        return np.zeros(self.shape, np.uint8), np.zeros((self.tile_px, self.tile_px), np.uint8)

    def __getitem__(self, draw: Draw) -> tuple[NDArray[np.uint8], NDArray]:
        epoch, index = draw
        name = self.names[index]
        image, target = self.images[index]
        coarse_u8 = decode_png(self.coarse_png_of[name])
        shape = grid_shape(self.dataset.height, self.dataset.width, self.scale)
        factor = self.coarse_scale // self.scale
        prob_u8 = upsample_u8(np.divide(coarse_u8, 255, dtype=np.float32), factor, *shape)
        rng = np.random.default_rng(seed_of(self.seed, epoch, index))
        pairs = []
        for number, (top, left) in enumerate(self.draw_places(unsure_cells(coarse_u8), factor, rng)):
            tile = np.dstack((window(image, top, left, self.tile_px), window(prob_u8, top, left, self.tile_px)))
            seed = seed_of(self.seed, epoch, index, number + 1)  # a 0 at its end would not change a seed
            pairs.append(self.augment(tile, window(target, top, left, self.tile_px), seed))
        tiles, targets = zip(*pairs)
        return np.stack(tiles), np.stack(targets)

    def draw_places(
        self, unsure: NDArray[np.bool_], factor: int, rng: np.random.Generator
    ) -> Iterator[tuple[int, int]]:
        """Yield top and left of each tile, in pixels; anywhere in an image without an unsure cell."""
        cells = np.argwhere(unsure if unsure.any() else ~unsure)
        for _ in range(self.steps_per_batch):
            row, column = cells[rng.integers(len(cells))] * factor
            down, right = rng.integers(self.margin_px, self.tile_px - self.margin_px, 2)
            yield int(row - down), int(column - right)


def window(image: NDArray[np.uint8], top: int, left: int, side_px: int) -> NDArray[np.uint8]:
    """Return a square of an image (rows, columns, ...), whose border is repeated where the square hangs over it."""
    rows, columns = image.shape[:2]
    if 0 <= top <= rows - side_px and 0 <= left <= columns - side_px:
        return image[top : top + side_px, left : left + side_px]
    row, column = np.arange(top, top + side_px).clip(0, rows - 1), np.arange(left, left + side_px).clip(0, columns - 1)
    return image[np.ix_(row, column)]


def decode_png(data: bytes) -> NDArray[np.uint8]:
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return image


def stack_tiles(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> tuple[Tensor, Tensor]:
    """Stack the tiles and targets of N images, uint8: (tiles, N, tile_px, tile_px, 4), (tiles, N, tile_px, tile_px)."""
    tiles, targets = zip(*pairs)
    return to_shareable_tensor(np.stack(tiles, axis=1)), to_shareable_tensor(np.stack(targets, axis=1))


def batches_of_tiles(image_batches: Iterable[tuple[Tensor, Tensor]], skip: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first tile of each image of a batch, then the second ones and so on; leave out the first `skip`.

    image_batches: as `stack_tiles` makes them. A batch of tiles has one of every image: those of one image are alike.
    """
    for tile_TNHWC, target_TNHW in image_batches:
        yield from zip(tile_TNHWC[skip:], target_TNHW[skip:])
        skip = 0
