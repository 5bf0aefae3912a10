"""Run lengths and histograms where the predictions are, so that a few kilobytes leave a GPU and not megabytes.

The same numbers, bit for bit, as `rle.bounds` and `dice.histogram` give.
"""
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.masks.dice import THRESHOLDS


def bounds(mask_NHW: Tensor) -> list[NDArray[np.int64]]:
    """`rle.bounds` of each mask of a batch: arrays (runs, 2), for `rle.text`.

    mask_NHW: bool, on any device. Fetching the result waits for the device, once.
    """
    # A pixel that is not set before the first and behind the last: a run begins or ends wherever neighbours differ.
    padded = F.pad(mask_NHW.flatten(1).view(torch.uint8), (1, 1))
    found = (padded[:, 1:] != padded[:, :-1]).nonzero().cpu().numpy()  # (mask, pixel), in order
    first_of_mask = np.searchsorted(found[:, 0], np.arange(len(mask_NHW) + 1))
    return [found[first:last, 1].reshape(-1, 2) for first, last in pairwise(first_of_mask)]


def histograms(probability_u8_NHW: Tensor, mask_NHW: Tensor) -> Tensor:
    """`dice.histogram` of each prediction of a batch, int64 tensor (N, 2, 256) on the same device.

    probability_u8_NHW: uint8; mask_NHW: bool.
    """
    images = len(mask_NHW)
    bin_of_pixel = probability_u8_NHW.flatten(1).long() + THRESHOLDS * mask_NHW.flatten(1)
    bin_of_pixel += 2 * THRESHOLDS * torch.arange(images, device=mask_NHW.device)[:, None]
    return bin_of_pixel.flatten().bincount(minlength=images * 2 * THRESHOLDS).view(images, 2, THRESHOLDS)
