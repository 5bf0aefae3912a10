"""What a fold keeps of its out-of-fold predictions: `.npz` with the counts of each image, `.zip` with PNGs to look at.

The PNGs of a binary task hold mean probabilities on the network's own grid, as 8 bits. A mask at full size needs no
more: `data.images.upsample` brings the grid there as it did when the image was evaluated. On 16 real images at 1/4,
rounding to 8 bits before and not after that moved 19 of 500,000 pixels of a mask, and its Dice by at most 0.000014.
Such a PNG has 5 kB at 1/4 and 15 kB at 1/2; the probability at full size would have 50. The PNGs of several classes
are class maps at full size. Of a run with a refiner the zip holds both: the refined probability at full size, and in
`coarse/` what the network predicted before that.
"""
import contextlib
import pathlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.zip_reader import DAMAGE
from pipeline.masks.confusion import Counts, index_dtype
from pipeline.masks.dice import THRESHOLDS
from pipeline.runtime.files import replacing, sha256
from pipeline.runtime.problem import Problem

COARSE = "coarse/"  # before the name of a PNG: what the network predicted before its refiner did

# For these images with their large flat areas, zlib's fastest strategy also makes the smallest files.
PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
# Strings of both kinds of `.npz`: the network, the zip, and `stored_threshold.predicted_with`.
PROVENANCE_KEYS = ("checkpoint_sha256", "predictions_sha256", "predicted_with")
OPTIONAL_KEYS = ("refiner_sha256",)


class Store(Protocol):
    """Takes the name of an image and the PNG of a prediction. kind: "" or COARSE."""

    def __call__(self, image_name: str, png: bytes, kind: str = "") -> None: ...


def png(values: NDArray) -> bytes:
    """Encode an array (rows, columns), uint8 or uint16, as a grey PNG."""
    return cv2.imencode(".png", values, PNG_OPTIONS)[1].tobytes()


# --- .npz ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OofHistograms:
    """The `.npz` of a fold of a binary task."""

    names: list[str]
    histograms: NDArray[np.int32]  # (images, 2, 256), see masks.dice
    checkpoint_sha256: str  # of the network that predicted
    predictions_sha256: str  # of the zip with its probabilities
    predicted_with: str  # see `stored_threshold.predicted_with`
    refiner_sha256: str = ""  # of the refiner, if one was used


@dataclass(frozen=True)
class OofConfusion:
    """The `.npz` of a fold of several classes."""

    names: list[str]
    matrix: NDArray[np.int64]  # (classes, classes), the sum over all images, see masks.confusion
    per_image: Counts  # int64 (images, classes) each
    classes: tuple[str, ...]
    checkpoint_sha256: str  # of the network that predicted
    predictions_sha256: str  # of the zip with its class maps
    predicted_with: str
    refiner_sha256: str = ""


def read_oof_histograms(path: pathlib.Path) -> OofHistograms:
    """Read the `.npz` of a binary task. Raise Problem if it is missing, damaged, or of several classes."""
    arrays = read_arrays(path, ("names", "histograms", *PROVENANCE_KEYS))
    names, histograms = arrays["names"], arrays["histograms"]
    shape = (len(names) if names.ndim else 0, 2, THRESHOLDS)
    if names.dtype.kind != "U" or histograms.dtype.kind != "i" or histograms.shape != shape or not shape[0]:
        raise Problem(f"{path} does not hold histograms (images, 2, {THRESHOLDS}); run `make validate` again.")
    provenance = (str(arrays.get(key, "")) for key in (*PROVENANCE_KEYS, *OPTIONAL_KEYS))
    return OofHistograms(names.tolist(), histograms, *provenance)


