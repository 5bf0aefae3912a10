"""Pseudo-labels: images without a mask join the training with the masks that were predicted for them.

Of a competition these are its test images, with the masks of a submission; of your own images a folder of further ones,
with the masks that `make cutout MASK=1` writes.

Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks". In this
competition the 4th place trained on its predicted test set; a sixth of the test cars are of makes that no training
image shows.

Pseudo-labelled images are in no fold: all folds train on them, and none is validated on them. The networks that
predicted them may have been trained on images that a fold holds out now, which is fine: a predicted mask of a test
image is no truth about a training image.
"""
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.data.competition import Competition, ImageSet
from pipeline.data.csv_table import LARGEST_STREAM_BYTES, find_table, read_table, stream_rows
from pipeline.data.dataset import SegmentationDataset
from pipeline.data.image_folder import ImageFolder
from pipeline.data.images import coverage, coverage_of_runs
from pipeline.masks import rle
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem

UNSURE_COLUMN = "unsure_fraction"  # of a table that `predict` or `cutout` writes with its masks: how unsure each is
UNSURE_TABLE, IMAGE_COLUMN = "unsure.csv", "image"  # of `cutout`, among the masks
PREFIX = "pseudo/"  # of the names of images from a folder, which its training images may have as well
SOLUTION = "solution.csv"
MOST_EQUAL = 0.02  # of a submission's masks that may equal the truth to the pixel, as an empty or tiny one may


class PseudoSource(Protocol):
    """Images and their predicted masks, by their names."""

    names: list[str]  # none of them is that of a training image

    def read(self, name: str, scale: int) -> NDArray: ...

    def target(self, name: str, scale: int) -> NDArray: ...

    def inspect(self, name: str) -> str: ...

    def stamp(self, name: str) -> str: ...


class PseudoLabels(NamedTuple):
    """Images with predicted masks, and how often they are trained on."""

    source: PseudoSource
    weight: float  # the fraction of them that each epoch visits
    table: pd.DataFrame  # columns image, unsure_fraction, used: of all masks, the surest first
    sha256: str = ""  # of the submission; "" for a folder, whose images and masks have hashes of their own

    @property
    def names(self) -> list[str]:
        return self.source.names

    @property
    def summary(self) -> str:
        """Return what is used, after a comma, for messages."""
        return f", {len(self.names)} of {len(self.table)} pseudo-labelled with weight {self.weight:g}"


class RunLengths:
    """The runs of many masks in one array: 100,064 masks of 400 runs take 320 MB."""

    def __init__(self, runs_of_image: Iterator[tuple[str, NDArray[np.int64]]]):
        self.names: list[str] = []
        runs, counts = [np.empty((0, 2), np.int32)], [0]
        for name, bounds in runs_of_image:
            self.names.append(name)
            runs.append(bounds.astype(np.int32))
            counts.append(len(bounds))
        self.bounds, self.starts = np.concatenate(runs), np.cumsum(counts)
        self.number_of = {name: number for number, name in enumerate(self.names)}

    def runs(self, name: str) -> NDArray[np.int64]:
        """Return the bounds of the row-major runs of a mask, int64 (runs, 2), as `rle.bounds` gives them."""
        number = self.number_of[name]
        return self.bounds[self.starts[number] : self.starts[number + 1]].astype(np.int64)


class PredictedSubmission:
    """Test images with the masks of a submission, a `PseudoSource`."""

    def __init__(self, images: ImageSet, masks: RunLengths):
        self.images, self.masks, self.names = images, masks, masks.names
        self.height, self.width = images.competition.height_px, images.competition.width_px

    def read(self, name: str, scale: int) -> NDArray:
        return self.images.read(name, scale)

    def target(self, name: str, scale: int) -> NDArray:
        runs = self.masks.runs(name)
        if scale == 1:  # nothing to average
            return coverage(rle.fill(runs, self.height, self.width), scale)
        return coverage_of_runs(runs, self.height, self.width, scale)

    def inspect(self, name: str) -> str:
        return self.images.inspect(name)  # the masks have the hash of the submission

    def stamp(self, name: str) -> str:
        return self.images.stamp(name)


class PredictedFolder:
    """A folder of your own images with predicted masks, a `PseudoSource`."""

    def __init__(self, folder: ImageFolder, names: list[str]):
        self.folder, self.names = folder, [PREFIX + name for name in names]

    def read(self, name: str, scale: int) -> NDArray:
        return self.folder.read(name.removeprefix(PREFIX), scale)

    def target(self, name: str, scale: int) -> NDArray:
        return self.folder.target(name.removeprefix(PREFIX), scale)

    def inspect(self, name: str) -> str:
        return self.folder.inspect(name.removeprefix(PREFIX))

    def stamp(self, name: str) -> str:
        return self.folder.stamp(name.removeprefix(PREFIX))


