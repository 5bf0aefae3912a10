"""Read NYU Depth v2: 1,449 images of rooms with depth, each pixel labelled with one of 894 words, in one file.

`nyu_depth_v2_labeled.mat` is MATLAB 7.3, that is HDF5 with all axes reversed: `images` uint8 (images, 3, columns,
rows), `labels` uint16 (images, columns, rows) with 0 for no label and k for the k-th of `names`, `depths` float32
in m, `names` and `scenes` references to arrays of UTF-16 codes. Silberman, Hoiem, Kohli and Fergus, ECCV 2012,
PAGE below. Of its 2.8 GB only the requested arrays are read.

The words are mapped to 13 or 40 classes (`nyuv2_classes`), or each word stays a class of its own.
"""
import contextlib
import os
import pathlib
import re
import zlib
from collections.abc import Iterator

import h5py
import numpy as np
import pandas as pd
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from pipeline.data import grouping, nyuv2_classes
from pipeline.data.images import downsample_image, downsample_labels
from pipeline.runtime.files import digest, digest_arrays, stamp
from pipeline.masks.confusion import ignored, index_dtype
from pipeline.runtime.problem import Problem

FILE, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
TEST_FOLD, TRAINING_FOLD = 0, 1  # FOLD=0 trains on the 795 images and evaluates on the 654
PAGE = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
SPLITS_URL = "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat"
CLASS_OF_WORD = {
    13: (nyuv2_classes.CLASSES_13, nyuv2_classes.class_of_13),
    40: (nyuv2_classes.CLASSES_40, nyuv2_classes.class_of_40),
}
# A byte of depth is linear in 1/m, as is what a Kinect measures: its own step is 2.85e-3 m at 1 m and grows with the
# square of the depth (Khoshelham and Elberink 2012, https://doi.org/10.3390/s120201437); ours is 1.8 times that.
NEAR_M, FAR_M = 0.7, 10.0
TRANSPOSED = "another program may have transposed it: save it from MATLAB with -v7.3, or download it again"


class NyuV2:
    """The file as a `data.dataset.SegmentationDataset`. Images are named 0001 to 1449, as the data set numbers them.

    folder: where the file lies, and `splits.mat` if there is one; or the file itself.
    classes: 13, 40, or how many words it names (894). inputs: "rgb", or "rgbd" for depth as a fourth channel.
    Raises Problem for a file that is missing, cut short, not MATLAB 7.3, or lacks what it should hold.
    """

    stored_scale, has_angles, warning = 1, False, ""

    def __init__(self, folder: pathlib.Path, classes: int, inputs: str):
        self.path = folder if folder.is_file() else folder / FILE
        self.where = str(self.path)
        self.channels = 4 if inputs == "rgbd" else 3
        check_format(self.path)
        with open_to_check(self.path) as file:  # and closed again: a forked process must not share it
            check_arrays(file, self.path, with_depth=self.channels == 4)
            images, _, self.width, self.height = file["images"].shape
            self.words = read_texts(file, "names", self.path)
            scenes = read_texts(file, "scenes", self.path)
        if len(scenes) != images:
            raise Problem(f"{self.path} has {images} images but {len(scenes)} scenes; download it again.")
        self.names = [name_of(index) for index in range(images)]
        self.room_of = dict(zip(self.names, map(room_of_scene, scenes)))
        self.classes, self.class_of_label = map_labels(self.words, classes, self.path)
        size = (self.height, self.width)
        self.fingerprint = digest(size, self.words, inputs, self.classes)
        self.handle: tuple[int, h5py.File] | None = None  # the process that opened the file, and the file

    def read(self, name: str, scale: int) -> NDArray[np.uint8]:
        """RGB, with rgbd also depth from 0 near to 255 far: uint8 (rows, columns, channels) at 1/scale."""
        image = self.read_array("images", name)
        if self.channels == 4:
            image = np.concatenate([image, depth_to_u8(self.read_array("depths", name))[None]])
        return downsample_image(np.ascontiguousarray(image.T), scale)

    def target(self, name: str, scale: int) -> NDArray:
        """Class indices (rows, columns) at 1/scale, of the dtype of `truth`."""
        return downsample_labels(self.truth(name), scale)

    def truth(self, name: str) -> NDArray:
        """Class indices (height, width) of the dtype of `confusion.index_dtype`; its largest value: no label."""
        labels = self.read_array("labels", name).T
        if labels.max() >= len(self.class_of_label):
            what = f"the labels of image {name} reach {labels.max()}, but `names` has only {len(self.words)} words"
            raise Problem(f"{self.path}: {what}; download it again.")
        return self.class_of_label[labels]

    def inspect(self, name: str) -> str:
        return digest_arrays(self.read(name, 1), self.truth(name))

    def stamp(self, name: str) -> str:
        return stamp(self.path)

    def notes(self, names: list[str]) -> list[str]:
        return []

    def folds(self, count: int) -> pd.DataFrame:
        """Columns image, group (the room) and fold: the official split if it is there, else `count` folds of rooms.

        Fold 0 of the official split holds out the test images, so that FOLD=0 trains on the training images.
        """
        splits = self.path.with_name(SPLITS)
        if not splits.is_file():
            return grouping.assign_folds(self.room_of, count)
        fold_of = read_official_folds(splits, self.names)
        rows = [(name, self.room_of[name], fold_of[name]) for name in sorted(fold_of)]
        return pd.DataFrame(rows, columns=[*grouping.IMAGE_COLUMNS, "fold"])

    def group_key(self, name: str) -> str:
        return name

    def read_array(self, dataset: str, name: str) -> NDArray:
        """Return one image's part of a dataset, as it is stored. Workers and threads may call this at any time."""
        handle = self.handle
        if handle is None or handle[0] != os.getpid():
            if handle is not None:  # the parent's: processes must not share a handle
                handle[1].close()
            handle = self.handle = os.getpid(), open_file(self.path)
        try:
            return handle[1][dataset][int(name) - 1]
        except OSError as error:
            raise Problem(f"{self.path}: {dataset} of {name} is damaged ({error}); download it again.") from None


