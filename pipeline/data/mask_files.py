"""Read an image file as a mask: which value is the object, or which class each pixel has.

What a pixel of the file says is one number:

- grey (1, 8, 16 or 32 bits): its value, of 1 bit 0 or 1. Grey with opacity, RGB and RGBA are grey where red, green and
  blue agree in all pixels; a mask in colour is refused.
- palette, one object: its grey if the used colours are different greys, as in a palette of black and white, whichever
  has index 0; else its index. Then index 0 is the background, so black behind another index is refused.
- palette, several classes: its index; colours are for viewers. The exception are greys that are class indices
  themselves, as `Image.quantize` makes of a grey mask: they are the classes, since 1 and 2 are both black to the eye.
  Greys that fall while the index rises are refused: the index may be an accident of the program that wrote the file.
  So are two masks of a folder that give one index different colours.
- opacity below 100 %: refused, since what lies below a transparent pixel is an accident. The exception is one object
  that alone can be seen, white on nothing: its opacity is its value.

One object: a value at or above half of the file's range is object. The range is 1 for values up to 1 (so that in a
file of 0 and 1, or of 1 alone, 1 is the object), 255 for values up to 255, else 65535. A largest value between 1 and
half of the range is refused, and so are values below 32 beside 255 and no others: those are classes, and 255 has no
label. A JPEG has the range 255.

Several classes: values are class indices; JPEGs are refused, since compression changes values.
"""
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.images import bits_per_colour, upright
from pipeline.masks.confusion import ignored, index_dtype
from pipeline.runtime.problem import Problem

RANGES = (1, 255, 65535)
GREY_FRACTIONS = 1 / 8, 7 / 8  # of the range: what lies between is neither clearly background nor clearly object
MAX_CLASS_LIKE = 31  # values up to this, beside 255 and no others, are taken for class indices
ONE_OBJECT, CLASSES = "for the object white, 255, on black, 0", "with class indices as its values"
Colour = tuple[int, ...]


class Mask(NamedTuple):
    """What a mask file says, upright and as large as it is."""

    truth: NDArray  # bool (height, width), or class indices of the dtype of `index_dtype`
    grey_px: int  # of one object: pixels neither clearly background nor clearly object
    colours: dict[int, Colour]  # of used indices that count as indices: their RGB


def read_mask(image: Image.Image, classes: int, ignore_index: int, where: str) -> Mask:
    """Read an opened image as a mask of one object (classes 0) or of several classes.

    ignore_index: of several classes, the value of pixels without a label. `where` names the file in an error. Raises
    Problem as the rules above say, and whatever Pillow raises while it decodes.
    """
    is_lossy = "jpeg" in (str(image.format).lower(), image.info.get("compression")) or image.format == "MPO"
    if classes and is_lossy:
        raise Problem(f"{where} is a JPEG, whose compression changes class indices; save it as PNG {CLASSES}.")
    bits = bits_per_colour(image)
    image = upright(image)
    colours: dict[int, Colour] = {}
    if image.mode == "P":
        values, colours = read_palette(image, classes, ignore_index, where)
    elif image.mode in ("1", "L") or image.mode.startswith("I") or (image.mode == "F" and not classes):
        values = np.asarray(image.convert("RGBA") if "transparency" in image.info else image)
    elif bits > 8:
        raise Problem(f"{where}: the mask has {bits} bits a colour; save it as grey PNG {advice(classes)}.")
    else:
        values = np.asarray(image.convert("RGBA"))
    if values.ndim == 3:
        values = grey_of(values, classes, where)
    if classes:
        return Mask(to_class_indices(values, classes, ignore_index, where), 0, colours)
    return Mask(*to_object(values, is_lossy, where), colours)


def advice(classes: int) -> str:
    return CLASSES if classes else ONE_OBJECT


def read_palette(
    image: Image.Image, classes: int, ignore_index: int, where: str
) -> tuple[NDArray, dict[int, Colour]]:
    """Return values (height, width) or RGBA (height, width, 4) of an image with a palette, and colours as in `Mask`."""
    indices = np.asarray(image)
    used = np.flatnonzero(np.bincount(indices.ravel()))
    rgba = palette_of(image)
    if used[-1] >= len(rgba):
        return indices, {}
    greys, is_grey = rgba[used, 0], (rgba[used, :3] == rgba[used, :1]).all()
    has_meaning = len(used) == 1 or len(set(greys.tolist())) > 1  # a palette that is black throughout says nothing
    if is_grey and has_meaning:
        highest = max(set(greys.tolist()) - {ignore_index}, default=0)
        if not classes or 0 < highest < classes:
            return rgba[indices] if (rgba[used, 3] < 255).any() else rgba[indices, 0], {}
        if (np.diff(greys.astype(int)) < 0).any():
            shown = f"index {used[0]} is {greys[0]}, index {used[-1]} is {greys[-1]}"
            what = f"greys of the mask's palette fall while its indices rise ({shown}): either may be the classes"
            raise Problem(f"{where}: {what}; save it as grey PNG {CLASSES}.")
    colours = {int(index): tuple(rgba[index, :3].tolist()) for index in used}
    black = [index for index, colour in colours.items() if not any(colour) and index]
    if not classes and black and not is_grey:
        what = f"black is index {black[0]} of the mask's palette, but index 0 is the background"
        raise Problem(f"{where}: {what}; save it as grey PNG {ONE_OBJECT}.")
    return indices, {} if is_identity(rgba) else colours