class WithPseudoLabels:
    """The images of a dataset, and pseudo-labelled ones, as `dataset.TrainableImages` that can be inspected."""

    def __init__(self, dataset: SegmentationDataset, pseudo: PseudoLabels):
        self.labelled, self.pseudo, self.is_pseudo = dataset, pseudo.source, frozenset(pseudo.names)
        self.fingerprint = dataset.fingerprint
        self.height, self.width = dataset.height, dataset.width
        self.channels, self.classes = dataset.channels, dataset.classes

    def read(self, name: str, scale: int) -> NDArray:
        return self.source_of(name).read(name, scale)

    def target(self, name: str, scale: int) -> NDArray:
        return self.source_of(name).target(name, scale)

    def inspect(self, name: str) -> str:
        return self.source_of(name).inspect(name)

    def stamp(self, name: str) -> str:
        return self.source_of(name).stamp(name)

    def source_of(self, name: str) -> SegmentationDataset | PseudoSource:
        return self.pseudo if name in self.is_pseudo else self.labelled


# --- a submission ----------------------------------------------------------------------------------------------------


def read_pseudo_labels(
    path: pathlib.Path, fraction: float, weight: float, competition: Competition, folder: pathlib.Path, hq: bool
) -> PseudoLabels:
    """Read the masks of a submission for the test images in `folder`.

    fraction: of its masks, the surest first; an empty mask is not used. Raises Problem if the submission is damaged,
    contains training images or the truth of the test set, or, for a fraction below 1, does not tell how sure it is.
    """
    images = competition.open_images(folder, competition.test_set, hq)
    texts = dict(read_masks(path, competition))
    check_no_truth(path, texts, competition, folder)
    if unknown := sorted(texts.keys() - set(images.names)):
        raise Problem(f"{path}: {unknown[0][:40]} is not an image of {images.files.archive_path}.")
    not_empty = [name for name, text in texts.items() if text.strip()]
    table = rank(path, not_empty, fraction, unsure_table(path), competition.submission_header[0], "make predict")
    names = sorted(table["image"][table["used"]])

    def runs_of_image() -> Iterator[tuple[str, NDArray[np.int64]]]:
        for name in names:
            try:
                yield name, competition.parse(texts[name])
            except ValueError as error:
                raise Problem(f"{path}, image {name}: {error}.") from None

    source = PredictedSubmission(images, RunLengths(runs_of_image()))
    return PseudoLabels(source, weight, table, sha256(path))


def read_masks(path: pathlib.Path, competition: Competition) -> Iterator[tuple[str, str]]:
    """Yield name and run lengths of each row of a submission, whose columns may have any order."""
    if not path.is_file():
        raise Problem(f"data.pseudo is {path}, but there is no such file; name a submission, or set it to null.")
    rows = stream_rows(path, "ascii", largest_bytes=LARGEST_STREAM_BYTES, advice="make it again with `make predict`")
    _, header = next(rows, (1, []))
    if sorted(header) != sorted(competition.submission_header):
        raise Problem(f"{path}, line 1: the header must be {','.join(competition.submission_header)}.")
    name_column, text_column = map(header.index, competition.submission_header)
    seen = set()
    for line, row in rows:
        if (name := row[name_column]) in seen:
            raise Problem(f"{path}, line {line}: the image {name[:40]} is there twice.")
        seen.add(name)
        yield name, row[text_column]


def check_no_truth(path: pathlib.Path, texts: dict[str, str], competition: Competition, folder: pathlib.Path) -> None:
    """Raise Problem if the masks are the truth: those of training images, or of a solution.csv in the folder."""
    training = set(competition.open_images(folder, competition.train_set).names)
    if known := sorted(texts.keys() & training):
        raise Problem(f"{path}: {known[0]} is a training image; pseudo-labels are predicted masks of test images.")
    if find_table(folder, SOLUTION) is None:
        return
    image, run_lengths = competition.submission_header
    solution = read_table(folder, SOLUTION, (image, run_lengths))
    truth = dict(zip(solution[image], solution[run_lengths]))
    equal = sum(bool(text.split()) and texts.get(name, "").split() == text.split() for name, text in truth.items())
    if equal > MOST_EQUAL * len(solution):
        what = f"{equal} of its masks are those of {folder / SOLUTION} to the pixel"
        raise Problem(f"{path} is no prediction: {what}.")


