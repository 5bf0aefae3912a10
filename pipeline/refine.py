"""Stage `refine`: best.pt and the images it was trained on in; `refiner.pt`, `refiner.log.jsonl` and coarse.zip out.

With `refine.short_epochs` short.pt predicts these images in place of best.pt.

A second network learns to correct the first one along the edge, on tiles at 1/2 or full size. Start at `refine_fold`:
it lets the trained network predict its training images, which coarse.zip stores, builds the refiner, and hands both to
the loop in `training/loop.py`. No held-out image is learnt from; they evaluate the refined masks, as they did the
coarse ones.
"""
import functools
import pathlib
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from pipeline import config
from pipeline.config import Settings
from pipeline.data import grouping, tiles
from pipeline.data.loader import BatchSchedule, training_loader
from pipeline.inference.edge import EdgeRefiner
from pipeline.inference.ensemble import Member
from pipeline.inference.loading import load_network, read_folds_digest
from pipeline.inference.tta import TTA_SETS
from pipeline.model import checkpoint
from pipeline.paths import Fold, Run
from pipeline.runtime import files
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.problem import Problem, counted
from pipeline.training import init_from, loop, resume
from pipeline.training.coarse import coarse_predictions
from pipeline.training.evaluation import evaluate_epoch
from pipeline.training.fold_data import check_same_pseudo_labels, inspect_fold, open_tiles
from pipeline.training.networks import build_refiner, build_refiner_loss, check_step
from pipeline.training.previews import preview_refined
from pipeline.training.state import create_state


def main(settings: Settings, run: Run, fold_numbers: list[int], folder: pathlib.Path, dist: ProcessGroup) -> None:
    """Train the refiners of these folds on the images in `folder`."""
    if settings.refine is None:
        raise Problem("The config has no section refine; configs/cpu_refined.yaml has one.")
    with dist.main_first():
        short_epochs = settings.refine.short_epochs
        for fold in map(run.fold, fold_numbers):
            if not fold.best.is_file():
                raise Problem(f"There is no checkpoint {fold.best}; train this fold first.")
            if short_epochs and not fold.short.best.is_file():
                what = f"There is no {fold.short.best}, but refine.short_epochs is {short_epochs}"
                raise Problem(f"{what}; run `make train` with it, or set it to null.")
    for number in fold_numbers:
        with resume.trainer_lock(run.fold(number)) if dist.is_main else nullcontext():
            refine_fold(settings, run, number, folder, dist)


def refine_fold(given: Settings, run: Run, fold_number: int, folder: pathlib.Path, dist: ProcessGroup) -> None:
    """Train the refiner of one fold, or what an earlier start has left of it to train."""
    # The network whose predictions are refined, the images, and the checkpoint of an earlier start
    fold, device = run.fold(fold_number), dist.device
    with dist.main_first():
        assert given.refine is not None  # the caller has looked
        short_epochs = given.refine.short_epochs
        with checkpoint.unchanged([fold.best, *([fold.short.best] if short_epochs else [])]) as digest_of:
            network, trained = load_network(fold.best, device)
            learnt_from = load_short(fold, trained, short_epochs, device) if short_epochs else network
            table = grouping.read_folds(run.folds)
            grouping.check_trained_on(table, read_folds_digest(fold.best), run.folds, fold.best)
        settings = config.with_refine(trained, given)
        ignored = [line for line in config.difference(settings, given) if not line.startswith(resume.FREE_KEYS)]
        if dist.is_main and ignored:
            print(f"{fold.best} was trained with other settings ({', '.join(ignored[:3])}); the refiner follows those.")
        last = resume.read_last(fold.refiner, settings, dist.is_main, resume.FREE_OF_REFINER)
        settings = init_from.note_sha256(settings, "refine", last)
        hyper = settings.refine
        assert hyper is not None
        data = open_tiles(settings, hyper, run, fold_number, folder, dist.world_size, list(digest_of.values()))
        resume.check_same_data(last, data)
        data = init_from.inherit(data, settings, "refine", last, wanted=dist.is_main)
        least_batch = check_step(lambda: build_refiner(hyper), data.training, hyper)
        data = inspect_fold(data)
        check_same_pseudo_labels(data, fold.best)
        resume.check_same_pixels(last, data)
    resume.check_ranks_agree(dist, last, data, settings)

    # What that network, or one of a shorter training, predicts for its training images: without TTA, which makes it
    # more like unseen images
    images, member = data.training, Member(network, settings.data.scale, TTA_SETS["none"], weight=1.0)
    assert isinstance(images, tiles.TileDataset)
    if not loop.is_trained(hyper, data, last):
        with dist.main_first():
            made_by = files.digest(data.fingerprint, data.digest_of)
            images.coarse_png_of = coarse_predictions(
                fold.coarse, replace(member, network=learnt_from), settings, images.dataset, images.names, made_by
            )

    # The refiner, and how it learns and is evaluated
    def refined(network: nn.Module) -> Member:
        refiner = EdgeRefiner(network, hyper.scale, hyper.tile_px, hyper.margin_px, member.transforms)
        return replace(member, refiner=refiner)

    def load(schedule: BatchSchedule) -> loop.Batches:
        workers, on_gpu = settings.data.workers, device.type == "cuda"
        batches = training_loader(images, schedule, workers, on_gpu, tiles.stack_tiles)
        return tiles.batches_of_tiles(batches, skip=schedule.first_step % schedule.steps_per_batch)

    training = loop.Training(
        settings=settings, hyper=hyper, data=data,
        state=create_state(functools.partial(build_refiner, hyper, pretrained=not last), hyper, dist),
        loss_of=build_refiner_loss(hyper, device), load=load,
        evaluate=lambda network: evaluate_epoch(settings, data, refined(network), dist),
        previews=lambda network: preview_refined(refined(network), data.validation.names, data.dataset),
        dist=dist, least_batch=least_batch,
    )
    loop.train(training, last)


def load_short(fold: Fold, trained: Settings, epochs: int, device: torch.device) -> nn.Module:
    """Load the network of `short.pt`; Problem unless it was trained as `best.pt` was, but for so many epochs.

    trained: the settings that trained `best.pt`.
    """
    path = fold.short.best
    again = f"delete {fold.short.all}, and run `make train` with the config of {fold.best} and this value"
    network, of_short = load_network(path, device)
    if of_short.train.epochs != epochs:
        trained_for = counted(of_short.train.epochs, "epoch")
        what = f"{path} is of a training of {trained_for}, but refine.short_epochs is {epochs}"
        raise Problem(f"{what}; set it back, or {again}.")
    expected, free_keys = config.with_epochs(trained, epochs), (*config.NOT_LEARNED, "refine.")
    changed = [line for line in config.difference(of_short, expected) if not line.startswith(free_keys)]
    if changed or read_folds_digest(path) != read_folds_digest(fold.best):
        what = f"{path} was trained with other settings than {fold.best} ({', '.join(changed[:3]) or 'folds.csv'})"
        raise Problem(f"{what}; {again}.")
    return network
