"""What a training prints: a line at its start, a line an epoch, a line at its end, and why it stopped."""
import pathlib
from typing import Any

import torch

from pipeline.config import Settings, Train
from pipeline.data.loader import BatchSchedule
from pipeline.data.tiles import TileDataset
from pipeline.model.factory import count_parameters
from pipeline.runtime.device import describe
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.problem import counted
from pipeline.training.fold_data import FoldData
from pipeline.training.state import TrainingState

SCORE_LABELS = {"val_dice": "Dice", "val_mean_iou": "mean IoU"}
CONTEXT_GIB = 1.5  # of CUDA and its libraries, beside what torch allocates
MAX_NAMES = 8  # of the images of a batch that a message lists


def start(settings: Settings, data: FoldData, schedule: BatchSchedule, state: TrainingState, dist: ProcessGroup) -> str:
    """Return what is trained, on what; and what is missing, or done already."""
    processes = f", {dist.world_size} processes" if dist.world_size > 1 else ""
    parameters = f"{count_parameters(state.network) / 1e6:.2f} M parameters"
    count = counted(len(data.training), "image")
    if isinstance(data.training, TileDataset):
        network, seen = f"refiner of {parameters}", f"{data.training.tile_px}-pixel tiles of {count}"
    else:
        network = f"{'short training of ' if data.files.is_short else ''}{settings.model.arch} of {parameters}"
        seen = f"{count} at 1/{settings.data.scale}"
    images = f"{seen}, {len(data.validation)} held out{data.notes}"
    lines = [f"Fold {data.number}: {network}, {images}, {describe(dist.device)}{processes}."]
    if missing := data.missing_groups():
        rows = f"{len(missing)} of the {len(data.folds)} rows of {data.run.folds}"
        lines.append(f"{data.folder} lacks {rows}, the first is {missing[0]}.")
    lines += data.dataset.notes(data.labelled_names())
    if dist.device.type == "cuda":
        gpu_gib = torch.cuda.get_device_properties(dist.device).total_memory / 2**30
        section = data.training.kind.section
        lines += memory_note(section, getattr(settings, section), dist.world_size, gpu_gib)
    if state.step:
        lines.append(f"{data.files.last}: resuming after step {state.step} of {schedule.total_steps}.")
    return "\n".join(lines)


def memory_note(section: str, hyper: Train, world_size: int, gpu_gib: float) -> list[str]:
    """Return a line if a step was counted to need more memory than a GPU has, else none.

    section: of `hyper` in the settings. gpu_gib: memory of the GPU.
    """
    counted_gib = {2**number: gib for number, gib in enumerate(hyper.gpu_gib)}
    needed_gib = counted_gib.get(hyper.accumulate * world_size, 0) + CONTEXT_GIB
    if needed_gib <= gpu_gib:
        return []
    fitting = [count for count, gib in counted_gib.items() if gib + CONTEXT_GIB <= gpu_gib and count % world_size == 0]
    advice = f"set {section}.accumulate={min(fitting) // world_size}" if fitting else "take a larger one"
    return [f"A step needs about {needed_gib:.0f} GiB, but the GPU has {gpu_gib:.0f}; {advice}."]


def epoch(row: dict[str, Any], epochs: int, noun: str) -> str:
    """Return a row of `log.jsonl` for people."""
    scores = ""
    if row["val_dice"] is not None:
        scores = f"Dice {row['val_dice']:.5f} at 0.5 (best threshold {row['val_dice_threshold']:.3f}), "
    if "val_mean_iou" in row:
        scores = f"mean IoU {row['val_mean_iou']:.4f}, pixel accuracy {row['val_pixel_accuracy']:.4f}, "
    speed = f"{row[f'{noun}_per_s']:.1f} {noun}/s, waited {row['waited_fraction']:.1%} for {noun}"
    return f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, {scores}{speed}, {row['seconds']:.0f} s"


def end(data: FoldData, state: TrainingState) -> str:
    """Return the best score, and what to run next."""
    best = state.best_row() or {}
    threshold, next_stages = "", "validate report"
    if state.score_name == "val_dice":
        threshold = f" at the threshold 0.5 (best threshold {best['val_dice_threshold']:.3f})"
        next_stages = "validate threshold report"
    measured = f"on held-out images at full size, without TTA, after {state.seconds() / 60:.1f} minutes"
    advice = f"`make {next_stages} RUN={data.run.name}` shows where it is wrong"
    if data.files.is_short:
        advice = "the refiner learns from what it predicts for the training images"
    return f"{data.files.best}: {score(state)}{threshold} {measured}; {advice}."


def trained_already(data: FoldData, state: TrainingState) -> str:
    return f"{data.files.best} is trained already: {score(state)}. Choose another RUN= to train once more."


def score(state: TrainingState) -> str:
    """Return the best score under the name of its metric."""
    return f"{SCORE_LABELS[state.score_name]} {state.best_score:.5f}"


def stopped(step: int, total_steps: int) -> str:
    return f"Stopped after step {step} of {total_steps}; it is saved, and the same command resumes there."


def not_finite(step: int, total_steps: int, names: list[str], last: pathlib.Path, section: str) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    good = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
    where = f"at step {step + 1} of {total_steps}, on the images {', '.join(names[:MAX_NAMES])}{more}"
    advice = f"Look at these images, or lower {section}.learning_rate"
    return f"The loss or its gradient is not finite {where}; {good}. {advice}."
