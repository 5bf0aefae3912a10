"""Bytes of pictures and masks to arrays, at 1/1, 1/2, 1/4 or 1/8.

One grid serves pictures, masks and probabilities: at 1/scale, cell (i, j) stands for exactly the pixels
[scale*i, scale*i + scale) x [scale*j, scale*j + scale) of the full-size picture, the last cell of a row
hanging over the right edge when scale does not divide the width (1918 = 4 * 479 + 2). That is what
JPEG's own scaled decoding gives: it leaves out the high frequencies of each 8x8 block instead of
decoding and shrinking, which is several times as fast. Resizing 1918 columns to 480 in the usual way
would drift by up to half a cell against it.
"""
import io
import struct
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.runtime.problem import Problem

JPEG_READ_FLAG = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
JPEG_END = b"\xff\xd9"
# What puts a picture of an EXIF orientation upright; the last four exchange rows and columns.
TURN_OF = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
# Pillow warns of large pictures when it has read no more than their header; here their size is checked then.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
cv2.setNumThreads(1)  # the work is spread over processes; threads in each would fight for the same cores


def grid_shape(height: int, width: int, scale: int) -> tuple[int, int]:
    """Rows and columns of the grid at 1/scale: (1280, 1918, 4) -> (320, 480)."""
    return -(-height // scale), -(-width // scale)


def decode_jpeg(data: bytes, scale: int, height: int, width: int, where: str) -> NDArray[np.uint8]:
    """A picture at 1/scale, RGB uint8 array (rows, columns, 3).

    height, width: the size that the full picture must have; `where` names the picture in an error.
    Raises Problem for a picture that is cut short, damaged, no JPEG, or of another size.
    """
    check_jpeg(data, height, width, where)
    flag = JPEG_READ_FLAG[scale] | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None or image.shape != (*grid_shape(height, width, scale), 3):
        raise Problem(f"{where}: the JPEG is damaged; download it again.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def check_jpeg(data: bytes, height: int, width: int, where: str) -> None:
    """From the header and the last bytes alone: a whole RGB JPEG of that size, or Problem."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as header:
            size, mode = header.size, header.mode
    except Image.DecompressionBombError:
        raise Problem(f"{where}: the picture is too large to be read; it must be {width}x{height}.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise Problem(f"{where}: the file is not a JPEG picture.") from None
    if size != (width, height):
        raise Problem(f"{where}: the picture is {size[0]}x{size[1]}, but it must be {width}x{height}.")
    if mode != "RGB":
        raise Problem(f"{where}: the picture's colours are {mode}, but they must be RGB.")
    if not data.rstrip(b"\0").endswith(JPEG_END):  # OpenCV would fill the missing rows with grey
        raise Problem(f"{where}: the picture is cut short after {len(data)} bytes; download it again.")


def decode_gif_mask(data: bytes, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """A mask as Kaggle packs it, a GIF whose palette indices are 0 and 1 -> bool array (height, width)."""
    try:
        with Image.open(io.BytesIO(data), formats=["GIF"]) as gif:
            if gif.size != (width, height):
                raise Problem(f"{where}: the mask is {gif.size[0]}x{gif.size[1]}, but it must be {width}x{height}.")
            values = np.asarray(gif)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise Problem(f"{where}: the mask is not a whole GIF; download it again.") from None
    if values.shape != (height, width) or values.max() > 1:
        raise Problem(f"{where}: the mask has values up to {values.max()}, but only 0 and 1 are allowed.")
    return values.view(bool)


def upright_rgb(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """Anybody's picture, RGB uint8 array (height, width, 3), turned as the camera noted in its EXIF.

    Raises Problem for one of more than 8 bits a colour; `where` names it there. What Pillow raises while it decodes
    is for the caller.
    """
    if image.mode.startswith(("I", "F")):  # Pillow would take all values beyond 255 for 255
        raise Problem(f"{where} has more than 8 bits a colour (Pillow's mode {image.mode}); save it with 8.")
    image.load()
    turn = TURN_OF.get(orientation(image))
    pixels = image.convert("RGB")
    return np.asarray(pixels if turn is None else pixels.transpose(turn))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) that `upright_rgb` gives a picture; of a JPEG nothing is decoded for it."""
    return (image.width, image.height) if orientation(image) in SIDEWAYS else (image.height, image.width)


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 is upright, and what an EXIF that makes no sense is taken for."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error):
        return 1


def downsample_image(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """A whole picture (height, width) or (height, width, channels) brought to 1/scale by averages, on the grid above.

    For pictures that are no JPEG; cells that hang over the right or lower edge see its pixels repeated.
    """
    rows, columns = grid_shape(image.shape[0], image.shape[1], scale)
    overhang = (rows * scale - image.shape[0], columns * scale - image.shape[1])
    if any(overhang):
        image = cv2.copyMakeBorder(image, 0, overhang[0], 0, overhang[1], cv2.BORDER_REPLICATE)
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA) if scale > 1 else image


def downsample_labels(indices: NDArray, scale: int) -> NDArray:
    """Class indices (height, width) at 1/scale, same dtype: of each cell the pixel right of and below its middle.

    No pixel lies on the middle of 2, 4 or 8, so that what is picked lies half a pixel off. Where a cell hangs so far
    over the right or lower edge that this pixel is beyond it, it is the edge's.
    """
    rows, columns = grid_shape(indices.shape[0], indices.shape[1], scale)
    row = np.minimum(np.arange(rows) * scale + scale // 2, indices.shape[0] - 1)
    column = np.minimum(np.arange(columns) * scale + scale // 2, indices.shape[1] - 1)
    return indices[np.ix_(row, column)]


def coverage(mask: NDArray[np.bool_], scale: int) -> NDArray[np.uint8]:
    """The share of each cell that the object covers, 0 to 255, uint8 array (rows, columns) at 1/scale.

    Cells that hang over the right or lower edge see the edge's pixels repeated, as in a JPEG block.
    A bit for each cell would lose what lies inside it: on real masks at 1/2, coverage brought back to
    full size agrees with the mask to Dice 0.9999, a bit mask to 0.998.
    """
    rows, columns = grid_shape(mask.shape[0], mask.shape[1], scale)
    full = mask.view(np.uint8) * np.uint8(255)
    overhang = (rows * scale - mask.shape[0], columns * scale - mask.shape[1])
    if any(overhang):
        full = cv2.copyMakeBorder(full, 0, overhang[0], 0, overhang[1], cv2.BORDER_REPLICATE)
    return cv2.resize(full, (columns, rows), interpolation=cv2.INTER_AREA)


def coverage_of_runs(bounds: NDArray[np.int64], height: int, width: int, scale: int) -> NDArray[np.uint8]:
    """The `coverage` of the mask whose runs have these bounds, to the last bit, without that mask.

    bounds: int64 array (runs, 2) of `[begin, end)`, as `pipeline.masks.rle.parse` gives them. A mask of
    1918x1280 has some 800 runs and 2.5 million pixels: at 1/4 this takes 0.3 ms, decoding and averaging 2.
    """
    rows, columns = grid_shape(height, width, scale)
    row, begin, end = runs_by_row(bounds, width)
    end[end == width] = columns * scale  # the edge's pixels are repeated to the right ...
    repeats = np.where(row == height - 1, 1 + rows * scale - height, 1)  # ... and downwards
    # A run adds to each row of cells a step up where it begins and one down where it ends; a bound inside a
    # cell splits its step between this cell and the next, so that an end of the row needs two more. All
    # counts are at most scale² = 64, so that bytes which run over on the way come out right.
    steps = np.zeros((rows, columns + 2), np.uint8)
    for bound, step in ((begin, repeats), (end, -repeats)):
        cell, offset = np.divmod(bound, scale)
        np.add.at(steps, (row // scale, cell), (step * (scale - offset)).astype(np.uint8))
        np.add.at(steps, (row // scale, cell + 1), (step * offset).astype(np.uint8))
    sums = cv2.integral(steps)  # summed along the rows, ten times as fast as by numpy, and down them as well
    pixels = (sums[1:, 1 : columns + 1] - sums[:-1, 1 : columns + 1]).astype(np.uint8)
    share_of = np.zeros(256, np.uint8)
    share_of[: scale**2 + 1] = np.rint(255 * np.arange(scale**2 + 1) / scale**2)
    return cv2.LUT(pixels, share_of)


def runs_by_row(
    bounds: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Runs cut at the ends of rows: the row of each piece, its first column and the one after its last."""
    first_row = bounds[:, 0] // width
    pieces = (bounds[:, 1] - 1) // width - first_row + 1
    piece = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    row = np.repeat(first_row, pieces) + piece
    begin, end = np.repeat(bounds, pieces, axis=0).T - row * width
    return row, np.maximum(begin, 0), np.minimum(end, width)


def upsample_u8(prob: NDArray[np.float32], scale: int, height: int, width: int) -> NDArray[np.uint8]:
    """The inverse of `coverage`: shares 0 to 1 at 1/scale -> 0 to 255 at (height, width).

    Bicubic, on the same grid, rounded once.
    """
    return to_u8(upsample(prob, scale, height, width))


def upsample(prob: NDArray[np.float32], scale: int, height: int, width: int) -> NDArray[np.float32]:
    """`upsample_u8` before it is rounded; beside a steep edge a value may lie a little below 0 or above 1."""
    rows, columns = prob.shape
    large = cv2.resize(prob, (columns * scale, rows * scale), interpolation=cv2.INTER_CUBIC)
    return large[:height, :width]


def to_u8(prob: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Shares to 0 to 255; what lies outside 0 to 1 becomes its end."""
    return cv2.convertScaleAbs(np.clip(prob, 0, 1), alpha=255)
