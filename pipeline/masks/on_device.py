"""Run lengths, bits and histograms on the device of the predictions, so that kilobytes leave a GPU, not megabytes.

The results equal those of `rle.bounds` and `dice.histogram`, bit for bit.
"""
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.masks.dice import THRESHOLDS


def bounds(mask_NHW: Tensor) -> list[NDArray[np.int64]]:
    """Return `rle.bounds` of each mask (bool, on any device), arrays (runs, 2). The call waits for the device once."""
    # With a zero before the first pixel and after the last, a run begins or ends wherever neighbours differ.
    padded = F.pad(mask_NHW.flatten(1).view(torch.uint8), (1, 1))
    edges = (padded[:, 1:] != padded[:, :-1]).nonzero().cpu().numpy()  # rows (mask, pixel), in order
    first_of_mask = np.searchsorted(edges[:, 0], np.arange(len(mask_NHW) + 1))
    return [edges[first:last, 1].reshape(-1, 2) for first, last in pairwise(first_of_mask)]


def read_masks(mask_NHW: Tensor) -> Iterator[NDArray[np.bool_]]:
    """Yield each mask (bool, on any device) on the CPU. An eighth of it is copied: its bits."""
    _, height, width = mask_NHW.shape
    padded = F.pad(mask_NHW.flatten(1).view(torch.uint8), (0, -height * width % 8))
    first_bit_highest = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=mask_NHW.device)
    packed = (padded.unflatten(1, (-1, 8)) * first_bit_highest).sum(2, dtype=torch.uint8).cpu().numpy()
    for bits in packed:
        yield np.unpackbits(bits, count=height * width).view(np.bool_).reshape(height, width)


def histograms(probability_u8_NHW: Tensor, mask_NHW: Tensor) -> Tensor:
    """Return `dice.histogram` of each prediction (uint8) and mask (bool), int64 (N, 2, 256) on the same device."""
    images = len(mask_NHW)
    # In place, so that it stays int32; int64 would take twice the memory.
    bin_of_pixel = probability_u8_NHW.flatten(1).int().add_(mask_NHW.flatten(1), alpha=THRESHOLDS)
    bin_of_pixel += 2 * THRESHOLDS * torch.arange(images, dtype=torch.int32, device=mask_NHW.device)[:, None]
    return bin_of_pixel.flatten().bincount(minlength=images * 2 * THRESHOLDS).view(images, 2, THRESHOLDS)