def unsure_table(submission: pathlib.Path) -> pathlib.Path:
    """Return the table beside `submissions/RUN.csv.gz` that tells how unsure each mask is."""
    return submission.with_name(f"{submission.name.removesuffix('.gz').removesuffix('.csv')}.unsure.csv")


# --- a folder --------------------------------------------------------------------------------------------------------


def read_pseudo_folder(path: pathlib.Path, fraction: float, weight: float, training: ImageFolder) -> PseudoLabels:
    """Read your own images without a mask of a person, a folder with images/ and predicted masks/.

    fraction: of its masks, the surest first. training: the images with true masks, which tell classes and size. Raises
    Problem if images and masks do not go together, one of them is a training image or of the group of one, or, for a
    fraction below 1, no table tells how sure the masks are.
    """
    if not (path / "images").is_dir():
        what = f"data.pseudo is {path}, but there is no folder {path / 'images'}"
        raise Problem(f"{what}; put images there, and their masks into masks/ with `make cutout MASK=1`.")
    size = (training.height, training.width) if training.resizes else (None, None)
    folder = ImageFolder(path, training.classes, training.ignore_index, *size)
    if (folder.height, folder.width) != (training.height, training.width):
        what = f"{path} has images of {folder.width}x{folder.height}, but {training.where} of"
        raise Problem(f"{what} {training.width}x{training.height}; set data.height and data.width.")
    if folder.fold_of:
        raise Problem(f"{path} has an official split, but pseudo-labels are in no fold; put its images into images/.")
    check_other_images(folder.image_of, training.image_of)
    check_other_groups(path, folder.group_of, training.group_of)
    beside = path / "masks" / UNSURE_TABLE
    table = rank(path, folder.names, fraction, beside, IMAGE_COLUMN, "make cutout MASK=1")
    return PseudoLabels(PredictedFolder(folder, sorted(table["image"][table["used"]])), weight, table)


def check_other_images(pseudo: Mapping[str, pathlib.Path], training: Mapping[str, pathlib.Path]) -> None:
    """Raise Problem if an image is a training image, byte for byte: a fold that holds it out would train on it."""
    size_of = {path: path.stat().st_size for path in (*pseudo.values(), *training.values())}
    sizes = {size_of[path] for path in pseudo.values()} & {size_of[path] for path in training.values()}
    twin_of = {sha256(path): path for path in training.values() if size_of[path] in sizes}
    for path in pseudo.values():
        if size_of[path] in sizes and (twin := twin_of.get(sha256(path))):
            what = f"{path} is the training image {twin}"
            raise Problem(f"{what}; remove it, since pseudo-labels are for images that have no mask of a person.")


def check_other_groups(path: pathlib.Path, pseudo: Mapping[str, str], training: Mapping[str, str]) -> None:
    """Raise Problem if an image is of a group of training images: the fold that holds them out would train on it.

    pseudo, training: image -> its group, "" without one. path: of the pseudo-labels.
    """
    held_out = {*training.values()} - {""}
    if shared := next((name for name, group in pseudo.items() if group in held_out), None):
        what = f"{path}: the image {shared} is of the group {pseudo[shared]}, which training images are of, too"
        raise Problem(f"{what}, so that the fold that holds them out would train on it; remove such images.")


# --- which of them ---------------------------------------------------------------------------------------------------


def rank(
    path: pathlib.Path, names: list[str], fraction: float, beside: pathlib.Path, column: str, writer: str
) -> pd.DataFrame:
    """Return a table of these images, the surest first: columns image, unsure_fraction, used.

    path: of the masks, for messages; beside: the table, whose `column` names an image, and which `writer` writes.
    """
    unsure = pd.Series(np.nan, index=names)
    if beside.is_file():
        known = read_table(beside.parent, beside.name, (column, UNSURE_COLUMN))
        try:
            values = known[UNSURE_COLUMN].astype(float).to_numpy()
        except ValueError as error:
            raise Problem(f"{beside}: {UNSURE_COLUMN} must be numbers ({error}); `{writer}` writes it.") from None
        unsure = pd.Series(values, index=known[column]).reindex(names)
    if fraction < 1 and unsure.isna().any():
        what = f"data.pseudo_fraction is {fraction:g}, but {beside} does not tell how unsure each mask is"
        raise Problem(f"{what}; `{writer}` writes it, or set data.pseudo_fraction to 1.")
    table = unsure.sort_values(kind="stable").rename_axis("image").reset_index(name=UNSURE_COLUMN)
    table["used"] = np.arange(len(table)) < round(fraction * len(table))
    if not table["used"].any():
        raise Problem(f"{path} has no mask to train on: of {len(table)} that are not empty 0 are used.")
    return table
