"""The yardstick: how a test set of this competition is usually predicted.

As in many public solutions of 2017, and in milesial/Pytorch-UNet's predict.py: one image at a time is decoded at
full size, resized, and goes through the network in float32, then its mirror image does. The mean is upsampled to full
size and saved as a PNG. A second pass reads the PNGs, thresholds them and writes the run lengths with pandas.
"""
import pathlib

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pipeline.data.images import grid_shape
from pipeline.model.factory import Segmenter, pad_to_multiple, unpad


def encode(img: NDArray) -> str:
    """The usual numpy encoder of most public solutions; the concatenation widens pixels to 64 bits."""
    pixels = img.flatten()
    pixels = np.concatenate([[0], pixels, [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def encode_without_corners(img: NDArray) -> str:
    """A leaner encoder, which some used: right only if neither the first pixel nor the last is set."""
    pixels = img.flatten()
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 2
    runs[1::2] -= runs[::2]
    return " ".join(map(str, runs))


def predict(network: Segmenter, scale: int, jpegs: list[pathlib.Path], folder: pathlib.Path, threshold_u8: int) -> None:
    """Predict images to `folder/submission.csv.gz`. threshold_u8: the smallest 8-bit value that counts as car."""
    network = network.to(memory_format=torch.contiguous_format)
    for path in jpegs:
        cv2.imwrite(str(folder / f"{path.stem}.png"), probability_u8(network, scale, path))
    maps = (cv2.imread(str(folder / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE) for path in jpegs)
    texts = [encode(np.asarray(probability) >= threshold_u8) for probability in maps]
    table = pd.DataFrame({"img": [path.name for path in jpegs], "rle_mask": texts})
    table.to_csv(folder / "submission.csv.gz", index=False)


@torch.inference_mode()
def probability_u8(network: Segmenter, scale: int, path: pathlib.Path) -> NDArray[np.uint8]:
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    rows, columns = grid_shape(height, width, scale)
    small = torch.from_numpy(cv2.resize(image, (columns, rows))).to(network.mean.device)
    image_NCHW = (small.permute(2, 0, 1)[None] - network.mean) / network.std
    padded_NCHW, margins = pad_to_multiple(image_NCHW, network.multiple)
    padded_NCHW = padded_NCHW.contiguous()
    prob = network.network(padded_NCHW).sigmoid()
    flipped = network.network(padded_NCHW.flip(3)).sigmoid().flip(3)
    mean = unpad((prob + flipped) / 2, margins)[0, 0].cpu().numpy()
    return (255 * cv2.resize(mean, (width, height))).astype(np.uint8)
