"""Cards of a gallery: which images it shows, and each as small PNG layers over a small JPEG.

An image is stored once, as a JPEG; the layers over it (truth, prediction, errors) are PNGs of few colours, transparent
where they have nothing to show, so that the page switches layers without a second image. Beside it is a crop around the
worst place, pixel for pixel. All are data URLs: the page is one file. Some 45 kB an image, so that 300 need 15 MB.
"""
import base64
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.competition import ImageSet
from pipeline.data.dataset import SegmentationDataset
from pipeline.data.images import upsample_u8
from pipeline.masks.colours import ADDED, OBJECT, IGNORED_COLOUR, MISSED, palette
from pipeline.masks.confusion import Indices, ignored
from pipeline.report.overview import display_make
from pipeline.runtime.progress import in_order, progress

WORST, MEDIAN, RANDOM = 120, 60, 120  # images of a gallery: 300 make a page of some 20 MB
SMALL_WIDTH_PX = 480
CROP_PX = (128, 192)  # rows and columns of the crop that is shown pixel for pixel
JPEG_QUALITY, CROP_JPEG_QUALITY = 78, 88
MASK_OPACITY = 140  # of a mask over an image, of 255
CLASS_OPACITY = 190  # of a class map: high, so that the colours stay those of the legend
RIGHT, MISSED_PIXEL, ADDED_PIXEL = 0, 1, 2  # indices into MASK_ERROR_PALETTE
WRONG, IGNORED = 1, 2  # indices into CLASS_ERROR_PALETTE
MASK_PALETTE = ((0, 0, 0, 0), (*OBJECT, MASK_OPACITY))
MASK_ERROR_PALETTE = ((0, 0, 0, 0), (*MISSED, 255), (*ADDED, 255))
CLASS_ERROR_PALETTE = ((0, 0, 0, 0), (*MISSED, 180), (*IGNORED_COLOUR, 110))  # wrong areas are large: translucent
WRONG_CELL_FRACTION = 0.125  # of the pixels of a cell of the small grid, from which it is drawn as wrong


class Layers(NamedTuple):
    """Layer name (truth, prediction, errors, coarse) -> data URL of a PNG: over the small image, and over the crop."""

    small: dict[str, str]
    crop: dict[str, str]


class Card(NamedTuple):
    """One image on the page. All images are data URLs."""

    name: str
    image: str
    crop: str
    layers: Layers
    facts: dict[str, Any]  # score, group, angle, fold ...: filters and captions
    tags: tuple[str, ...]  # why it is shown: worst, median, random, suspect ...


def make_card(
    name: str, small: NDArray[np.uint8], crop: NDArray[np.uint8], layers: Layers, facts: dict[str, Any],
    tags: tuple[str, ...],
) -> Card:  # fmt: skip
    """small: the whole image at any size; crop: its part at full size. Both RGB uint8 (rows, columns, 3)."""
    image = jpeg(cv2.resize(small, small_size(small.shape), interpolation=cv2.INTER_AREA))
    return Card(name, image, jpeg(crop, CROP_JPEG_QUALITY), layers, facts, tags)


