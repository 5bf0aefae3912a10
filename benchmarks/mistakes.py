"""How clearly the known mistakes show in submissions of real masks, and that right submissions show none.

    python -m benchmarks.mistakes data/carvana submissions/cpu.csv.gz other.csv

makes each mistake in a sample of the masks of each file, and prints what `check` says of it. Columns: the most
frequent distance between starts of runs, the fraction of runs at it and at the right one; the largest gain of Dice with
the mean training masks by a correction; by how much more the masks agree with their own angle than with others,
relative to the best angle; seconds. The last line is one JSON object: of each file, the most that a right submission
shows and the least that a wrong one shows.
"""
import json
import pathlib
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.carvana import CARVANA, HEIGHT_PX, WIDTH_PX, angle_of
from pipeline.masks import rle
from pipeline.submission import known_mistakes
from pipeline.submission.known_mistakes import Bounds, Coverage
from pipeline.submission.reader import read_header, read_rows

Mask = NDArray[np.bool_]


def resize(mask: Mask, rows: int, columns: int) -> Mask:
    return cv2.resize(mask.view(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST).view(bool)


RIGHT = "none"
MAKE: dict[str, Callable[[Mask], Mask]] = {
    RIGHT: lambda mask: mask,
    "starts from 0": lambda mask: np.roll(mask, -1),
    "column-major": lambda mask: mask.T,
    "1920 wide": lambda mask: np.pad(mask, ((0, 0), (0, 2))),
    "1280 wide, 1918 high": lambda mask: resize(mask, WIDTH_PX, HEIGHT_PX),
    "1280x1280": lambda mask: resize(mask, HEIGHT_PX, HEIGHT_PX),
    "1024x1024": lambda mask: resize(mask, 1024, 1024),
    "959x640": lambda mask: resize(mask, 640, 959),
    "upside down": lambda mask: mask[::-1],
    "mirrored": lambda mask: mask[:, ::-1],
    "rotated": lambda mask: mask[::-1, ::-1],
    "background": lambda mask: ~mask,
}
ORDERS: dict[str, Callable[[list[str]], list[str]]] = {  # names -> the images whose masks stand there
    "names one row down": lambda names: [*names[-1:], *names[:-1]],
    "names one row up": lambda names: [*names[1:], *names[:1]],
    "names in any order": lambda names: np.random.default_rng(1).permutation(names).tolist(),
}


def main(folder: pathlib.Path, paths: list[pathlib.Path]) -> None:
    means = known_mistakes.mean_masks(CARVANA.open_masks(folder), CARVANA)
    figures = {}
    for path in paths:
        text_of = {fields[0]: fields[1] for _, fields in read_rows(path, tuple(read_header(path)))}
        names, said = list(text_of), {}
        sample = known_mistakes.sample_names(names)
        print(f"{path}: {len(sample)} of {len(names)} masks")
        for kind, make in MAKE.items():
            masks = (rle.decode(text_of[name], HEIGHT_PX, WIDTH_PX) for name in sample)
            bounds_of = {name: bounds_within(make(mask)) for name, mask in zip(sample, masks)}
            said[kind] = measure(kind, bounds_of, names, means)
        for kind, order in ORDERS.items():
            image_of = dict(zip(names, order(names)))
            masks_of_others = {name: rle.parse(text_of[image_of[name]], CARVANA.pixels) for name in sample}
            said[kind] = measure(kind, masks_of_others, names, means)
        missed = [kind for kind, clause in said.items() if clause is None and kind != RIGHT]
        figures[str(path)] = {"false_alarm": said[RIGHT], "missed": missed}
    print(json.dumps(figures))


def bounds_within(mask: Mask) -> Bounds:
    """The bounds of the runs that end within the competition's pixels; `check` refuses others."""
    bounds = rle.bounds(mask)
    return bounds[bounds[:, 1] <= CARVANA.pixels]


def measure(kind: str, masks: dict[str, Bounds], names: list[str], means: dict[int, Coverage]) -> str | None:
    """Print one line; return what `check` says."""
    started = time.perf_counter()
    at_first, before = map(sum, zip(*(known_mistakes.count_first_column(bounds, CARVANA) for bounds in masks.values())))
    clause = known_mistakes.find_mistake(masks, names, CARVANA, means, (at_first, before))
    seconds = time.perf_counter() - started
    length, fraction, of_expected = known_mistakes.most_frequent_distance(list(masks.values()), WIDTH_PX)
    layouts = {
        order: np.stack([known_mistakes.lay_out(bounds, CARVANA, order) for bounds in masks.values()])
        for order in (False, True)
    }
    given, after = known_mistakes.dice_after_corrections(layouts, [names.index(name) for name in masks], names, means)
    gain = (after - given).mean(axis=1).max()
    own, largest = known_mistakes.agreement_with_angles(layouts[False], [angle_of(name) for name in masks], means)
    evidence = f"{length:5d} {fraction:.2f} {of_expected:.2f}  {gain:+.3f}  {own / largest:4.2f} of {largest:.3f}"
    print(f"  {kind:21s} {evidence}  {seconds:4.1f} s  {clause}", flush=True)
    return clause


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), [pathlib.Path(path) for path in sys.argv[2:]])
