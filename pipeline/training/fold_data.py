"""The images of one fold: what it trains on and what it is evaluated on, checked against the settings."""
import dataclasses
import hashlib
import pathlib
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pipeline.config import Data, Refine, Settings, Train
from pipeline.data import augment, grouping, relabel
from pipeline.data.dataset import SegmentationDataset, TrainableImages, competition_of, open_dataset
from pipeline.data.image_folder import ImageFolder
from pipeline.data.inspection import inspect_images
from pipeline.data.loader import Sampling, TrainingDataset, ValidationDataset
from pipeline.data.pseudo import PseudoLabels, WithPseudoLabels, read_pseudo_folder, read_pseudo_labels
from pipeline.data.tiles import TileDataset
from pipeline.model import checkpoint
from pipeline.paths import Run, TrainingFiles
from pipeline.runtime.files import digest
from pipeline.runtime.problem import Problem, counted


@dataclass(frozen=True)
class FoldData:
    """What one fold trains on and is evaluated on, and where its files are."""

    run: Run
    number: int
    folder: pathlib.Path  # of the dataset
    dataset: SegmentationDataset
    training: TrainingDataset | TileDataset
    validation: ValidationDataset
    folds: pd.DataFrame  # folds.csv
    fingerprint: str  # tells these names, this copy of the images and the replaced masks from others
    notes: str  # on images that are left out and masks that are replaced, for messages
    files: TrainingFiles  # what the training writes
    digest_of: dict[str, str] = field(default_factory=dict)  # name -> hash of the pixels of its image and mask
    facts: dict[str, Any] = field(default_factory=dict)  # saved beside the best weights
    pseudo: PseudoLabels | None = None  # predicted masks that are trained on, too
    trained_before: tuple[str, ...] = ()  # keys of the images that the weights it starts from were trained on

    def labelled_names(self) -> list[str]:
        """Return the names of the training images whose masks are no pseudo-labels."""
        return self.training.names[: self.training.sampling.always]

    def trained_on(self) -> list[str]:
        """Return the keys that its network is trained on, in this run or in those that it started from."""
        here = self.folds.iloc[:, 0][self.folds["fold"] != self.number]
        return sorted({*here, *self.trained_before})

    def missing_groups(self) -> list[str]:
        """Return the rows of `folds.csv` of which the dataset has no image: cars, or images."""
        present = set(map(self.dataset.group_key, self.dataset.names))
        return [key for key in self.folds.sort_values("fold", kind="stable").iloc[:, 0] if key not in present]


def open_fold(
    settings: Settings, run: Run, fold_number: int, folder: pathlib.Path, world_size: int,
    sections: tuple[str, ...] = ("train", "refine"),
) -> FoldData:
    """Open the images of a fold; Problem unless the settings, the folds and the folder go together.

    sections: of the settings, those by which networks are trained now, whose batches must fit.
    """
    scale = settings.data.scale
    table = grouping.read_folds(run.folds)
    dataset = open_dataset(settings.data, settings.task, folder)
    training, validation = grouping.split(table, fold_number, dataset.names, dataset.group_key)
    if len(training) + len(validation) != len(dataset.names):
        raise Problem(f"{folder} has images that {run.folds} does not list; run `make folds` under another RUN=.")
    training = relabel.without(training, settings.data.exclude, settings.data.kind)
    images = f"Fold {fold_number} of {run.folds} has {counted(len(training), 'image')} to train on"
    images += f" and {len(validation)} held out"
    for section in sections:
        if (hyper := getattr(settings, section)) is not None:
            check_batch_size(section, hyper, len(training) if validation else 0, images, world_size)
    if settings.refine and settings.refine.scale % dataset.stored_scale:
        copy = f"{folder} is a copy at 1/{dataset.stored_scale}, but refine.scale is {settings.refine.scale}"
        raise Problem(f"{copy}; use the images at full size, or leave the section refine out.")
    relabelled = relabel.read_relabelled(training, settings.data.relabel, settings.data.kind)
    notes = relabel.relabel_summary(training, validation, dataset.names, relabelled)
    fingerprint = fingerprint_of(training, validation, dataset, relabel.fingerprint(relabelled))
    source: TrainableImages = dataset
    sampling = Sampling(len(training))
    if (pseudo := open_pseudo_labels(settings.data, folder, dataset, run)) is not None:
        source, sampling = WithPseudoLabels(dataset, pseudo), Sampling(len(training), len(pseudo.names), pseudo.weight)
        training = [*training, *pseudo.names]
        notes, fingerprint = notes + pseudo.summary, digest(fingerprint, pseudo.sha256, pseudo.names)
    transform = augment.build(**settings.augment.model_dump(), of_classes=settings.task.kind == "multiclass")
    return FoldData(
        run=run, number=fold_number, folder=folder, dataset=dataset,
        training=TrainingDataset(
            source, training, scale, transform, settings.train.seed, settings.data.cache, relabelled, sampling
        ),
        validation=ValidationDataset(dataset, validation, (scale,)), folds=table, files=run.fold(fold_number),
        fingerprint=fingerprint, notes=notes, pseudo=pseudo,
    )


