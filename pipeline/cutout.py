"""Stage `cutout`: cut the object out of images of any size; write a PNG with a transparent background for each.

For several classes the PNG is the class map in colours, with a palette.
"""
import csv
import io
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.image_files import find_images, read_image
from pipeline.data.images import grid_shape
from pipeline.data.pseudo import IMAGE_COLUMN, UNSURE_COLUMN, UNSURE_TABLE
from pipeline.data.tiles import SURE_U8
from pipeline.inference.class_maps import find_largest
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.loading import build_ensemble, load_members, read_size_and_classes
from pipeline.masks.colours import palette_image
from pipeline.paths import Run
from pipeline.runtime.device import describe, pick_device
from pipeline.runtime.files import replacing, write_text
from pipeline.runtime.memory import explain_out_of_memory, limited_to_free_memory
from pipeline.runtime.problem import Problem, counted, sentence_of

CLASSES_SHOWN = 4  # the largest of an image
EDGE_PX = 2  # width of the soft edge where the network is sure
STRIP_PX = 2**21  # of an image, for which probabilities are held at once
CUBIC = -0.75  # the parameter of OpenCV's bicubic interpolation
Cells = tuple[list[NDArray[np.float32]], float]  # probabilities on grids, as `predict_cells` gives them, and a side


def main(
    run: Run, folds: list[int], overrides: list[str], given: list[str], out: pathlib.Path, mask: bool,
    max_megapixels: int,
) -> None:  # fmt: skip
    """Write `out/NAME.png` for each image, from the mean of the networks of these folds.

    given: images, folders and wildcards, as `find_images` takes them; an image of a sub-folder is written to the same
    sub-folder of `out`. mask: write the mask alone. Of several images, those that cannot be cut out are left out; a
    Problem at the end counts them.
    """
    if not folds:
        raise Problem(run.untrained_message())
    files = find_images(given, leave_out=out)
    target_of_image = name_targets(files.names, out)
    device = pick_device()
    paths = [run.fold(fold).best for fold in folds]
    members, (settings, *_) = load_members({path: 1 / len(paths) for path in paths}, overrides, device)
    if settings.data.channels != 3:
        raise Problem(f"{paths[0]} was trained with data.inputs {settings.data.inputs}, but images have no depth.")
    full_size, classes = read_size_and_classes(paths[0])
    ensemble = build_ensemble(members, settings.task.kind == "binary", *full_size)
    print(f"{counted(len(target_of_image), 'image')}, {', '.join(map(str, paths))}, on {describe(device)}.")
    if files.skipped:
        print(f"Other files in these folders: {len(files.skipped)}, skipped; the first is {files.skipped[0]}.")
    name_of = {target: target.relative_to(out).with_suffix("").as_posix() for target in target_of_image.values()}
    table, bad_images, unsure_of = out / UNSURE_TABLE, 0, dict[str, str]()
    before = read_unsure(table) if mask else {}
    if before:  # a kill must not leave a new mask with the figure of the one before
        write_unsure(table, {name: value for name, value in before.items() if name not in name_of.values()})
    for path, target in target_of_image.items():
        try:
            too_large = f"The memory is too small for {path}; make the image smaller."
            with limited_to_free_memory(device), explain_out_of_memory(lambda: too_large):
                result, unsure = predict_image(ensemble, classes, read_image(path, max_megapixels))
        except Problem as problem:
            if len(target_of_image) == 1:
                raise
            print(f"cutout: {sentence_of(problem)}", file=sys.stderr)
            bad_images += 1
            continue
        with replacing(target) as draft:
            to_png(result, len(classes), mask).save(draft, format="PNG")
        unsure_of[name_of[target]] = f"{unsure:.6f}"
        print(f"{target}: {result.shape[1]}x{result.shape[0]}, {describe_result(result, classes)}.")
    if mask:
        write_unsure(table, before | unsure_of)
    if bad_images:
        raise Problem(f"{bad_images} of {len(target_of_image)} images were left out, see above; {out} has the others.")


