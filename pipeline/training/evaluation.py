"""Evaluate a network that is being trained on the held-out images, at full size."""
import dataclasses

import numpy as np

from pipeline.config import Settings
from pipeline.data.loader import ValidationDataset, validation_loader
from pipeline.inference.ensemble import Member
from pipeline.inference.evaluate import (
    compute_class_scores, compute_dice_scores, evaluate_confusions, evaluate_histograms, merge_confusions,
)  # fmt: skip
from pipeline.inference.loading import build_ensemble
from pipeline.model.fold_norms import folded_copy
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.memory import explain_out_of_memory, too_large_message
from pipeline.runtime.progress import progress
from pipeline.training.fold_data import FoldData


def evaluate_epoch(settings: Settings, data: FoldData, member: Member, dist: ProcessGroup) -> dict[str, float]:
    """Return the scores of the held-out images at full size, under the keys of `log.jsonl`.

    Binary: mean Dice at the threshold 0.5, and the best threshold; multiclass: the scores of all pixels together.
    Each process evaluates every `world_size`-th image; all of them return the scores of all images. Batch norms are
    folded as `inference.loading` does it, so that `validate` finds the same scores.
    """
    refiner = member.refiner and dataclasses.replace(member.refiner, network=folded_copy(member.refiner.network))
    member = dataclasses.replace(member, network=folded_copy(member.network), refiner=refiner)
    binary, dataset = settings.task.kind == "binary", data.dataset
    ensemble = build_ensemble([member], binary, dataset.height, dataset.width)
    mine = ValidationDataset(dataset, data.validation.names[dist.rank :: dist.world_size], ensemble.scales)

    batch_size, workers = settings.predict.batch_size, settings.data.workers
    loader = validation_loader(mine, batch_size, workers, pin_memory=dist.device.type == "cuda")
    batches = progress(loader, "held-out images", wanted=dist.is_main)
    with explain_out_of_memory(lambda: too_large_message(batch_size, settings.data.scale)):
        if binary:
            histograms = evaluate_histograms(ensemble, batches, mine.names, dataset.truth)
            scores = compute_dice_scores(np.concatenate(dist.gather(histograms)))
        else:
            confusions = evaluate_confusions(ensemble, batches, mine.names, dataset.truth, settings.task.count)
            scores = compute_class_scores(merge_confusions(dist.gather(confusions)))
    return {f"val_{key}": score for key, score in scores.items()}