def open_pseudo_labels(
    data: Data, folder: pathlib.Path, dataset: SegmentationDataset, run: Run
) -> PseudoLabels | None:
    """Read the pseudo-labels that the settings ask for, if any."""
    if data.pseudo is None:
        return None
    path = pathlib.Path(data.pseudo)
    if isinstance(dataset, ImageFolder):
        return read_pseudo_folder(path, data.pseudo_fraction, data.pseudo_weight, dataset)
    check_not_replaced(data, run)
    competition = competition_of(data.kind)
    return read_pseudo_labels(path, data.pseudo_fraction, data.pseudo_weight, competition, folder, data.hq)


def check_not_replaced(data: Data, run: Run) -> None:
    """Raise Problem if the pseudo-labels are the submission that a prediction of the run would replace."""
    if data.pseudo is not None and pathlib.Path(data.pseudo).resolve() == run.submission.resolve():
        what = f"data.pseudo is {data.pseudo}, which the prediction of the run {run.name} would replace"
        raise Problem(f"{what}; choose another RUN=.")


def check_batch_size(section: str, hyper: Train, images: int, what: str, world_size: int) -> None:
    """Raise Problem unless a batch fits into these images, and its parts into it. section: of `hyper`, in messages."""
    if images < hyper.batch_size:
        too_large = f"but {section}.batch_size is {hyper.batch_size}; lower it, or change data.folds under another RUN="
        raise Problem(f"{what}, {too_large}.")
    if hyper.batch_size % (world_size * hyper.accumulate):
        product = f"{section}.accumulate ({hyper.accumulate}) times the number of processes ({world_size})"
        raise Problem(f"{section}.batch_size ({hyper.batch_size}) must be a multiple of {product}.")


def fingerprint_of(training: list[str], validation: list[str], dataset: SegmentationDataset, masks: str) -> str:
    """Return a hash of the names, the dataset's own fingerprint and scale, and the masks that were replaced."""
    lines = [*training, "held out", *validation, f"stored at 1/{dataset.stored_scale}", *masks.splitlines()]
    text = "\n".join([*lines, *dataset.fingerprint.splitlines()])
    return hashlib.sha256(text.encode()).hexdigest()


def inspect_fold(data: FoldData) -> FoldData:
    """Return the fold with `digest_of` its images, all of which were looked at. Raises Problem if some are bad.

    `facts` then have the hash of the pseudo-labels, if there are some.
    """
    names = [*data.training.names, *data.validation.names]
    if data.pseudo is None:
        return dataclasses.replace(data, digest_of=inspect_images(data.dataset, names, data.run.inspected))
    digest_of = inspect_images(WithPseudoLabels(data.dataset, data.pseudo), names, data.run.inspected)
    sha256 = data.pseudo.sha256 or digest([(name, digest_of[name]) for name in data.pseudo.names])
    return dataclasses.replace(data, digest_of=digest_of, facts=data.facts | {"pseudo_sha256": sha256})


def open_tiles(
    settings: Settings, hyper: Refine, run: Run, fold_number: int, folder: pathlib.Path, world_size: int,
    coarse_sha256s: list[str],
) -> FoldData:
    """Open the images of a fold as the tiles that its refiner trains on; their coarse predictions are set later.

    coarse_sha256s: of the best.pt that is refined, and of the short.pt that it learns from, if any. Raises Problem as
    `open_fold`.
    """
    images = open_fold(settings, run, fold_number, folder, world_size, sections=("refine",))
    assert isinstance(images.training, TrainingDataset)
    tiles = TileDataset(
        images.training.dataset, images.training.names, settings.data.scale, hyper.scale, hyper.tile_px,
        hyper.margin_px, hyper.tiles_per_image, images.training.augment, hyper.seed, images.training.relabelled,
        images.training.sampling, settings.data.cache,
    )
    fingerprint = hashlib.sha256("\n".join([images.fingerprint, *coarse_sha256s]).encode()).hexdigest()
    return dataclasses.replace(
        images, training=tiles, fingerprint=fingerprint, files=run.fold(fold_number).refiner,
        facts=images.facts | {"coarse_sha256": coarse_sha256s[0]},
    )


def check_same_in_other_folds(data: FoldData, path: str | None) -> None:
    """Raise Problem if another fold of the run was trained when the pseudo-labels at `path` were others.

    data: inspected; path: `data.pseudo`. A prediction under the same name may have replaced them in between.
    """
    for best in (data.run.fold(number).best for number in data.run.trained_folds() if path and number != data.number):
        saved = checkpoint.load(best, keys=("settings",))
        same_path = saved["settings"]["data"].get("pseudo") == path
        if same_path and saved.get("pseudo_sha256") != data.facts["pseudo_sha256"]:
            what = f"{best} was trained on other pseudo-labels than {path} has now"
            raise Problem(f"{what}; put those back, or train all folds under another RUN=.")


def check_same_pseudo_labels(data: FoldData, best: pathlib.Path) -> None:
    """Raise Problem if the network in `best` was trained on other pseudo-labels than its refiner would be.

    data: inspected, since the hash of a folder is that of its pixels.
    """
    trained_with = checkpoint.load(best, keys=("settings",)).get("pseudo_sha256")
    if trained_with != data.facts.get("pseudo_sha256"):
        what = f"{best} was trained on other pseudo-labels than data.pseudo has now"
        raise Problem(f"{what}; put those back, or train this fold again under another RUN=.")
