"""Stage `train`: config, folds and training images in; `runs/RUN/fold{k}/` with best.pt and log.jsonl out.

With `refine.short_epochs` also short.pt, a network of a shorter training, from whose predictions the refiner learns.

Start at `train_fold`: it opens the images, builds the network and its loss, and hands them to the loop in
`training/loop.py`, which takes the steps, evaluates each epoch and resumes what an earlier start has left.
"""
import functools
import pathlib
from contextlib import nullcontext
from dataclasses import replace

from pipeline import config
from pipeline.config import Settings
from pipeline.data import grouping
from pipeline.data.loader import training_loader
from pipeline.inference.ensemble import Member
from pipeline.inference.tta import TTA_SETS
from pipeline.paths import Run, TrainingFiles
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.files import write_text
from pipeline.runtime.problem import Problem
from pipeline.training import init_from, loop, resume
from pipeline.training.evaluation import evaluate_epoch
from pipeline.training.fold_data import check_same_in_other_folds, inspect_fold, open_fold
from pipeline.training.networks import build_loss, build_network, check_step
from pipeline.training.previews import preview_images
from pipeline.training.state import create_state


def main(settings: Settings, run: Run, fold_numbers: list[int], folder: pathlib.Path, dist: ProcessGroup) -> None:
    """Train these folds on the images in `folder`."""
    epochs, short_epochs = settings.train.epochs, settings.refine.short_epochs if settings.refine else None
    with dist.main_first():
        if short_epochs and short_epochs >= epochs:
            what = f"refine.short_epochs is {short_epochs}, but train.epochs is {epochs}"
            raise Problem(f"{what}; set it lower, or to null.")
        table = grouping.read_folds(run.folds)
        for number in fold_numbers:
            grouping.check_fold(table, number)  # before any of them gets a folder
    for number in fold_numbers:
        with resume.trainer_lock(run.fold(number)) if dist.is_main else nullcontext():
            train_fold(settings, run, number, run.fold(number), folder, dist)
            if short_epochs:
                train_short(settings, short_epochs, run, number, folder, dist)


def train_short(
    settings: Settings, epochs: int, run: Run, fold_number: int, folder: pathlib.Path, dist: ProcessGroup
) -> None:
    """Train the network from whose predictions the refiner of a fold learns."""
    fold, free_keys = run.fold(fold_number), (*resume.ALWAYS_FREE, *resume.FREE_OF_REFINER)
    with dist.main_first():  # a refiner that was begun otherwise is refused before this takes its time
        resume.read_last(fold.refiner, settings, repair=False, free_keys=free_keys)
    train_fold(config.with_epochs(settings, epochs), run, fold_number, fold.short, folder, dist)


def train_fold(
    settings: Settings, run: Run, fold_number: int, paths: TrainingFiles, folder: pathlib.Path, dist: ProcessGroup
) -> None:
    """Train one network of a fold, or what an earlier start has left of it to train. paths: where it is written."""
    # The images, and the checkpoint of an earlier start
    with dist.main_first():
        last = resume.read_last(paths, settings, repair=dist.is_main)
        settings = init_from.note_sha256(settings, "train", last)
        data = replace(open_fold(settings, run, fold_number, folder, dist.world_size), files=paths)
        resume.check_same_data(last, data)
        data = init_from.inherit(data, settings, "train", last, wanted=dist.is_main)
        random_network = functools.partial(build_network, settings, pretrained=False)
        least_batch = check_step(random_network, data.training, settings.train)
        data = inspect_fold(data)
        check_same_in_other_folds(data, settings.data.pseudo)
        resume.check_same_pixels(last, data)
    resume.check_ranks_agree(dist, last, data, settings)
    if data.pseudo and dist.is_main:
        write_text(run.fold(fold_number).pseudo, data.pseudo.table.to_csv(index=False))

    # The network, and how it learns and is evaluated
    hyper, device = settings.train, dist.device
    build = functools.partial(build_network, settings, pretrained=not last)
    score_name = "val_dice" if settings.task.kind == "binary" else "val_mean_iou"
    member_of = functools.partial(Member, scale=settings.data.scale, transforms=TTA_SETS["none"], weight=1.0)
    training = loop.Training(
        settings=settings, hyper=hyper, data=data, state=create_state(build, hyper, dist, score_name),
        loss_of=build_loss(settings, device),
        load=lambda schedule: training_loader(data.training, schedule, settings.data.workers, device.type == "cuda"),
        evaluate=lambda network: evaluate_epoch(settings, data, member_of(network), dist),
        previews=lambda network: preview_images(network, data.validation, data.dataset, device),
        dist=dist, least_batch=least_batch,
    )
    loop.train(training, last)
