"""Colours for classes that colour-blind people can tell apart, too.

The first seven are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), without black, which marks ignored
pixels. Each further colour is the one of a grid that is farthest from all before it, by the smallest of its distances
in CIELAB as seen by most people, by protanopes and by deuteranopes (Viénot, Brettel, Mollon 1999,
https://doi.org/10.1002/(SICI)1520-6378(199908)24:4<243::AID-COL5>3.0.CO;2-3).
"""
import functools

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.masks.confusion import Indices

IGNORED_COLOUR = (0, 0, 0)
OKABE_ITO = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
OBJECT, ADDED, MISSED = OKABE_ITO[2], OKABE_ITO[4], OKABE_ITO[5]  # green; errors: blue and vermilion
LEVELS = 16  # of red, green and blue in the grid
# Linear RGB -> linear RGB as seen without one kind of cone: Viénot's equations, one matrix each.
SEEN_BY = {
    "most people": np.eye(3),
    "protanopes": np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]),
    "deuteranopes": np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]),
}


@functools.cache
def palette(classes: int) -> NDArray[np.uint8]:
    """Return RGB of each class, uint8 (classes, 3); a longer palette begins with the shorter ones."""
    steps = np.linspace(0, 255, LEVELS).round()
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    candidates = np.concatenate([np.array(OKABE_ITO, np.float64), grid])
    labs = [to_lab_as_seen(candidates, matrix) for matrix in SEEN_BY.values()]
    chosen: list[int] = []
    distance = smallest_distance(labs, [to_lab(np.array([IGNORED_COLOUR], np.float64))] * len(labs))
    for number in range(classes):
        candidate = number if number < len(OKABE_ITO) else int(distance.argmax())
        chosen.append(candidate)
        distance = np.minimum(distance, smallest_distance(labs, [lab[candidate] for lab in labs]))
    return candidates[chosen].astype(np.uint8)


def palette_image(indices: Indices, classes: int) -> Image.Image:
    """Return a class map (height, width) as an image: of uint8 with a palette, of uint16 in RGB. Ignored is black."""
    table = np.zeros((np.iinfo(indices.dtype).max + 1, 3), np.uint8)
    table[:classes] = palette(classes)
    if indices.dtype != np.uint8:
        return Image.fromarray(table[indices])
    image = Image.fromarray(indices, mode="P")
    image.putpalette(table.tobytes())
    return image


def smallest_distance(labs: list[NDArray], colours: list[NDArray]) -> NDArray[np.float64]:
    """Return the smallest distance of each candidate from a colour over all kinds of eyes, (candidates,).

    labs, colours: for each kind of eyes the candidates (candidates, 3) and the colour (3,), in CIELAB.
    """
    return np.min([np.linalg.norm(lab - colour, axis=1) for lab, colour in zip(labs, colours)], axis=0)


def to_lab_as_seen(rgb: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert RGB (colours, 3), 0 to 255, to CIELAB (colours, 3) as one kind of eyes sees it."""
    linear = (rgb / 255) ** 2.2 @ matrix.T
    return to_lab(np.clip(linear, 0, 1) ** (1 / 2.2) * 255)


def to_lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert RGB (colours, 3), 0 to 255, to CIELAB (colours, 3)."""
    return cv2.cvtColor((rgb[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0].astype(np.float64)