def where_to_get(folder: pathlib.Path) -> str:
    missing = f"There is no {folder / FILE}, and Kaggle has none"
    where = f"get the labelled data set (2.8 GB) from {PAGE} and, for the official split, {SPLITS_URL}"
    return f"{missing}: {where}; put both into {folder}, or draw rooms with `make demo-rooms`."


def name_of(index: int) -> str:
    return f"{index + 1:04d}"


def room_of_scene(scene: str) -> str:
    """`living_room_0047a` and `living_room_0047b` were recorded in one go, and so in one room."""
    return re.sub(r"(?<=\d)[a-z]$", "", scene)


def map_labels(words: list[str], classes: int, path: pathlib.Path) -> tuple[tuple[str, ...], NDArray]:
    """Names of the classes, and the class of each label, which is 0 for none: array (words + 1,)."""
    dtype = index_dtype(classes)
    if classes in CLASS_OF_WORD:
        names, class_of = CLASS_OF_WORD[classes]
        indices = [names.index(class_of(word)) for word in words]
    elif classes == len(words):
        names, indices = tuple(words), list(range(classes))
    else:
        what = f"{path} has 13 or 40 classes, or {len(words)} words"
        raise Problem(f"task.classes is {classes}, but {what}; set it to one of them.")
    return names, np.array([ignored(dtype), *indices], dtype)


