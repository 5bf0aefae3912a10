"""What is kept of the predictions of a fold: histograms of each picture in `.npz`, and for looking at, in `.zip`,
mean probabilities on the network's own grid, as 8-bit PNGs.

A mask at full size needs no more: `data.images.upsample` brings the grid there as it did when the picture was judged.
On 16 real pictures at 1/4, rounding to 8 bits before and not after that moved 19 of 500,000 pixels of a mask, and its
Dice by at most 0.000014. Such a PNG has 5 kB at 1/4 and 15 kB at 1/2; the probability at full size would have 50.
"""
import contextlib
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.zip_reader import DAMAGE
from pipeline.runtime.files import replacing, sha256
from pipeline.masks.confusion import Counts, index_dtype
from pipeline.masks.dice import THRESHOLDS
from pipeline.runtime.problem import Problem

# Of the strategies of zlib the fastest one that there is makes the smallest files of these, of wide flat areas.
PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


def png(probability_u8: NDArray[np.uint8]) -> bytes:
    """A grey PNG of a uint8 array (rows, columns)."""
    return cv2.imencode(".png", probability_u8, PNG_OPTIONS)[1].tobytes()


@dataclass(frozen=True)
class OofHistograms:
    """The `.npz` of a fold. The hashes name the network that predicted, and the zip that belongs to it, if one does."""

    names: list[str]
    histograms: NDArray[np.int32]  # (images, 2, 256), see masks.dice
    checkpoint: str
    probabilities: str
    predicted_with: str = ""  # see `cut.predicted_with`; "" in files from before it was noted


def read_oof_histograms(path: pathlib.Path) -> OofHistograms:
    """Problem when the file is missing, damaged, or of several classes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "matrix" in file:
                raise Problem(f"{path} is of several classes; a cut is for one object and its background.")
            probabilities = str(file["probabilities"]) if "probabilities" in file else ""
            names, histograms, checkpoint = file["names"], file["histograms"], str(file["checkpoint"])
            way = str(file["predicted_with"]) if "predicted_with" in file else ""
    except FileNotFoundError:
        raise Problem(f"There is no {path}; run `make validate` first.") from None
    except (*DAMAGE, KeyError, TypeError, AttributeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"{path} is damaged ({reason}); run `make validate` again.") from None
    shape = (len(names) if names.ndim else 0, 2, THRESHOLDS)
    if names.dtype.kind != "U" or histograms.dtype.kind != "i" or histograms.shape != shape or not shape[0]:
        raise Problem(f"{path} does not hold histograms (images, 2, {THRESHOLDS}); run `make validate` again.")
    return OofHistograms(names.tolist(), histograms, checkpoint, probabilities, way)


@dataclass(frozen=True)
class OofConfusion:
    """The `.npz` of a fold of several classes."""

    names: list[str]
    matrix: NDArray[np.int64]  # (classes, classes), the sum over the pictures, see masks.confusion
    of_pictures: Counts  # int64 (pictures, classes) each
    classes: tuple[str, ...]
    checkpoint: str
    probabilities: str  # of the zip with its class maps
    predicted_with: str = ""


def read_oof_confusion(path: pathlib.Path) -> OofConfusion:
    """Problem when the file is missing or damaged, or holds histograms of one class."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names, classes, matrix = file["names"], file["classes"], file["matrix"]
            counts = Counts(*(file[key] for key in Counts._fields))
            checkpoint, probabilities = str(file["checkpoint"]), str(file["probabilities"])
            way = str(file["predicted_with"]) if "predicted_with" in file else ""
    except FileNotFoundError:
        raise Problem(f"There is no {path}; run `make validate` first.") from None
    except (*DAMAGE, KeyError, TypeError, AttributeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"{path} is damaged ({reason}); run `make validate` again.") from None
    shape = (len(names) if names.ndim else 0, len(classes) if classes.ndim else 0)
    fits = matrix.shape == shape[1:] * 2 and all(each.shape == shape and each.dtype.kind == "i" for each in counts)
    if names.dtype.kind != "U" or classes.dtype.kind != "U" or not fits or not all(shape):
        raise Problem(f"{path} does not hold counts (pictures, classes); run `make validate` again.")
    return OofConfusion(names.tolist(), matrix, counts, tuple(classes.tolist()), checkpoint, probabilities, way)


@contextlib.contextmanager
def oof_writer(path: pathlib.Path) -> Iterator[Callable[[str, bytes], None]]:
    """Hand out `keep(image name, png)`; the zip at `path` is there once all are kept. The same PNGs, the same bytes."""
    with replacing(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        yield lambda name, data: archive.writestr(zipfile.ZipInfo(png_name(name)), data)


def png_name(image_name: str) -> str:
    """`"00087a6bd4dc_01.jpg"` -> `"00087a6bd4dc_01.png"`; names without a suffix, such as `scene.01`, may have dots."""
    return image_name.removesuffix(".jpg") + ".png"


def open_oof_store(judged: OofHistograms | OofConfusion, path: pathlib.Path) -> "OofStore":
    """The zip that belongs to those histograms; Problem when it is missing, damaged, or another."""
    kept = OofStore(path, index_dtype(len(judged.classes)) if isinstance(judged, OofConfusion) else np.uint8)
    if judged.probabilities != sha256(path):
        raise Problem(f"{path} does not belong to the histograms beside it; run `make validate` again.")
    return kept


class OofStore:
    """The zip that `oof_writer` wrote. `read` may be called by several threads at once."""

    def __init__(self, path: pathlib.Path, dtype: type = np.uint8):
        self.path, self.dtype = path, np.dtype(dtype)
        try:
            self.archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise Problem(f"There is no {path}; run `make validate` again.") from None
        except DAMAGE as error:
            raise self.damaged(str(error)) from None

    def read(self, image_name: str) -> NDArray:
        """The probability of a picture, 0 to 255, uint8 array (rows, columns) on the network's grid; or, of several
        classes, its class map at full size.

        Raises Problem for a picture that the zip lacks or whose bytes are damaged.
        """
        try:
            data = self.archive.read(png_name(image_name))
        except KeyError:
            raise self.damaged(f"it lacks {png_name(image_name)}") from None
        except DAMAGE as error:
            raise self.damaged(str(error)) from None
        probability = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if probability is None or probability.ndim != 2 or probability.dtype != self.dtype:
            raise self.damaged(f"{png_name(image_name)} is no grey PNG of {8 * self.dtype.itemsize} bits")
        return probability

    def damaged(self, why: str) -> Problem:
        return Problem(f"{self.path} is damaged ({why}); run `make validate` again.")
