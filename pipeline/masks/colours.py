"""Colours for classes that those whose eyes lack one kind of cone can tell apart, too.

The first seven are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), without black, which marks pixels that
are not judged. Each further one is, of a grid of colours, the farthest from all before it, by the smallest of its
distances in CIELAB as seen by most people, by protanopes and by deuteranopes (Viénot, Brettel, Mollon 1999,
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
CAR, ADDED, MISSED = OKABE_ITO[2], OKABE_ITO[4], OKABE_ITO[5]  # green; errors: blue, vermilion, told apart by all eyes
LEVELS = 16  # of red, green and blue in the grid
# Linear RGB as an eye without one kind of cone has it: Viénot's equations in one matrix each.
SEEN_BY = {
    "most people": np.eye(3),
    "protanopes": np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]),
    "deuteranopes": np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]),
}


@functools.cache
def palette(classes: int) -> NDArray[np.uint8]:
    """RGB of each class, uint8 (classes, 3); a longer palette begins with a shorter one."""
    steps = np.linspace(0, 255, LEVELS).round()
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    candidates = np.concatenate([np.array(OKABE_ITO, np.float64), grid])
    seen = [to_lab_as_seen(candidates, matrix) for matrix in SEEN_BY.values()]
    chosen: list[int] = []
    distance = smallest_distance(seen, lab_of(np.array([IGNORED_COLOUR], np.float64)))
    for number in range(classes):
        place = number if number < len(OKABE_ITO) else int(distance.argmax())
        chosen.append(place)
        distance = np.minimum(distance, smallest_distance(seen, *(lab[place] for lab in seen)))
    return candidates[chosen].astype(np.uint8)


def palette_image(indices: Indices, classes: int) -> Image.Image:
    """A class map (height, width) as a picture: with a palette up to 256 values, of which the last is not judged."""
    colours = palette(classes)
    if indices.dtype != np.uint8:
        padded = np.zeros((65536, 3), np.uint8)
        padded[:classes] = colours
        return Image.fromarray(padded[indices])
    table = np.zeros((256, 3), np.uint8)
    table[:classes] = colours
    image = Image.fromarray(indices, mode="P")
    image.putpalette(table.tobytes())
    return image


def smallest_distance(seen: list[NDArray], *places: NDArray) -> NDArray[np.float64]:
    """Of candidates as all eyes see them, (candidates, 3) each, from one colour: the smallest, (candidates,)."""
    colours = places if len(places) == len(seen) else places * len(seen)
    return np.min([np.linalg.norm(lab - colour, axis=1) for lab, colour in zip(seen, colours)], axis=0)


def to_lab_as_seen(rgb: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """RGB (colours, 3), 0 to 255, as an eye sees it, in CIELAB (colours, 3)."""
    linear = (rgb / 255) ** 2.2 @ matrix.T
    return lab_of(np.clip(linear, 0, 1) ** (1 / 2.2) * 255)


def lab_of(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    return cv2.cvtColor((rgb[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0].astype(np.float64)
