"""Stage `validate`: each checkpoint on the makes that it never saw, `runs/RUN/oof/fold{k}.npz` and `.zip` out.

Kept per image are the histogram from which `threshold` and `report` know Dice at every cut, and for `report` the
probabilities on the network's grid. The histograms come last and name the zip by its hash: a kill between the two
leaves a zip that no histograms name.
"""
import pathlib

import numpy as np

from pipeline import carvana, config
from pipeline.data import competition
from pipeline.data.dataset import HeldOutPictures, held_out_loader
from pipeline.data.folds import read_folds, split
from pipeline.files import replacing, sha256
from pipeline.inference.device import describe, pick_device
from pipeline.inference.evaluate import histograms_keeping
from pipeline.inference.kept import keeping
from pipeline.inference.load import batch_that_fits, load_network, member_of
from pipeline.inference.predictor import Ensemble
from pipeline.masks.dice import cut_from_share, dice_at_every_cut
from pipeline.memory import out_of_memory_told, too_large
from pipeline.paths import Run
from pipeline.problem import Problem
from pipeline.progress import progress


def run(run: Run, folds: list[int], overrides: list[str]) -> None:
    """folds: their numbers; overrides: `data.…=` and `predict.…=` words over the trained settings."""
    if not folds:
        raise Problem(f"{run.folder} has no trained fold; run `make train FOLD=0` first.")
    for fold in folds:
        validate_fold(run, fold, overrides)


def validate_fold(run: Run, fold: int, overrides: list[str]) -> None:
    device = pick_device()
    checkpoint_path = run.fold(fold).best
    network, trained = load_network(checkpoint_path, device)
    settings = config.for_later_stage(trained, overrides, where=str(checkpoint_path))
    folder = pathlib.Path(settings.data.folder)
    pictures = competition.Pictures(folder, "train_hq" if settings.data.hq else "train")
    masks = competition.open_masks(folder)
    competition.check_training_set(pictures, masks, competition.read_makes(folder))
    _, names = split(read_folds(run.folds), fold, pictures.names)
    if not names:
        raise Problem(f"{folder} holds no picture of the cars of fold {fold} in {run.folds}; is it another folder?")

    ensemble = Ensemble([member_of(network, settings, weight=1.0)], carvana.HEIGHT_PX, carvana.WIDTH_PX)
    batch_size = batch_that_fits(ensemble, settings.predict.batch_size)
    dataset = HeldOutPictures(pictures, names, settings.data.scale)
    loader = held_out_loader(dataset, batch_size, settings.data.workers, device.type == "cuda")
    batches = progress(loader, f"fold {fold} on {describe(device)}")
    kept_path = run.oof_probabilities(fold)
    with keeping(kept_path) as keep, out_of_memory_told(lambda: too_large(batch_size, settings.data.scale)):
        counts = histograms_keeping(ensemble.with_grid, batches, names, masks.read, keep)
    checkpoint, probabilities = np.array(sha256(checkpoint_path)), np.array(sha256(kept_path))
    with replacing(run.oof(fold)) as draft, open(draft, "wb") as file:
        np.savez_compressed(
            file, names=np.array(names), histograms=counts, checkpoint=checkpoint, probabilities=probabilities
        )
    dice = dice_at_every_cut(counts)[:, cut_from_share(0.5)]
    print(
        f"fold {fold}: Dice {dice.mean():.5f} at the cut 0.5, predict.tta {settings.predict.tta}, "
        f"over {len(dice)} held-out images, in {run.oof(fold)}."
    )
