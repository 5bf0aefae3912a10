"""Refine coarse predictions along the edge: a second network looks closer where the first one is unsure.

The unsure cells of each image are covered with tiles (`data.tiles.cover`). The tiles of all images of a batch go
through the network in batches of one size, whatever the number of images, so that the result of a tile does not depend
on its neighbours, and what is compiled for that size meets no other. Only the middle of a tile counts: at its border
the network sees too little of what is around.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.tiles import cover, unsure_cells
from pipeline.inference.probability import predict_probability, to_u8_on_device, upsample_batch
from pipeline.inference.tta import TtaTransform

PIXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**22}  # of tiles in a batch


@dataclass(frozen=True)
class EdgeRefiner:
    """A trained refiner, and the tiles that it was trained on."""

    network: nn.Module  # a `model.refiner.Refiner`
    scale: int  # tiles are cut out of the image at 1/scale
    tile_px: int  # of a tile, in pixels of that image
    margin_px: int  # of a tile on each side, which is seen but not used
    transforms: tuple[TtaTransform, ...]  # of the tiles; their results are averaged

    @property
    def core_px(self) -> int:
        """Return the side of what is used of a tile."""
        return self.tile_px - 2 * self.margin_px

    def tiles_at_once(self, device: torch.device) -> int:
        """Return how many tiles make a batch."""
        return max(1, PIXELS_AT_ONCE[device.type] // self.tile_px**2)

    @torch.inference_mode()
    def refine(self, image_NHWC: Tensor, coarse_NHW: Tensor, coarse_scale: int) -> "RefinedMaps":
        """Return the coarse probabilities together with their refined tiles.

        image_NHWC: uint8 (N, H, W, 3) at 1/scale; coarse_NHW: float32 at 1/coarse_scale, on the same device.
        """
        factor, (_, rows, columns, _) = coarse_scale // self.scale, image_NHWC.shape
        places_of_image = [  # reading the coarse map is the only time that the CPU waits for a GPU
            cover(unsure_cells(coarse_u8), self.core_px // factor) * factor
            for coarse_u8 in to_u8_on_device(coarse_NHW).cpu().numpy()
        ]
        number = np.repeat(np.arange(len(coarse_NHW)), [len(places) for places in places_of_image])
        image, place = (to_device(array, image_NHWC) for array in (number, np.concatenate(places_of_image)))
        prob_NHW = upsample_batch(coarse_NHW, factor, rows, columns)
        prob_u8_NHW = to_u8_on_device(prob_NHW)
        tiles_at_once = self.tiles_at_once(image_NHWC.device)
        cores = [coarse_NHW.new_zeros(0, self.core_px, self.core_px)]
        for start in range(0, len(place), tiles_at_once):
            chunk = torch.arange(start, start + tiles_at_once, device=place.device).clamp(max=len(place) - 1)
            tile_NHWC = crop_tiles(image_NHWC, prob_u8_NHW, image[chunk], place[chunk] - self.margin_px, self.tile_px)
            cores.append(self.predict_cores(tile_NHWC)[: len(place) - start])
        return RefinedMaps(coarse_NHW, prob_NHW, image, place, torch.cat(cores))

    @torch.inference_mode()
    def predict_cores(self, tile_NHWC: Tensor) -> Tensor:
        """Return the probability in the middle of N tiles, float32 (N, core_px, core_px), the mean over transforms."""
        total_NHW = torch.zeros(tile_NHWC.shape[:3], device=tile_NHWC.device)
        for transform in self.transforms:
            prob_NHW = predict_probability(self.network, transform.apply(tile_NHWC))[:, 0]
            total_NHW += transform.invert(prob_NHW, self.tile_px, self.tile_px) / len(self.transforms)
        inner = slice(self.margin_px, self.tile_px - self.margin_px)
        return total_NHW[:, inner, inner]


def to_device(array: NDArray[np.int64], like: Tensor) -> Tensor:
    """Return an array on the device of a tensor; a copy from pinned memory lets the CPU go on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.device.type == "cuda" else tensor


def crop_tiles(image_NHWC: Tensor, prob_u8_NHW: Tensor, image: Tensor, place: Tensor, tile_px: int) -> Tensor:
    """Return squares of the images and of their probabilities, uint8 (tiles, tile_px, tile_px, 4).

    image: which image each is of, (tiles,); place: its top and left, (tiles, 2), both int64 and on the images' device.
    Where a square hangs over the border of the image, the border is repeated.
    """
    offsets = torch.arange(tile_px, device=place.device)
    row = (place[:, :1] + offsets).clamp(0, image_NHWC.shape[1] - 1)[:, :, None]
    column = (place[:, 1:] + offsets).clamp(0, image_NHWC.shape[2] - 1)[:, None, :]
    number = image[:, None, None]
    return torch.cat((image_NHWC[number, row, column], prob_u8_NHW[number, row, column][..., None]), dim=3)


@dataclass(frozen=True)
class RefinedMaps:
    """Coarse probabilities of a batch of images, and what replaces them along the edge. All on one device."""

    coarse_NHW: Tensor  # float32 (N, rows, columns) on the network's grid
    prob_NHW: Tensor  # float32, the same at the size of the images that the tiles are of
    image: Tensor  # int64 (tiles,): which image each tile is of
    place: Tensor  # int64 (tiles, 2): top and left of each tile
    tile_prob: Tensor  # float32 (tiles, core_px, core_px); tiles may hang over the lower and right border

    def read(self, image: int) -> NDArray[np.float32]:
        """Return the probability of one image, float32 (rows, columns); for results on a CPU.

        Several threads call it, each for another image: numpy's work, since torch would start threads in each of them.
        """
        merged, is_of_image = self.prob_NHW.numpy()[image].copy(), self.image.numpy() == image
        for (top, left), prob in zip(self.place.numpy()[is_of_image], self.tile_prob.numpy()[is_of_image]):
            inside = merged[top : top + prob.shape[0], left : left + prob.shape[1]]
            inside[:] = prob[: inside.shape[0], : inside.shape[1]]
        return merged

    def read_all(self) -> Tensor:
        """Return the probability of all images, float32 (N, rows, columns)."""
        _, rows, columns = self.prob_NHW.shape
        core_px = self.tile_prob.shape[1]
        merged_NHW = F.pad(self.prob_NHW, (0, core_px, 0, core_px))  # with room for what hangs over the border
        offsets = torch.arange(core_px, device=self.place.device)
        row, column = (self.place[:, :1] + offsets)[:, :, None], (self.place[:, 1:] + offsets)[:, None, :]
        merged_NHW[self.image[:, None, None], row, column] = self.tile_prob
        return merged_NHW[:, :rows, :columns]
