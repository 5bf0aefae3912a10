"""Test-time augmentation: a picture seen in several ways, whose predictions are averaged.

A view is made on the device out of the pictures that are there already, and its prediction is brought back
onto their grid, so that the mean over views is one over the same cells.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TtaTransform:
    """A way to see a batch of pictures: mirrored, then at another size, then moved by cells."""

    flip: bool = False  # left and right
    zoom: float = 1.0  # of both sides
    shift: tuple[int, int] = (0, 0)  # cells down and to the right; what comes in is the edge repeated

    def apply(self, image_NHWC: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> the view of them, uint8, or float32 from 0 to 255 where it has another size."""
        seen = image_NHWC.flip(2) if self.flip else image_NHWC
        if self.zoom != 1:
            rows, columns = (round(self.zoom * side) for side in seen.shape[1:3])
            seen = resized(seen.permute(0, 3, 1, 2).float(), rows, columns).permute(0, 2, 3, 1)
        return shifted(seen, *self.shift)

    def invert(self, prob_NHW: Tensor, rows: int, columns: int) -> Tensor:
        """Predictions for the view, float32 (N, h, w) -> for the pictures, float32 (N, rows, columns)."""
        down, right = self.shift
        prob_NHW = shifted(prob_NHW, -down, -right)
        if self.zoom != 1:
            prob_NHW = resized(prob_NHW[:, None], rows, columns)[:, 0]
        return prob_NHW.flip(2) if self.flip else prob_NHW


FLIPS = (TtaTransform(), TtaTransform(flip=True))
# A U-Net that halves 4 times sees a picture on a grid of 16 cells; moved by 5 it lies elsewhere on each level of it.
SHIFTS = ((5, 5), (5, -5), (-5, 5), (-5, -5))
ANGLES: dict[str, tuple[TtaTransform, ...]] = {
    "none": (TtaTransform(),),
    "hflip": FLIPS,
    "hflip+scales": (*FLIPS, *(TtaTransform(flip, zoom) for zoom in (0.8, 1.25) for flip in (False, True))),
    "shifts": (TtaTransform(), *(TtaTransform(shift=shift) for shift in SHIFTS)),
}


def resized(map_NCHW: Tensor, rows: int, columns: int) -> Tensor:
    """Smaller by averages, larger by straight lines; both ends of a side stay where they are."""
    return F.interpolate(map_NCHW, size=(rows, columns), mode="bilinear", antialias=True)


def shifted(map_NHW: Tensor, down: int, right: int) -> Tensor:
    """(N, H, W) or (N, H, W, C) moved by so many cells, the edges repeated."""
    for axis, by in ((1, down), (2, right)):
        if by:
            cells = torch.arange(map_NHW.shape[axis], device=map_NHW.device) - by
            map_NHW = map_NHW.index_select(axis, cells.clamp(0, map_NHW.shape[axis] - 1))
    return map_NHW