def read_oof_confusion(path: pathlib.Path) -> OofConfusion:
    """Read the `.npz` of several classes. Raise Problem if it is missing, damaged, or of a binary task."""
    arrays = read_arrays(path, ("names", "classes", "matrix", *Counts._fields, *PROVENANCE_KEYS))
    names, classes, matrix = arrays["names"], arrays["classes"], arrays["matrix"]
    counts = Counts(*(arrays[key] for key in Counts._fields))
    shape = (len(names) if names.ndim else 0, len(classes) if classes.ndim else 0)
    fits = matrix.shape == shape[1:] * 2 and all(each.shape == shape and each.dtype.kind == "i" for each in counts)
    if names.dtype.kind != "U" or classes.dtype.kind != "U" or not fits or not all(shape):
        raise Problem(f"{path} does not hold counts (images, classes); run `make validate` again.")
    provenance = (str(arrays[key]) for key in PROVENANCE_KEYS)
    return OofConfusion(names.tolist(), matrix, counts, tuple(classes.tolist()), *provenance)


def read_arrays(path: pathlib.Path, keys: tuple[str, ...]) -> dict[str, NDArray]:
    """Return these arrays of an `.npz`. Raise Problem if it is missing or damaged, or if `keys` do not fit its task."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "matrix" in file and "matrix" not in keys:
                raise Problem(f"{path} is of several classes; a threshold is for one object and its background.")
            return {key: file[key] for key in (*keys, *(key for key in OPTIONAL_KEYS if key in file))}
    except FileNotFoundError:
        raise Problem(f"There is no {path}; run `make validate` first.") from None
    except (*DAMAGE, KeyError, TypeError, AttributeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"{path} is damaged ({reason}); run `make validate` again.") from None


# --- .zip ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def oof_writer(path: pathlib.Path, comment: str = "") -> Iterator[Store]:
    """Yield a `Store`; the zip appears at `path` when the block ends without an error.

    The same PNGs in the same order give the same bytes. comment: of the zip.
    """
    with replacing(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment.encode()
        yield lambda image_name, png, kind="": archive.writestr(zipfile.ZipInfo(png_name(image_name, kind)), png)


def png_name(image_name: str, kind: str = "") -> str:
    """`"00087a6bd4dc_01.jpg"` -> `"00087a6bd4dc_01.png"`; names without a suffix, such as `scene.01`, may have dots."""
    return f"{kind}{image_name.removesuffix('.jpg')}.png"


class OofStore:
    """Reads the zip that `oof_writer` wrote. Several threads may call `read` at once."""

    def __init__(self, path: pathlib.Path, dtype: type = np.uint8):
        self.path, self.dtype = path, np.dtype(dtype)
        try:
            self.archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise Problem(f"There is no {path}; run `make validate` again.") from None
        except DAMAGE as error:
            raise self.damaged(str(error)) from None

    def read(self, image_name: str, kind: str = "") -> NDArray:
        """Return the prediction of an image: probability 0 to 255, uint8 (rows, columns) on the network's grid, or if
        it was refined at full size; or, of several classes, class indices (height, width).

        kind: COARSE for what a refined network predicted before. Raise Problem if the zip lacks the image or its bytes
        are damaged.
        """
        file_name = png_name(image_name, kind)
        try:
            data = self.archive.read(file_name)
        except KeyError:
            raise self.damaged(f"it lacks {file_name}") from None
        except DAMAGE as error:
            raise self.damaged(str(error)) from None
        prediction = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if prediction is None or prediction.ndim != 2 or prediction.dtype != self.dtype:
            raise self.damaged(f"{file_name} is not a grey PNG of {8 * self.dtype.itemsize} bits")
        return prediction

    def damaged(self, reason: str) -> Problem:
        return Problem(f"{self.path} is damaged ({reason}); run `make validate` again.")


def open_oof_store(oof: OofHistograms | OofConfusion, path: pathlib.Path) -> OofStore:
    """Open the zip that belongs to an `.npz`. Raise Problem if it is missing, damaged, or a different one."""
    store = OofStore(path, index_dtype(len(oof.classes)) if isinstance(oof, OofConfusion) else np.uint8)
    if oof.predictions_sha256 != sha256(path):
        raise Problem(f"{path} does not belong to the .npz file beside it; run `make validate` again.")
    return store
