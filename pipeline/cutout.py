"""Stage `cutout`: cut the object out of images of any size; write a PNG with a transparent background for each.

For several classes the PNG is the class map in colours, with a palette.
"""
import math
import pathlib

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data.images import grid_shape, upright_rgb
from pipeline.inference.class_maps import find_largest
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.loading import build_ensemble, load_members, read_size_and_classes
from pipeline.masks.colours import palette_image
from pipeline.paths import Run
from pipeline.runtime.device import describe, pick_device
from pipeline.runtime.files import replacing
from pipeline.runtime.memory import explain_out_of_memory
from pipeline.runtime.problem import Problem

CLASSES_SHOWN = 4  # the largest of an image
EDGE_PX = 2  # width of the soft edge where the network is sure


def main(run: Run, folds: list[int], overrides: list[str], images: list[pathlib.Path], out: pathlib.Path) -> None:
    """Write `out/NAME.png` for each image, from the mean of the networks of these folds."""
    if not folds:
        raise Problem(f"{run.folder} has no trained fold; run `make train FOLD=0` first.")
    target_of_image = name_targets(images, out)
    device = pick_device()
    paths = [run.fold(fold).best for fold in folds]
    members, (settings, *_) = load_members({path: 1 / len(paths) for path in paths}, overrides, device)
    if settings.data.channels != 3:
        raise Problem(f"{paths[0]} was trained with data.inputs {settings.data.inputs}, but images have no depth.")
    full_size, classes = read_size_and_classes(paths[0])
    binary = settings.task.kind == "binary"
    ensemble = build_ensemble(members, binary, *full_size)
    print(f"{len(images)} images, {', '.join(map(str, paths))}, on {describe(device)}.")
    for path, target in target_of_image.items():
        image = read_image(path)
        with explain_out_of_memory(lambda: f"The memory is too small for {path}; make the image smaller."):
            result = cut_out(ensemble, image) if binary else predict_class_map(ensemble, image)
        with replacing(target) as draft:
            (Image.fromarray(result) if binary else palette_image(result, len(classes))).save(draft, format="PNG")
        print(f"{target}: {result.shape[1]}x{result.shape[0]}, {describe_result(result, binary, classes)}.")


def name_targets(images: list[pathlib.Path], out: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
    """Return image -> PNG to write. Raise Problem if an image is missing, or would be replaced, or two collide."""
    targets = {image: out / f"{image.stem}.png" for image in images}
    for image, target in targets.items():
        if twins := [other for other in images if other != image and targets[other] == target]:
            raise Problem(f"{image} and {twins[0]} would both become {target}; rename one, or cut them out one by one.")
        if image.resolve() == target.resolve():
            raise Problem(f"{image} would be overwritten by its own cut-out; choose another OUT=.")
    if missing := [image for image in images if not image.is_file()]:
        raise Problem(f"There is no {missing[0]}; IMAGE= takes paths without blanks, separated by blanks.")
    return targets


def describe_result(result: NDArray, binary: bool, classes: tuple[str, ...]) -> str:
    """Describe how much of an image the object covers, or its largest classes."""
    if binary:
        return f"the object covers {(result[..., 3] >= 128).mean():.0%}"
    fraction_of_class = np.bincount(result.ravel(), minlength=len(classes)) / result.size
    largest = np.argsort(-fraction_of_class)[:CLASSES_SHOWN]
    return ", ".join(f"{classes[index]} {fraction_of_class[index]:.0%}" for index in largest)


# --- one image -------------------------------------------------------------------------------------------------------


def read_image(path: pathlib.Path) -> NDArray[np.uint8]:
    """Return an image as RGB array (height, width, 3), upright as its EXIF says. Raise Problem if it cannot be read."""
    try:
        with Image.open(path) as image:
            return upright_rgb(image, str(path))
    except FileNotFoundError:
        raise Problem(f"There is no {path}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"{path} is not an image that can be read ({reason}); save it as JPEG or PNG again.") from None


def cut_out(ensemble: Ensemble, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (height, width, 3) with its transparency, RGBA (height, width, 4); black outside the object."""
    height, width = image.shape[:2]
    prob = np.zeros((height, width), np.float32)
    small_probs, side_px = predict_cells(ensemble, image)
    for small_prob in small_probs:
        prob += cv2.resize(small_prob[0], (width, height), interpolation=cv2.INTER_CUBIC)
    alpha = compute_alpha(prob, side_px)
    return np.dstack((np.where(alpha[..., None] > 0, image, 0), alpha))


def predict_class_map(ensemble: Ensemble, image: NDArray[np.uint8]) -> NDArray:
    """Return the most probable class of each pixel, indices (height, width)."""
    height, width = image.shape[:2]
    small_probs, _ = predict_cells(ensemble, image)

    def upsample_class(index: int) -> NDArray[np.float32]:
        maps = (cv2.resize(prob[index], (width, height), interpolation=cv2.INTER_CUBIC) for prob in small_probs)
        return sum(maps, start=next(maps))

    return find_largest(upsample_class, classes=len(small_probs[0]))


def predict_cells(ensemble: Ensemble, image: NDArray[np.uint8]) -> tuple[list[NDArray[np.float32]], float]:
    """Return the probability at each scale of the networks, (classes, rows, columns), and the side of its finest cells.

    The networks see the image (height, width, 3) with as many pixels as the images they were trained on, in its own
    proportions: an object that fills the image then has about the size that they know. The side is in its pixels.
    """
    height, width = image.shape[:2]
    image_of_scale: dict[int, torch.Tensor] = {}
    side_px_of: dict[int, float] = {}
    for scale in sorted(ensemble.scales, reverse=True):
        cells = math.prod(grid_shape(ensemble.height, ensemble.width, scale))
        side_px_of[scale] = side_px = math.sqrt(height * width / cells)
        size = (max(1, round(width / side_px)), max(1, round(height / side_px)))
        if image_of_scale and any(member.refiner for member in ensemble.members):
            coarsest, coarse_NHWC = next(iter(image_of_scale.items()))  # its cells are whole pixels of the others
            size = (coarse_NHWC.shape[2] * coarsest // scale, coarse_NHWC.shape[1] * coarsest // scale)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if side_px > 1 else cv2.INTER_LINEAR)
        image_of_scale[scale] = torch.from_numpy(small)[None]
    predicted = ensemble.predict(image_of_scale)
    small_probs = [prob_NCHW[0].cpu().numpy() for prob_NCHW in predicted.prob_of_scale.values()]
    small_probs += [member.weight * maps.read_all()[:1].cpu().numpy() for member, maps in predicted.refined]
    return small_probs, min(side_px_of.values())


def compute_alpha(prob: NDArray[np.float32], side_px: float) -> NDArray[np.uint8]:
    """Return opacity 0 to 255: 128 where the probability is one half, with an edge of `EDGE_PX`.

    side_px: of a cell. Across an edge the probability goes from 0 to 1 over one cell: so wide an edge would look
    blurred, and a background of which the network is only nearly sure would shine through.
    """
    steepness = max(1.0, side_px / EDGE_PX)
    return cv2.convertScaleAbs(np.clip((prob - 0.5) * steepness + 0.5, 0, 1), alpha=255)