def depth_to_u8(depth_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0 at 0.7 m or nearer, 255 at 10 m or farther, linear in 1/m; what was not measured (0, nan) counts as far."""
    measured_m = np.where(depth_m > 0, depth_m, FAR_M)
    fraction = (1 / NEAR_M - 1 / np.clip(measured_m, NEAR_M, FAR_M)) / (1 / NEAR_M - 1 / FAR_M)
    return np.rint(fraction * 255).astype(np.uint8)


# --- checks when the file is opened ---------------------------------------------------------------


def check_format(path: pathlib.Path) -> None:
    """Raise Problem unless the first bytes are those of MATLAB 7.3."""
    try:
        with open(path, "rb") as file:
            head = file.read(128)
    except FileNotFoundError:
        where = "`make download CONFIG=configs/nyuv2.yaml` says where to get it, or name its folder with DATA="
        raise Problem(f"There is no {path}; {where}.") from None
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}.") from None
    if head.startswith(b"MATLAB 5.0"):
        raise Problem(f"{path} is a MATLAB 5 file, but the data set is MATLAB 7.3 (HDF5); save it with -v7.3.")
    if not h5py.is_hdf5(path):
        size_bytes = path.stat().st_size
        if head.startswith(b"MATLAB 7.3"):
            raise Problem(f"{path} is cut short after {size_bytes} bytes; download it again.")
        what = f"its {size_bytes} bytes begin with {head[:16]!r}"
        raise Problem(f"{path} is not a MATLAB 7.3 file: {what}; download it again.")


def open_file(path: pathlib.Path) -> h5py.File:
    """Open without a lock, which a reader does not need and a read-only disk may refuse."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "truncated" in str(error):
            raise Problem(f"{path} is cut short after {path.stat().st_size} bytes; download it again.") from None
        raise Problem(f"{path} cannot be opened ({error}); download it again.") from None


@contextlib.contextmanager
def open_to_check(path: pathlib.Path) -> Iterator[h5py.File]:
    """Open to check what the file holds; raise Problem for what HDF5 cannot read."""
    with open_file(path) as file:
        try:
            yield file
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:  # h5py raises all of these
            raise Problem(f"{path} is damaged ({error}); download it again.") from error


def check_arrays(file: h5py.File, path: pathlib.Path, with_depth: bool) -> None:
    """Raise Problem unless all datasets are there, of the right dtype, and with their axes in MATLAB's order."""
    required = ("images", "labels", "names", "scenes", *(["depths"] if with_depth else []))
    for name in required:
        if not isinstance(file.get(name), h5py.Dataset):
            keys = ", ".join(key for key in file if not key.startswith("#"))
            raise Problem(f"{path} has no dataset {name}, only {keys or 'none'}; download it again.")
    shape = file["images"].shape
    if len(shape) != 4 or shape[1] != 3 or shape[2] < shape[3] or not shape[0]:
        what = f"images is {shape}, but it must be (images, 3, columns, rows), as (1449, 3, 640, 480)"
        raise Problem(f"{path}: {what}; {TRANSPOSED}.")
    expected = (shape[0], *shape[2:])
    for name in sorted({"labels", "depths"} & set(required)):
        if file[name].shape != expected:
            what = f"{name} is {file[name].shape}, but with images of {shape} it must be {expected}"
            raise Problem(f"{path}: {what}; {TRANSPOSED}.")
    dtypes = {"images": ("u1", "uint8"), "labels": ("u", "uint16"), "depths": ("f", "float32")}
    for name, (kinds, kind) in dtypes.items():
        if name in required and not file[name].dtype.str[1:].startswith(kinds):
            raise Problem(f"{path}: {name} is {file[name].dtype}, but it must be {kind}; download it again.")


def read_texts(file: h5py.File, name: str, path: pathlib.Path) -> list[str]:
    """Read a MATLAB cell array of texts."""
    cell = file[name]
    if h5py.check_ref_dtype(cell.dtype) is None:
        raise Problem(f"{path}: {name} is {cell.dtype}, but it must be references to texts; download it again.")
    targets = [file[reference] for reference in cell[()].ravel()]
    if not all(isinstance(target, h5py.Dataset) and target.dtype == np.uint16 for target in targets):
        raise Problem(f"{path}: {name} refers to something that is not text; download it again.")
    return [target[()].tobytes().decode("utf-16-le") for target in targets]


def read_official_folds(path: pathlib.Path, names: list[str]) -> dict[str, int]:
    """Map name -> fold of the images in `splits.mat`, whose `trainNdxs` and `testNdxs` count from 1."""
    try:
        table = scipy.io.loadmat(path)
    except (OSError, ValueError, TypeError, IndexError, NotImplementedError, MatReadError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise Problem(f"{path} cannot be read as a MATLAB 5 file ({reason}); download it again.") from None
    fold_of: dict[str, int] = {}
    for key, fold in {"trainNdxs": TRAINING_FOLD, "testNdxs": TEST_FOLD}.items():
        if key not in table or not table[key].size or table[key].dtype.kind not in "uif":
            raise Problem(f"{path} has no images in {key}; download it again, or remove it to split by rooms.")
        for number in table[key].ravel().tolist():
            if number not in range(1, len(names) + 1):
                what = f"{key} names image {number}, but there are 1 to {len(names)}"
                raise Problem(f"{path}: {what}; it belongs to another file: remove it to split by rooms.")
            name = name_of(int(number) - 1)
            if name in fold_of:
                raise Problem(f"{path} names image {number} twice; remove it to split by rooms.")
            fold_of[name] = fold
    return fold_of
