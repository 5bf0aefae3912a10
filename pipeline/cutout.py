"""Stage `cutout`: photos of any size in; for each a PNG of the object on a transparent background out.

Of several classes the PNG is the class map, in colours: an index PNG with a palette.
"""
import pathlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import carvana
from pipeline.runtime.files import replacing
from pipeline.cutout import class_map, cut_out, read_photo
from pipeline.runtime.device import describe, pick_device
from pipeline.inference.loading import ensemble_of, facts_of, load_members
from pipeline.masks.colours import palette_image
from pipeline.runtime.memory import out_of_memory_told
from pipeline.paths import Run
from pipeline.runtime.problem import Problem

CLASSES_TOLD = 4  # the largest of a photo


def run(run: Run, folds: list[int], overrides: list[str], photos: list[pathlib.Path], out: pathlib.Path) -> None:
    """`photos` to `out/NAME.png`. folds: the networks whose mean it is."""
    if not folds:
        raise Problem(f"{run.folder} has no trained fold; run `make train FOLD=0` first.")
    targets = {photo: out / f"{photo.stem}.png" for photo in photos}
    for photo, target in targets.items():
        if twins := [other for other in photos if other != photo and targets[other] == target]:
            raise Problem(f"{photo} and {twins[0]} would both become {target}; rename one, or cut them out one by one.")
        if photo.resolve() == target.resolve():
            raise Problem(f"{photo} would be overwritten by its own cut-out; choose another OUT=.")
    device = pick_device()
    paths = [run.fold(fold).best for fold in folds]
    members, (settings, *_) = load_members({path: 1 / len(paths) for path in paths}, overrides, device)
    if settings.data.channels != 3:
        raise Problem(f"{paths[0]} was trained with data.inputs {settings.data.inputs}, but photos have no depth.")
    full_size, classes = facts_of(paths[0])
    binary = settings.task.kind == "binary"
    ensemble = ensemble_of(members, binary, *(full_size or (carvana.HEIGHT_PX, carvana.WIDTH_PX)))
    print(f"{len(photos)} photos, {', '.join(map(str, paths))}, on {describe(device)}.")
    for photo, target in targets.items():
        pixels = read_photo(photo)
        with out_of_memory_told(lambda: f"The memory is too small for {photo}; make the photo smaller."):
            found = cut_out(ensemble, pixels) if binary else class_map(ensemble, pixels)
        with replacing(target) as draft:
            (Image.fromarray(found) if binary else palette_image(found, len(classes))).save(draft, format="PNG")
        print(f"{target}: {found.shape[1]}x{found.shape[0]}, {covers(found, binary, classes)}.")


def covers(found: NDArray, binary: bool, classes: tuple[str, ...]) -> str:
    """In words: how much of the photo is what."""
    if binary:
        return f"the object covers {(found[..., 3] >= 128).mean():.0%}"
    shares = np.bincount(found.ravel(), minlength=len(classes)) / found.size
    return ", ".join(f"{classes[index]} {shares[index]:.0%}" for index in np.argsort(-shares)[:CLASSES_TOLD])
