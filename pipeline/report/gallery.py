"""Pictures for a page: a small photo, and over it, as PNGs of few colours, truth, prediction and errors.

A photo is kept once, as a JPEG; what lies over it is transparent where there is nothing to say, so that a page shows
any of the layers without another photo. Beside it is a piece around the worst place, pixel for pixel. All are data
URLs: the page is one file. Some 45 kB a picture, so that 300 need 15 MB.
"""
import base64
import io
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.masks.colours import ADDED, MISSED, OBJECT

SMALL_WIDTH_PX = 480
CROP_PX = (128, 192)  # rows and columns of the piece that is shown pixel for pixel
JPEG_QUALITY = 78
OPACITY = 140  # of what lies over a photo, of 255
RIGHT, MISSED_CLASS, ADDED_CLASS = 0, 1, 2
ERROR_PALETTE = ((0, 0, 0, 0), (*MISSED, 255), (*ADDED, 255))
MASK_PALETTE = ((0, 0, 0, 0), (*OBJECT, OPACITY))


@dataclass(frozen=True)
class Card:
    """What the page shows of one picture. Images are data URLs; `layers` and `crop_layers` map a layer to one."""

    name: str
    photo: str
    layers: dict[str, str]
    crop: str
    crop_layers: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)  # dice, make, view, fold ...: filters and captions
    tags: tuple[str, ...] = ()  # why it is here: worst, median, random, suspect ...


def card(
    name: str,
    photo_small: NDArray[np.uint8],
    photo: NDArray[np.uint8],
    truth: NDArray[np.bool_] | None,
    predicted: NDArray[np.bool_],
    spot: tuple[int, int],
    facts: dict[str, Any],
    tags: tuple[str, ...] = (),
) -> Card:
    """photo_small, photo: RGB uint8 (rows, columns, 3), the second as large as the masks, bool (height, width).

    spot: row and column around which the piece is cut; truth: None where nobody knows it.
    """
    window = window_around(spot, CROP_PX, predicted.shape)
    masks = {"prediction": predicted} if truth is None else {"truth": truth, "prediction": predicted}
    layers = {name: png(small_mask(mask), MASK_PALETTE) for name, mask in masks.items()}
    crop_layers = {name: png(mask[window].astype(np.uint8), MASK_PALETTE) for name, mask in masks.items()}
    if truth is not None:
        layers["errors"] = png(small_errors(truth, predicted), ERROR_PALETTE)
        crop_layers["errors"] = png(errors(truth[window], predicted[window]), ERROR_PALETTE)
    return Card(name, jpeg(small_photo(photo_small)), layers, jpeg(photo[window], 88), crop_layers, facts, tags)


def window_around(spot: tuple[int, int], size: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Slices of a piece of that size with the spot in the middle, moved to lie inside a picture of that shape."""
    starts = [min(max(0, at - side // 2), max(0, whole - side)) for at, side, whole in zip(spot, size, shape)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, size))
    return rows, columns


def errors(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The class of each pixel: right, missed or added; uint8, of the masks' shape."""
    return ((truth & ~predicted) * MISSED_CLASS + (predicted & ~truth) * ADDED_CLASS).astype(np.uint8)


def edge_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask that touch its background."""
    return mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def small_errors(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The errors on the small grid: a cell is wrong when at least an eighth of its pixels are, in the way most are."""
    missed, added = (cover(wrong) for wrong in (truth & ~predicted, predicted & ~truth))
    wrong = np.maximum(missed, added) >= 0.125
    return np.where(wrong, np.where(missed > added, MISSED_CLASS, ADDED_CLASS), RIGHT).astype(np.uint8)


def small_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return (cover(mask) >= 0.5).astype(np.uint8)


def cover(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The share of each cell of the small grid that is set."""
    return cv2.resize(mask.astype(np.float32), small_size(mask.shape), interpolation=cv2.INTER_AREA)


def small_photo(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.resize(photo, small_size(photo.shape), interpolation=cv2.INTER_AREA)


def small_size(shape: tuple[int, ...], width_px: int = SMALL_WIDTH_PX) -> tuple[int, int]:
    """Columns and rows, as OpenCV wants them."""
    return width_px, round(width_px * shape[0] / shape[1])


def jpeg(photo: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> str:
    """A data URL of RGB uint8 (rows, columns, 3)."""
    data = cv2.imencode(".jpg", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def png(classes: NDArray[np.uint8], palette: tuple[tuple[int, ...], ...]) -> str:
    """A data URL of classes (rows, columns) in the colours of a palette of (red, green, blue, opacity)."""
    image = Image.new("P", classes.shape[::-1])
    image.putpalette([channel for colour in palette for channel in colour[:3]])
    image.frombytes(np.ascontiguousarray(classes).tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", transparency=bytes(colour[3] for colour in palette), optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def thumbnail(photo: NDArray[np.uint8], width_px: int = 160) -> str:
    """A data URL of a photo, as small as it is shown on the ring of views."""
    small = cv2.resize(photo, small_size(photo.shape, width_px), interpolation=cv2.INTER_AREA)
    return jpeg(small, 70)
