"""Test-time augmentation (TTA): transform an image in several ways and average the predictions.

`TTA_SETS` is the table: a new set is one line there, and `predict.tta` then takes its name. An image is transformed on
the device, where it is already, and the prediction is transformed back onto its grid, so that the mean is over the
same cells.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TtaTransform:
    """Mirror a batch of images, then resize it, then shift it by cells."""

    flip: bool = False  # left and right
    zoom: float = 1.0  # of both sides
    shift: tuple[int, int] = (0, 0)  # cells down and to the right; the edge is repeated

    def apply(self, image_NHWC: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> the transformed images, uint8, or float32 from 0 to 255 if resized."""
        transformed = image_NHWC.flip(2) if self.flip else image_NHWC
        if self.zoom != 1:
            rows, columns = (round(self.zoom * side) for side in transformed.shape[1:3])
            transformed = resize(transformed.permute(0, 3, 1, 2).float(), rows, columns).permute(0, 2, 3, 1)
        return shift(transformed, *self.shift)

    def invert(self, prob_NHW: Tensor, rows: int, columns: int) -> Tensor:
        """Predictions of the transformed images, float32 (N, h, w) -> of the originals, float32 (N, rows, columns)."""
        down, right = self.shift
        prob_NHW = shift(prob_NHW, -down, -right)
        if self.zoom != 1:
            prob_NHW = resize(prob_NHW[:, None], rows, columns)[:, 0]
        return prob_NHW.flip(2) if self.flip else prob_NHW


FLIPS = (TtaTransform(), TtaTransform(flip=True))
# A U-Net that halves 4 times has a grid of 16 cells; an image shifted by 5 lies differently on each of its levels.
SHIFTS = ((5, 5), (5, -5), (-5, 5), (-5, -5))
TTA_SETS: dict[str, tuple[TtaTransform, ...]] = {
    "none": (TtaTransform(),),
    "hflip": FLIPS,
    "hflip+scales": (*FLIPS, *(TtaTransform(flip, zoom) for zoom in (0.8, 1.25) for flip in (False, True))),
    "shifts": (TtaTransform(), *(TtaTransform(shift=shift) for shift in SHIFTS)),
}


def resize(map_NCHW: Tensor, rows: int, columns: int) -> Tensor:
    """Shrink by averaging, enlarge by linear interpolation; both ends of a side stay where they are."""
    return F.interpolate(map_NCHW, size=(rows, columns), mode="bilinear", antialias=True)


def shift(map_NHW: Tensor, down: int, right: int) -> Tensor:
    """Move (N, H, W) or (N, H, W, C) by this many cells, with the edges repeated."""
    for axis, by in ((1, down), (2, right)):
        if by:
            cells = torch.arange(map_NHW.shape[axis], device=map_NHW.device) - by
            map_NHW = map_NHW.index_select(axis, cells.clamp(0, map_NHW.shape[axis] - 1))
    return map_NHW