def palette_of(image: Image.Image) -> NDArray[np.uint8]:
    """The colours of an image with a palette, RGBA uint8 (colours, 4); (0, 4) if it has none."""
    if "transparency" in image.info:
        image.apply_transparency()
    return np.array(image.getpalette("RGBA") or [], np.uint8).reshape(-1, 4)


def palette_colours(image: Image.Image) -> dict[int, Colour]:
    """Map index -> RGB of an opened image, as its header has it; {} without a palette, or if each is its own grey."""
    if image.mode != "P" or image.palette is None:
        return {}
    holder = Image.new("P", (1, 1))  # Pillow would decode the image to hand out its palette
    holder.palette = image.palette
    rgba = palette_of(holder)
    return {} if is_identity(rgba) else dict(enumerate(map(tuple, rgba[:, :3].tolist())))


def is_identity(rgba: NDArray[np.uint8]) -> bool:
    """Whether each colour is the grey of its own index: no palette in truth."""
    return bool((rgba[:, :3] == np.arange(len(rgba))[:, None]).all())


def grey_of(rgba: NDArray[np.uint8], classes: int, where: str) -> NDArray[np.uint8]:
    """Return the values (height, width) of a mask (height, width, 4) that is grey in all pixels that can be seen."""
    grey, opacity = rgba[..., 0], rgba[..., 3]
    is_visible = opacity > 0
    if (rgba[is_visible, :3] != rgba[is_visible, :1]).any():
        raise Problem(f"{where}: the mask is in colour; save it as grey PNG {advice(classes)}.")
    if (opacity == 255).all():
        return grey
    only_object = bool((grey[is_visible] > 127).all()) and (is_visible.any() or not rgba[..., :3].any())
    if classes or not only_object:
        raise Problem(f"{where}: the mask is transparent in places; save it as grey PNG {advice(classes)}.")
    return opacity


def to_object(values: NDArray, is_lossy: bool, where: str) -> tuple[NDArray[np.bool_], int]:
    """Return the mask of one object, bool (height, width), and how many pixels are neither clearly object nor not."""
    distinct, counts = count_values(values)
    if not (distinct >= 0).all() or distinct[-1] > RANGES[-1]:  # also where one is no number
        raise Problem(f"{where}: the mask has values below 0 or no numbers; save it as grey PNG {ONE_OBJECT}.")
    highest = distinct[-1]
    limit = next(limit for limit in RANGES if highest <= limit and not (is_lossy and limit == 1))
    between = distinct[(distinct > 0) & (distinct < highest)]
    are_classes = highest == 255 and between.size > 0 and between[-1] <= MAX_CLASS_LIKE and not is_lossy
    if 0 < highest < limit / 2 and limit > 1 or are_classes:
        shown = [*distinct[:4], *([highest] if len(distinct) > 4 else [])]
        what = f"the mask has the values {', '.join(f'{value:g}' for value in shown)}, but one object is 1 or 255 on 0"
        several = "for several classes set task.kind multiclass and name them in task.classes"
        raise Problem(f"{where}: {what}, or greys of which the object is the upper half; {several}.")
    low, high = (fraction * limit for fraction in GREY_FRACTIONS)
    is_unclear = (distinct >= low) & (distinct <= high)
    return values >= limit / 2, int(counts[is_unclear].sum())


def count_values(values: NDArray) -> tuple[NDArray, NDArray]:
    """Return the distinct values, sorted, and the number of pixels of each."""
    if values.dtype in (np.bool_, np.uint8, np.uint16):  # several times as fast
        counts = np.bincount(values.ravel())
        return np.flatnonzero(counts), counts[counts > 0]
    return np.unique(values, return_counts=True)


def to_class_indices(values: NDArray, classes: int, ignore_index: int, where: str) -> NDArray:
    """Convert a mask's values to class indices; pixels without a label get the largest value of the dtype."""
    is_valid = values != ignore_index
    if wrong := values[is_valid & ((values < 0) | (values >= classes))][:1].tolist():
        known = f"{classes}, from 0 to {classes - 1}"
        name_all = "name all classes, or set task.ignore_index to the value without a label"
        raise Problem(f"{where}: the mask has the value {wrong[0]:g}, but task.classes has {known}; {name_all}.")
    dtype = index_dtype(classes)
    return np.where(is_valid, values, ignored(dtype)).astype(dtype)