def name_targets(names: Mapping[pathlib.Path, pathlib.Path], out: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
    """Return image -> PNG to write. Raise Problem if an image would be replaced, or two collide.

    names: image -> its path below the folder that the user named.
    """
    targets = {image: out / name.with_name(f"{name.stem}.png") for image, name in names.items()}
    image_of_file = {image.resolve(): image for image in targets}
    image_of_target: dict[pathlib.Path, pathlib.Path] = {}
    for image, target in targets.items():
        if (twin := image_of_target.setdefault(target, image)) != image:
            raise Problem(f"{twin} and {image} would both become {target}; rename one, or cut them out one by one.")
        if overwritten := image_of_file.get(target.resolve()):
            raise Problem(f"{overwritten} would be overwritten by the cut-out of {image}; choose another OUT=.")
    return targets


def read_unsure(path: pathlib.Path) -> dict[str, str]:
    """Return the rows of the table of how unsure masks are, name -> fraction; {} if there is none."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.reader(file))[1:]  # without the header: an image may have its name
    return {row[0]: row[1] for row in rows if len(row) == 2}


def write_unsure(path: pathlib.Path, unsure_of: dict[str, str]) -> None:
    """Write the table of how unsure masks are, by which pseudo-labels are chosen, for the masks that are there."""
    rows = {name: value for name, value in unsure_of.items() if (path.parent / f"{name}.png").is_file()}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([(IMAGE_COLUMN, UNSURE_COLUMN), *sorted(rows.items())])
    write_text(path, text.getvalue())


def predict_image(
    ensemble: Ensemble, classes: tuple[str, ...], image: NDArray[np.uint8]
) -> tuple[NDArray, float]:
    """Return what `cut_out` does, or a class map if there are classes; and the fraction of it that is unsure."""
    cells = predict_cells(ensemble, image)
    result = predict_class_map(ensemble, image, cells) if classes else cut_out(ensemble, image, cells)
    return result, unsure_fraction(cells[0])


def unsure_fraction(maps: list[NDArray[np.float32]]) -> float:
    """Return the fraction of cells whose outcome is unsure, neither nearly certain nor nearly ruled out.

    maps: of `predict_cells`. As `probability.unsure_fractions`, and of classes those whose largest probability is.
    """
    height, width = max(each.shape[1:] for each in maps)
    resized = [[cv2.resize(prob, (width, height)) for prob in each] for each in maps]
    prob = np.sum(resized, axis=0)
    largest = prob.max(axis=0) if len(prob) > 1 else np.maximum(prob[0], 1 - prob[0])
    return float((largest < 1 - SURE_U8 / 255).mean())


def to_png(result: NDArray, classes: int, mask: bool) -> Image.Image:
    """Return a result as the image to write. mask: 0 and 255, or class indices, in grey, as `data.kind: folder` reads.

    classes: 0 if there is only an object.
    """
    if not classes:
        is_object = result[..., 3] >= 128
        return Image.fromarray(is_object.view(np.uint8) * np.uint8(255) if mask else result)
    return Image.fromarray(result) if mask else palette_image(result, classes)


def describe_result(result: NDArray, classes: tuple[str, ...]) -> str:
    """Describe how much of an image the object covers, or its largest classes."""
    if not classes:
        return f"the object covers {(result[..., 3] >= 128).mean():.0%}"
    fraction_of_class = np.bincount(result.ravel(), minlength=len(classes)) / result.size
    largest = np.argsort(-fraction_of_class)[:CLASSES_SHOWN]
    return ", ".join(f"{classes[index]} {fraction_of_class[index]:.0%}" for index in largest)


# --- one image -------------------------------------------------------------------------------------------------------


def cut_out(ensemble: Ensemble, image: NDArray[np.uint8], cells: Cells | None = None) -> NDArray[np.uint8]:
    """Return an image with its transparency, RGBA (height, width, 4); black outside the object.

    image: RGB (height, width, 3); or RGBA, whose own opacity is multiplied with the object's. cells: of
    `predict_cells`, if it was called before.
    """
    height, width, channels = image.shape
    small_probs, side_px = cells or predict_cells(ensemble, image)
    rgba = np.zeros((height, width, 4), np.uint8)
    for rows in strips(height, width):
        alpha = compute_alpha(upsample_rows([prob[0] for prob in small_probs], rows, height, width), side_px)
        if channels == 4:
            alpha = cv2.multiply(alpha, image[rows, :, 3], scale=1 / 255)
        rgba[rows, :, :3] = np.where(alpha[..., None] > 0, image[rows, :, :3], 0)
        rgba[rows, :, 3] = alpha
    return rgba


def predict_class_map(ensemble: Ensemble, image: NDArray[np.uint8], cells: Cells | None = None) -> NDArray:
    """Return the most probable class of each pixel of an RGB or RGBA image, indices (height, width).

    cells: as for `cut_out`.
    """
    height, width = image.shape[:2]
    small_probs, _ = cells or predict_cells(ensemble, image)

    def class_map(rows: slice) -> NDArray:
        def upsample_class(index: int) -> NDArray[np.float32]:
            return upsample_rows([prob[index] for prob in small_probs], rows, height, width)

        return find_largest(upsample_class, classes=len(small_probs[0]))

    return np.concatenate([class_map(rows) for rows in strips(height, width)])


def strips(height: int, width: int) -> Iterator[slice]:
    """Divide the rows of an image into strips of about `STRIP_PX`."""
    rows = max(1, STRIP_PX // width)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def upsample_rows(maps: list[NDArray[np.float32]], rows: slice, height: int, width: int) -> NDArray[np.float32]:
    """Return these rows of the sum of maps at full size, as OpenCV upsamples them (bicubic), without the other rows.

    All rows of an image of 192 megapixels would take 0.8 GB for each map.
    """
    total = np.zeros((rows.stop - rows.start, width), np.float32)
    for prob in maps:
        middle = (np.arange(rows.start, rows.stop) + 0.5) * len(prob) / height - 0.5  # of each row, in cells
        cell = np.floor(middle).astype(int)
        first, last = max(0, cell[0] - 1), min(len(prob), cell[-1] + 3)
        wide = cv2.resize(prob[first:last], (width, last - first), interpolation=cv2.INTER_CUBIC)
        for offset in (-1, 0, 1, 2):  # the four cells around a row
            weight = cubic_weight(np.abs(middle - cell - offset)).astype(np.float32)
            total += weight[:, None] * wide[np.clip(cell + offset, 0, len(prob) - 1) - first]
    return total


def cubic_weight(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of cells at these distances, 0 to 2, in OpenCV's bicubic interpolation."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    return np.where(distance <= 1, near, far)


def predict_cells(ensemble: Ensemble, image: NDArray[np.uint8]) -> tuple[list[NDArray[np.float32]], float]:
    """Return the probability at each scale of the networks, (classes, rows, columns), and the side of its finest cells.

    The networks see the image, RGB or RGBA, with as many pixels as the images they were trained on, in its own
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
        image_of_scale[scale] = torch.from_numpy(np.ascontiguousarray(small[..., :3]))[None]
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