def window_around(spot: tuple[int, int], size: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return slices of a window of that size centred on the spot, moved to lie inside an image of that shape."""
    starts = [min(max(0, at - side // 2), max(0, whole - side)) for at, side, whole in zip(spot, size, shape)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, size))
    return rows, columns


def read_small_and_full(
    images: ImageSet | SegmentationDataset, name: str, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read an image twice, RGB without depth: at 1/4 if it is large; at full size, upsampled from a shrunk copy."""
    small_scale = max(4 if width > 3 * SMALL_WIDTH_PX else 1, images.stored_scale)
    small, stored = (np.ascontiguousarray(images.read(name, s)[..., :3]) for s in (small_scale, images.stored_scale))
    if images.stored_scale == 1:
        return small, stored
    channels = [
        upsample_u8(stored[..., channel].astype(np.float32) / np.float32(255), images.stored_scale, height, width)
        for channel in range(3)
    ]
    return small, np.dstack(channels)


def thumbnail(image: NDArray[np.uint8]) -> str:
    """Return a data URL of an image, as small as the ring of angles shows it."""
    return jpeg(cv2.resize(image, small_size(image.shape, width_px=160), interpolation=cv2.INTER_AREA), quality=70)


# --- which images ----------------------------------------------------------------------------------------------------


def section(images: pd.DataFrame, make: Callable[[Any], Card]) -> dict[str, Any]:
    """Return the template's variables: cards of the worst, median and random images, their counts and the filters.

    images: a table of those that can be shown; make: a row of it, with its tags -> its card, called by several threads.
    """
    if not len(images):
        return {"cards": [], "counts": {}, "filters": []}
    rows = choose(images)
    cards = progress(in_order(make, rows.itertuples()), "gallery", total=len(rows))
    return {"cards": list(cards), "counts": count_tags(rows), "filters": filters(rows)}


def choose(images: pd.DataFrame, worst: int = WORST, median: int = MEDIAN, random: int = RANDOM) -> pd.DataFrame:
    """Return rows of the table of images with a column `tags`, the worst first; an image may have several tags.

    The random ones are drawn from all images, always the same.
    """
    by_score = images.sort_values(["score", "img"], ignore_index=True)
    count = len(by_score)
    middle = max(0, (count - median) // 2)
    drawn = np.random.default_rng(0).permutation(count)[:random]
    places_of_tag = {"worst": range(worst), "median": range(middle, middle + median), "random": set(drawn.tolist())}
    tags = [tuple(tag for tag, places in places_of_tag.items() if place in places) for place in range(count)]
    return by_score.assign(tags=tags)[[bool(each) for each in tags]].reset_index(drop=True)


def count_tags(rows: pd.DataFrame) -> dict[str, int]:
    """Count the chosen images with each tag; return {} if all have all tags, since a filter would be useless."""
    counts = {tag: sum(tag in tags for tags in rows["tags"]) for tag in ("worst", "median", "random")}
    return {} if all(count == len(rows) for count in counts.values()) else counts


def filters(rows: pd.DataFrame) -> list[tuple[str, str, list[tuple[Any, str]]]]:
    """Return the gallery's filters: column, label, and (value, text) of each option. Cars have a column `angle`."""
    are_cars = "angle" in rows
    groups = [group for group in sorted(set(rows["group"])) if group or are_cars]
    texts = [(group, display_make(group) if are_cars else group) for group in groups]
    options: list[tuple[str, str, list[tuple[Any, str]]]] = [("group", "Make" if are_cars else "Group", texts)]
    for column in ("angle", "fold"):
        if column in rows:
            options.append((column, column.capitalize(), [(value, str(value)) for value in sorted(set(rows[column]))]))
    return [option for option in options if option[2]]


# --- layers of a mask ------------------------------------------------------------------------------------------------


def mask_layers(
    truth: NDArray[np.bool_] | None, predicted: NDArray[np.bool_], window: tuple[slice, slice],
    coarse: NDArray[np.bool_] | None = None,
) -> Layers:
    """Draw masks, bool (height, width). truth: None if it is unknown; window: of the crop.

    coarse: the prediction before it was refined, whose errors are a layer, too.
    """
    masks = {"prediction": predicted} if truth is None else {"truth": truth, "prediction": predicted}
    small = {layer: png((cell_fraction(mask) >= 0.5).astype(np.uint8), MASK_PALETTE) for layer, mask in masks.items()}
    crop = {layer: png(mask[window].astype(np.uint8), MASK_PALETTE) for layer, mask in masks.items()}
    if truth is not None:
        for layer, mask in {"errors": predicted, "coarse": coarse}.items():
            if mask is not None:
                small[layer] = png(small_mask_errors(truth, mask), MASK_ERROR_PALETTE)
                crop[layer] = png(mask_errors(truth[window], mask[window]), MASK_ERROR_PALETTE)
    return Layers(small, crop)


def mask_errors(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return right, missed or added of each pixel; uint8, of the masks' shape."""
    return ((truth & ~predicted) * MISSED_PIXEL + (predicted & ~truth) * ADDED_PIXEL).astype(np.uint8)


def small_mask_errors(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the errors on the small grid: a wrong cell has the kind that most of its wrong pixels have."""
    missed, added = (cell_fraction(wrong) for wrong in (truth & ~predicted, predicted & ~truth))
    wrong = np.maximum(missed, added) >= WRONG_CELL_FRACTION
    return np.where(wrong, np.where(missed > added, MISSED_PIXEL, ADDED_PIXEL), RIGHT).astype(np.uint8)


def edge_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that touch its background."""
    return mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


# --- layers of a class map -------------------------------------------------------------------------------------------


def class_layers(truth: Indices, predicted: Indices, classes: int, window: tuple[slice, slice]) -> Layers:
    """Draw class maps (height, width) in the palette of `masks.colours`. window: of the crop."""
    maps = {"truth": truth, "prediction": predicted}
    small_maps = {  # each cell has the class of one of its pixels, so that none is invented
        layer: cv2.resize(indices, small_size(indices.shape), interpolation=cv2.INTER_NEAREST)
        for layer, indices in maps.items()
    }
    small = {layer: class_png(indices, classes) for layer, indices in small_maps.items()}
    crop = {layer: class_png(indices[window], classes) for layer, indices in maps.items()}
    small["errors"] = png(small_class_errors(truth, predicted), CLASS_ERROR_PALETTE)
    crop["errors"] = png(class_errors(truth[window], predicted[window]), CLASS_ERROR_PALETTE)
    return Layers(small, crop)


def wrong_pixels(truth: Indices, predicted: Indices) -> NDArray[np.bool_]:
    """Return the valid pixels whose predicted class is not the true one."""
    return (truth != predicted) & (truth != ignored(truth.dtype))


def class_errors(truth: Indices, predicted: Indices) -> NDArray[np.uint8]:
    """Return right, wrong or ignored of each pixel; uint8, of the maps' shape."""
    return np.where(truth == ignored(truth.dtype), IGNORED, wrong_pixels(truth, predicted) * WRONG).astype(np.uint8)


def small_class_errors(truth: Indices, predicted: Indices) -> NDArray[np.uint8]:
    """Return the errors on the small grid."""
    is_ignored = cell_fraction(truth == ignored(truth.dtype)) >= 0.5
    is_wrong = cell_fraction(wrong_pixels(truth, predicted)) >= WRONG_CELL_FRACTION
    return np.where(is_wrong, WRONG, np.where(is_ignored, IGNORED, RIGHT)).astype(np.uint8)


def class_png(indices: Indices, classes: int) -> str:
    """Return a data URL of a class map in the palette's colours; ignored pixels are transparent.

    The PNG has only the colours that it needs, at most 256: of more, the 255 most frequent ones are drawn.
    """
    values, place, counts = np.unique(indices, return_inverse=True, return_counts=True)
    colours = palette(classes)
    frequent = np.sort(counts.argsort()[::-1][:255])
    number = np.full(len(values), len(frequent))  # a rare value gets the index past the palette: transparent as well
    number[frequent] = np.arange(len(frequent))
    table = tuple(
        (*colours[value].tolist(), CLASS_OPACITY) if value < classes else (*IGNORED_COLOUR, 0)
        for value in values[frequent].tolist()
    )
    return png(number[place].reshape(indices.shape).astype(np.uint8), (*table, (0, 0, 0, 0)))


# --- encoding --------------------------------------------------------------------------------------------------------


def cell_fraction(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the fraction of each cell of the small grid that is set."""
    return cv2.resize(mask.astype(np.float32), small_size(mask.shape), interpolation=cv2.INTER_AREA)


def small_size(shape: tuple[int, ...], width_px: int = SMALL_WIDTH_PX) -> tuple[int, int]:
    """Return (columns, rows), the order of OpenCV."""
    return width_px, round(width_px * shape[0] / shape[1])


def jpeg(image: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> str:
    """Return a data URL of RGB uint8 (rows, columns, 3)."""
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def png(indices: NDArray[np.uint8], palette_rgba: tuple[tuple[int, ...], ...]) -> str:
    """Return a data URL of indices (rows, columns) into a palette of (red, green, blue, opacity)."""
    image = Image.new("P", indices.shape[::-1])
    image.putpalette([channel for colour in palette_rgba for channel in colour[:3]])
    image.frombytes(np.ascontiguousarray(indices).tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", transparency=bytes(colour[3] for colour in palette_rgba), optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
