"""Pseudo-labels: test images join the training with the masks that a submission predicted for them.

Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks". In this
competition the 4th place trained on its predicted test set; a sixth of the test cars are of makes that no training
image shows.

Pseudo-labelled images are in no fold: all folds train on them, and none is validated on them. The networks that
predicted them may have been trained on images that a fold holds out now, which is fine: a predicted mask of a test
image is no truth about a training image.
"""
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.data.competition import Competition, ImageSet
from pipeline.data.csv_table import LARGEST_STREAM_BYTES, find_table, read_table, stream_rows
from pipeline.data.dataset import SegmentationDataset
from pipeline.data.images import coverage, coverage_of_runs
from pipeline.masks import rle
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem

UNSURE_COLUMN = "unsure_fraction"  # of a table that `predict` writes beside a submission: how unsure each mask is
SOLUTION = "solution.csv"
MOST_EQUAL = 0.02  # of a submission's masks that may equal the truth to the pixel, as an empty or tiny one may


class PseudoLabels(NamedTuple):
    """Test images, their predicted masks, and how often they are trained on."""

    images: ImageSet
    masks: "RunLengths"
    weight: float  # the fraction of them that each epoch visits
    sha256: str  # of the submission
    table: pd.DataFrame  # columns image, unsure_fraction, used: of all masks, the surest first

    @property
    def names(self) -> list[str]:
        return self.masks.names

    @property
    def summary(self) -> str:
        """Return what is used, after a comma, for messages."""
        return f", {len(self.masks.names)} of {len(self.table)} pseudo-labelled with weight {self.weight:g}"


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


class WithPseudoLabels:
    """The images of a dataset, and pseudo-labelled ones, as `dataset.TrainableImages`."""

    def __init__(self, dataset: SegmentationDataset, pseudo: PseudoLabels):
        self.labelled, self.pseudo = dataset, pseudo
        self.height, self.width = dataset.height, dataset.width
        self.channels, self.classes = dataset.channels, dataset.classes

    def read(self, name: str, scale: int) -> NDArray:
        source = self.pseudo.images if name in self.pseudo.masks.number_of else self.labelled
        return source.read(name, scale)

    def target(self, name: str, scale: int) -> NDArray:
        if name not in self.pseudo.masks.number_of:
            return self.labelled.target(name, scale)
        runs = self.pseudo.masks.runs(name)
        if scale == 1:  # nothing to average
            return coverage(rle.fill(runs, self.height, self.width), scale)
        return coverage_of_runs(runs, self.height, self.width, scale)


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
    table = rank(path, [name for name, text in texts.items() if text.strip()], fraction, competition)
    names = sorted(table["image"][table["used"]])

    def runs_of_image() -> Iterator[tuple[str, NDArray[np.int64]]]:
        for name in names:
            try:
                yield name, competition.parse(texts[name])
            except ValueError as error:
                raise Problem(f"{path}, image {name}: {error}.") from None

    return PseudoLabels(images, RunLengths(runs_of_image()), weight, sha256(path), table)


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


def rank(path: pathlib.Path, names: list[str], fraction: float, competition: Competition) -> pd.DataFrame:
    """Return a table of these images, the surest first: columns image, unsure_fraction, used."""
    unsure = pd.Series(np.nan, index=names)
    beside = unsure_table(path)
    if beside.is_file():
        known = read_table(beside.parent, beside.name, (competition.submission_header[0], UNSURE_COLUMN))
        try:
            values = known[UNSURE_COLUMN].astype(float).to_numpy()
        except ValueError as error:
            raise Problem(f"{beside}: {UNSURE_COLUMN} must be numbers ({error}); `make predict` writes it.") from None
        unsure = pd.Series(values, index=known[competition.submission_header[0]]).reindex(names)
    if fraction < 1 and unsure.isna().any():
        what = f"data.pseudo_fraction is {fraction:g}, but {beside} does not tell how unsure each mask is"
        raise Problem(f"{what}; `make predict` writes it, or set data.pseudo_fraction to 1.")
    table = unsure.sort_values(kind="stable").rename_axis("image").reset_index(name=UNSURE_COLUMN)
    table["used"] = np.arange(len(table)) < round(fraction * len(table))
    if not table["used"].any():
        raise Problem(f"{path} has no mask to train on: of {len(table)} that are not empty 0 are used.")
    return table


def unsure_table(submission: pathlib.Path) -> pathlib.Path:
    """Return the table beside `submissions/RUN.csv.gz` that tells how unsure each mask is."""
    return submission.with_name(f"{submission.name.removesuffix('.gz').removesuffix('.csv')}.unsure.csv")
