"""Decode images and masks to arrays at 1/1, 1/2, 1/4 or 1/8.

Images, masks and probabilities share one grid: at 1/scale, cell (i, j) stands for exactly the pixels
[scale*i, scale*i + scale) x [scale*j, scale*j + scale) of the full-size image. The last cell of a row
hangs over the right edge when scale does not divide the width (1918 = 4 * 479 + 2). This is the grid of
JPEG's own scaled decoding, which leaves out the high frequencies of each 8x8 block instead of decoding
and shrinking, and is several times as fast. Resizing 1918 columns to 480 in the usual way would drift by
up to half a cell against it.
"""
import io
import struct
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from pipeline.runtime.problem import Problem

JPEG_READ_FLAG = {
    1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8,
}  # fmt: skip
JPEG_END = b"\xff\xd9"
ROWS_AT_ONCE = 256  # of an image that is converted to an array
# EXIF orientation -> what turns such an image upright; the last four exchange rows and columns.
TRANSPOSE_OF = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = (5, 6, 7, 8)
# What Pillow raises for files that are damaged, cut short or something else.
PILLOW_ERRORS = (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
# Pillow warns of large images as soon as it has read their header; our readers check the size themselves.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
cv2.setNumThreads(1)  # processes share the work; threads in each would compete for the same cores


def grid_shape(height: int, width: int, scale: int) -> tuple[int, int]:
    """(rows, columns) of the grid at 1/scale: (1280, 1918, 4) -> (320, 480)."""
    return -(-height // scale), -(-width // scale)


def decode_image(data: bytes, suffix: str, scale: int, height: int, width: int, where: str) -> NDArray[np.uint8]:
    """Decode a .jpg or .png, as `suffix` says; everything else as for `decode_jpeg`."""
    if suffix == ".jpg":
        return decode_jpeg(data, scale, height, width, where)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            check_size(image.size, height, width, f"{where}: the image")
            return downsample_image(upright_rgb(image, where), scale)
    except PILLOW_ERRORS:
        raise Problem(f"{where}: the image is not a whole PNG; download it again.") from None


def decode_jpeg(data: bytes, scale: int, height: int, width: int, where: str) -> NDArray[np.uint8]:
    """Decode a JPEG at 1/scale to an RGB uint8 array (rows, columns, 3).

    height, width: the required size of the full image; `where` names the image in an error.
    Raises Problem for an image that is cut short, damaged, not a JPEG, or of another size.
    """
    check_jpeg(data, height, width, where)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), JPEG_READ_FLAG[scale] | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.shape != (*grid_shape(height, width, scale), 3):
        raise Problem(f"{where}: the JPEG is damaged; download it again.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def check_jpeg(data: bytes, height: int, width: int, where: str) -> None:
    """Raise Problem unless header and last bytes are those of a whole RGB JPEG of that size; decode nothing."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as header:
            size, mode = header.size, header.mode
    except Image.DecompressionBombError:
        raise Problem(f"{where}: the image is too large to be read; it must be {width}x{height}.") from None
    except PILLOW_ERRORS:
        raise Problem(f"{where}: the file is not a JPEG image.") from None
    check_size(size, height, width, f"{where}: the image")
    if mode != "RGB":
        raise Problem(f"{where}: the image's colours are {mode}, but they must be RGB.")
    if not data.rstrip(b"\0").endswith(JPEG_END):  # OpenCV would fill the missing rows with grey
        raise Problem(f"{where}: the image is cut short after {len(data)} bytes; download it again.")


def check_size(size: tuple[int, int], height: int, width: int, what: str) -> None:
    """Raise Problem unless Pillow's `size`, (width, height), is the required one."""
    if size != (width, height):
        raise Problem(f"{what} is {size[0]}x{size[1]}, but it must be {width}x{height}.")


def decode_mask(data: bytes, suffix: str, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """Decode a .gif or .png mask, as `suffix` says, as Kaggle packs it to a bool array (height, width).

    A GIF has the palette indices 0 and 1 (Carvana); a PNG has 0 and one other grey value, such as 255 or 65535.
    """
    image_format = suffix.removeprefix(".").upper()
    try:
        with Image.open(io.BytesIO(data), formats=[image_format]) as image:
            check_size(image.size, height, width, f"{where}: the mask")
            values = np.asarray(image)
    except PILLOW_ERRORS:
        raise Problem(f"{where}: the mask is not a whole {image_format}; download it again.") from None
    if values.ndim != 2:
        raise Problem(f"{where}: the mask has colours, but it must be grey: 0, and one other value on the object.")
    highest = 1 if suffix == ".gif" else values.max()
    if values.shape != (height, width) or values.max() > highest:
        raise Problem(f"{where}: the mask has values up to {values.max()}, but only 0 and 1 are allowed.")
    if suffix == ".gif":
        return values.view(bool)
    mask = values != 0
    if (values[mask] != highest).any():
        raise Problem(f"{where}: the mask has several values beside 0, but it must have one.")
    return mask


def upright_rgb(image: Image.Image, where: str, with_alpha: bool = False) -> NDArray[np.uint8]:
    """An opened image as an RGB uint8 array (height, width, 3), turned upright as its EXIF says.

    with_alpha: an RGBA array (height, width, 4) instead if the image has transparency, of whatever kind.

    Raises Problem for more than 8 bits a colour, where `where` names the image, and whatever Pillow raises while it
    decodes.
    """
    check_depth(image, where)
    turned = upright(image)
    mode = "RGBA" if with_alpha and image.has_transparency_data else "RGB"
    pixels = np.empty((turned.height, turned.width, len(mode)), np.uint8)
    for top in range(0, turned.height, ROWS_AT_ONCE):  # at once, the copies would take 8 bytes more a pixel
        bottom = min(top + ROWS_AT_ONCE, turned.height)
        pixels[top:bottom] = np.asarray(turned.crop((0, top, turned.width, bottom)).convert(mode))
    return pixels


def upright(image: Image.Image) -> Image.Image:
    """An opened image, decoded and turned upright as its EXIF says. Raises whatever Pillow raises."""
    image.load()
    transpose = TRANSPOSE_OF.get(read_orientation(image))
    return image if transpose is None else image.transpose(transpose)


def check_depth(image: Image.Image, where: str) -> None:
    """Raise Problem for an opened image of more than 8 bits a colour; only its header is read."""
    if (bits := bits_per_colour(image)) > 8:
        raise Problem(f"{where} has {bits} bits a colour, but only 8 can be read; save it with 8 bits a colour.")


def bits_per_colour(image: Image.Image) -> int:
    """Return the bits of each colour that a PNG, TIFF or PNM file has, from its header; for other files 8.

    The image must be opened and not yet decoded. Its mode does not tell: Pillow reads colours of 16 bits in mode RGB,
    by their upper bytes, so that values from 100 to 896 become 0 to 3.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(np.max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, 1)))
    if image.mode.startswith(("I", "F")):
        return 32 if image.mode == "F" else 16
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""  # of Pillow's decoder: such as "RGB;16B", of PNM ("RGB", highest value)
    if isinstance(arguments, tuple):
        return 16 if image.format == "PPM" and arguments[-1] > 255 else 8
    return 16 if image.format == "PNG" and ";16" in str(arguments) else 8


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of what `upright_rgb` returns; a JPEG is not decoded for it."""
    # Pillow turns a TIFF itself when it decodes it, and gives the size that it will have then.
    is_turned = image.format != "TIFF" and read_orientation(image) in SIDEWAYS
    return (image.width, image.height) if is_turned else (image.height, image.width)


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where EXIF is missing or makes no sense."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error):
        return 1


def downsample_image(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Average an image (height, width) or (height, width, channels) to the grid at 1/scale.

    For images that are not JPEGs. Cells that hang over the right or lower edge see its pixels repeated.
    """
    rows, columns = grid_shape(image.shape[0], image.shape[1], scale)
    overhang = (rows * scale - image.shape[0], columns * scale - image.shape[1])
    if any(overhang):
        image = cv2.copyMakeBorder(image, 0, overhang[0], 0, overhang[1], cv2.BORDER_REPLICATE)
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA) if scale > 1 else image


def downsample_labels(indices: NDArray, scale: int) -> NDArray:
    """Pick class indices (height, width) on the grid at 1/scale, same dtype: the pixel below and right of the middle.

    No pixel lies on the middle of a cell of 2, 4 or 8, so that the picked one lies half a pixel off. Where a cell
    hangs so far over the right or lower edge that this pixel lies beyond it, the edge's pixel is picked.
    """
    rows, columns = grid_shape(indices.shape[0], indices.shape[1], scale)
    row = np.minimum(np.arange(rows) * scale + scale // 2, indices.shape[0] - 1)
    column = np.minimum(np.arange(columns) * scale + scale // 2, indices.shape[1] - 1)
    return indices[np.ix_(row, column)]


def coverage(mask: NDArray[np.bool_], scale: int) -> NDArray[np.uint8]:
    """The fraction of each cell that the object covers, 0 to 255, uint8 array (rows, columns) at 1/scale.

    Cells that hang over the right or lower edge see the edge's pixels repeated, as in a JPEG block.
    A bit for each cell would lose what lies inside it: on real masks at 1/2, coverage brought back to
    full size agrees with the mask to Dice 0.9999, a bit mask to 0.998.
    """
    return downsample_image(mask.view(np.uint8) * np.uint8(255), scale)


def coverage_of_runs(bounds: NDArray[np.int64], height: int, width: int, scale: int) -> NDArray[np.uint8]:
    """The `coverage` of the mask whose runs have these bounds, to the last bit, computed without that mask.

    bounds: int64 array (runs, 2) of `[begin, end)`, as `pipeline.masks.rle.parse` returns them. A mask of
    1918x1280 has some 800 runs and 2.5 million pixels: at 1/4 this takes 0.3 ms, decoding and averaging 2.
    """
    rows, columns = grid_shape(height, width, scale)
    row, begin, end = runs_by_row(bounds, width)
    end[end == width] = columns * scale  # the edge's pixels are repeated to the right ...
    repeats = np.where(row == height - 1, 1 + rows * scale - height, 1)  # ... and downwards
    # A run adds to each row of cells a step up where it begins and one down where it ends. A bound inside a
    # cell splits its step between this cell and the next, so that the end of a row needs two more columns. All
    # counts are at most scale² = 64, so that bytes which overflow on the way come out right.
    steps = np.zeros((rows, columns + 2), np.uint8)
    for bound, step in ((begin, repeats), (end, -repeats)):
        cell, offset = np.divmod(bound, scale)
        np.add.at(steps, (row // scale, cell), (step * (scale - offset)).astype(np.uint8))
        np.add.at(steps, (row // scale, cell + 1), (step * offset).astype(np.uint8))
    sums = cv2.integral(steps)  # sums along the rows, ten times as fast as numpy, and down the columns as well
    pixels = (sums[1:, 1 : columns + 1] - sums[:-1, 1 : columns + 1]).astype(np.uint8)
    coverage_of_count = np.zeros(256, np.uint8)
    coverage_of_count[: scale**2 + 1] = np.rint(255 * np.arange(scale**2 + 1) / scale**2)
    return cv2.LUT(pixels, coverage_of_count)


def runs_by_row(bounds: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], ...]:
    """Split runs at the ends of rows: the row of each piece, its first column and the one after its last."""
    first_row = bounds[:, 0] // width
    rows_of_run = (bounds[:, 1] - 1) // width - first_row + 1
    piece_in_run = np.arange(rows_of_run.sum()) - np.repeat(np.cumsum(rows_of_run) - rows_of_run, rows_of_run)
    row = np.repeat(first_row, rows_of_run) + piece_in_run
    begin, end = np.repeat(bounds, rows_of_run, axis=0).T - row * width
    return row, np.maximum(begin, 0), np.minimum(end, width)


def upsample_u8(prob: NDArray[np.float32], scale: int, height: int, width: int) -> NDArray[np.uint8]:
    """Invert `coverage`: probabilities 0 to 1 at 1/scale -> uint8 0 to 255 (height, width), bicubic, rounded once."""
    return to_u8(upsample(prob, scale, height, width))


def upsample(prob: NDArray[np.float32], scale: int, height: int, width: int) -> NDArray[np.float32]:
    """`upsample_u8` before rounding; next to a steep edge values may lie a little below 0 or above 1."""
    rows, columns = prob.shape
    if scale == 1:
        return prob[:height, :width]
    full_cells = cv2.resize(prob, (columns * scale, rows * scale), interpolation=cv2.INTER_CUBIC)
    return full_cells[:height, :width]


def to_u8(prob: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Probabilities 0 to 1 -> uint8 0 to 255, rounded; values outside are clipped."""
    return cv2.convertScaleAbs(np.clip(prob, 0, 1), alpha=255)
