"""`gallery` for class maps: truth and prediction in the palette of `masks.palette`, and what of them is wrong."""
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.masks.confusion import Indices, ignored
from pipeline.masks.colours import MISSED, IGNORED_COLOUR, palette
from pipeline.report import gallery

OPACITY = 190  # of class maps over a photo, of 255: the legend's colours stay what they are
RIGHT, WRONG, UNJUDGED = 0, 1, 2
ERROR_PALETTE = ((0, 0, 0, 0), (*MISSED, 180), (*IGNORED_COLOUR, 110))  # what is wrong is large: seen through


def card(
    name: str,
    photo: NDArray[np.uint8],
    truth: Indices,
    predicted: Indices,
    classes: int,
    spot: tuple[int, int],
    facts: dict[str, Any],
    tags: tuple[str, ...] = (),
) -> gallery.Card:
    """photo: RGB uint8 (height, width, 3); truth, predicted: (height, width); the rest as of `gallery.card`."""
    window = gallery.window_around(spot, gallery.CROP_PX, predicted.shape)
    maps = {"truth": truth, "prediction": predicted}
    layers = {layer: class_png(small_map(indices), classes) for layer, indices in maps.items()}
    crop_layers = {layer: class_png(indices[window], classes) for layer, indices in maps.items()}
    layers["errors"] = gallery.png(small_errors(truth, predicted), ERROR_PALETTE)
    crop_layers["errors"] = gallery.png(errors(truth[window], predicted[window]), ERROR_PALETTE)
    crop = gallery.jpeg(photo[window], 88)
    return gallery.Card(name, gallery.jpeg(gallery.small_photo(photo)), layers, crop, crop_layers, facts, tags)


def wrong(truth: Indices, predicted: Indices) -> NDArray[np.bool_]:
    """Where what is judged is another class than in truth."""
    return (truth != predicted) & (truth != ignored(truth.dtype))


def errors(truth: Indices, predicted: Indices) -> NDArray[np.uint8]:
    """Right, wrong or not judged; uint8, of the maps' shape."""
    unjudged = truth == ignored(truth.dtype)
    return np.where(unjudged, UNJUDGED, wrong(truth, predicted) * WRONG).astype(np.uint8)


def small_errors(truth: Indices, predicted: Indices) -> NDArray[np.uint8]:
    """The errors on the small grid: a cell is wrong when at least an eighth of its pixels are."""
    unjudged = gallery.cover(truth == ignored(truth.dtype)) >= 0.5
    is_wrong = gallery.cover(wrong(truth, predicted)) >= 0.125
    return np.where(is_wrong, WRONG, np.where(unjudged, UNJUDGED, RIGHT)).astype(np.uint8)


def small_map(indices: Indices) -> Indices:
    """A class map on the small grid, of each cell the class of one of its pixels, so that no classes are mixed."""
    return cv2.resize(indices, gallery.small_size(indices.shape), interpolation=cv2.INTER_NEAREST)


def class_png(indices: Indices, classes: int) -> str:
    """A data URL of a class map in the palette's colours; what is not judged is seen through.

    It has only the colours that it needs, up to 256: one with more is drawn with the 255 most frequent ones.
    """
    found, place, counts = np.unique(indices, return_inverse=True, return_counts=True)
    colours = palette(classes)
    frequent = np.sort(counts.argsort()[::-1][:255])
    number = np.full(len(found), len(frequent))  # of a rare one, past the palette: seen through as well
    number[frequent] = np.arange(len(frequent))
    judged = [int(found[each]) < classes for each in frequent]
    rgb = [tuple(colours[found[each]].tolist()) if is_one else IGNORED_COLOUR for each, is_one in zip(frequent, judged)]
    table = tuple((*colour, OPACITY if is_one else 0) for colour, is_one in zip(rgb, judged))
    return gallery.png(number[place].reshape(indices.shape).astype(np.uint8), (*table, (0, 0, 0, 0)))
