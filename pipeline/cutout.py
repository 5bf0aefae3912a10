"""Stage `cutout`: photos of any size in; for each a PNG of the object on a transparent background out.

Of several classes the PNG is the class map, in colours: an index PNG with a palette.
"""
import math
import pathlib

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from numpy.typing import NDArray
from torch import Tensor

from pipeline import carvana
from pipeline.data.images import grid_shape, upright_rgb
from pipeline.inference.class_maps import largest
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.loading import ensemble_of, facts_of, load_members
from pipeline.masks.colours import palette_image
from pipeline.paths import Run
from pipeline.runtime.device import describe, pick_device
from pipeline.runtime.files import replacing
from pipeline.runtime.memory import explain_out_of_memory
from pipeline.runtime.problem import Problem

CLASSES_SHOWN = 4  # the largest of a photo


def main(run: Run, folds: list[int], overrides: list[str], photos: list[pathlib.Path], out: pathlib.Path) -> None:
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
        with explain_out_of_memory(lambda: f"The memory is too small for {photo}; make the photo smaller."):
            found = cut_out(ensemble, pixels) if binary else class_map(ensemble, pixels)
        with replacing(target) as draft:
            (Image.fromarray(found) if binary else palette_image(found, len(classes))).save(draft, format="PNG")
        print(f"{target}: {found.shape[1]}x{found.shape[0]}, {covers(found, binary, classes)}.")


def covers(found: NDArray, binary: bool, classes: tuple[str, ...]) -> str:
    """In words: how much of the photo is what."""
    if binary:
        return f"the object covers {(found[..., 3] >= 128).mean():.0%}"
    probs = np.bincount(found.ravel(), minlength=len(classes)) / found.size
    return ", ".join(f"{classes[index]} {probs[index]:.0%}" for index in np.argsort(-probs)[:CLASSES_SHOWN])


# --- one photo -------------------------------------------------------------------------------------------------------

# Any photo to one of the object alone, transparent where no object is; or to its class map.

EDGE_PX = 2  # how wide the soft edge is where the network is sure of it


def read_photo(path: pathlib.Path) -> NDArray[np.uint8]:
    """RGB array (height, width, 3), upright as the camera noted. Raises Problem for what is no picture."""
    try:
        with Image.open(path) as photo:
            return upright_rgb(photo, str(path))
    except FileNotFoundError:
        raise Problem(f"There is no {path}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise Problem(f"{path} is no picture that can be read ({' '.join(str(error).split())[:120]}).") from None


def cut_out(ensemble: Ensemble, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photo (height, width, 3) with its transparency, RGBA (height, width, 4); black where no object is.

    The networks see it with as many pixels as the pictures that they were trained on, in its own proportions: what
    fills it then has about the size of what they know.
    """
    height, width = photo.shape[:2]
    prob = np.zeros((height, width), np.float32)
    side_px = sides_px(ensemble, height, width)
    for scale, small in seen_at(side_px, photo).items():
        with torch.inference_mode():
            small_prob = ensemble.weighted_prob(scale, small)[0].cpu().numpy()
        prob += cv2.resize(small_prob, (width, height), interpolation=cv2.INTER_CUBIC)
    alpha = opacity(prob, min(side_px.values()))
    return np.dstack((np.where(alpha[..., None] > 0, photo, 0), alpha))


def class_map(ensemble: Ensemble, photo: NDArray[np.uint8]) -> NDArray:
    """The most probable class of each pixel of the photo, indices (height, width); seen as by `cut_out`."""
    height, width = photo.shape[:2]
    with torch.inference_mode():
        probs = [
            ensemble.weighted_prob(scale, small)[0].cpu().numpy()
            for scale, small in seen_at(sides_px(ensemble, height, width), photo).items()
        ]

    def prob(index: int) -> NDArray[np.float32]:
        one, *others = (cv2.resize(maps[index], (width, height), interpolation=cv2.INTER_CUBIC) for maps in probs)
        return sum(others, start=one)

    return largest(prob, classes=len(probs[0]))


def sides_px(ensemble: Ensemble, height: int, width: int) -> dict[int, float]:
    """Scale of a network -> side, in pixels of the photo, of the cells that it is to see."""
    cells = {scale: math.prod(grid_shape(ensemble.height, ensemble.width, scale)) for scale in ensemble.scales}
    return {scale: math.sqrt(height * width / cells[scale]) for scale in ensemble.scales}


def seen_at(side_px: dict[int, float], photo: NDArray[np.uint8]) -> dict[int, Tensor]:
    """The photo with cells of these sides, uint8 (1, rows, columns, 3) each."""
    height, width = photo.shape[:2]
    seen = {}
    for scale, side in side_px.items():
        size = (max(1, round(width / side)), max(1, round(height / side)))
        small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if side > 1 else cv2.INTER_LINEAR)
        seen[scale] = torch.from_numpy(small)[None]
    return seen


def opacity(prob: NDArray[np.float32], side_px: float) -> NDArray[np.uint8]:
    """0 to 255: 128 where the share is one half, and an edge that is `EDGE_PX` wide.

    At an edge the share of a cell goes from 0 to 1 over the cell's side: so wide an edge would look blurred, and a
    background of which the network is only nearly sure would shine through.
    """
    steepness = max(1.0, side_px / EDGE_PX)
    return cv2.convertScaleAbs(np.clip((prob - 0.5) * steepness + 0.5, 0, 1), alpha=255)
