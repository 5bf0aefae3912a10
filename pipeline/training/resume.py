"""Where an earlier start of the same training left off: `last.pt`, its log, and the lock that keeps others out."""
import hashlib
import json
import os
import pathlib
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline import config
from pipeline.config import Settings
from pipeline.data.dataset import SegmentationDataset
from pipeline.runtime.files import locked, write_text
from pipeline.model import checkpoint
from pipeline.model.ema import Ema
from pipeline.paths import Fold
from pipeline.runtime.problem import Problem

LAST: dict[str, type] = {  # what last.pt holds
    **{"settings": dict, "fingerprint": str, "step": int, "network": dict, "average": dict, "optimizer": dict},
    **{"scaler": dict, "loss_sum": float, "log": list, "best_score": float, "seconds": float, "epoch_watch": dict},
}
# Settings that change how fast a run goes and what is done with it later, but not what it learns.
FREE_KEYS = (
    *("data.folder", "data.workers", "data.cache", "train.compile", "predict."),
    *("train.checkpoint_activations", "train.checkpoint_minutes", "train.checkpoint_steps"),
)
# Of an epoch what tells of the circumstances: best.pt has none of it, so that the same training gives the same bytes.
CIRCUMSTANCES = ("images_per_s", "waited_fraction", "seconds", "device", "commit")


def trainer_lock(fold: Fold) -> AbstractContextManager[None]:
    return locked(fold.lock, f"{fold.folder} is being trained by another process; wait for it, or stop it.")


def read_last(fold: Fold, settings: Settings, repair: bool) -> dict[str, Any]:
    """The state of `last.pt`, of the one before where that is missing or damaged, or an empty one.

    Problem when other settings trained it. mend: whoever asks is the one that will train and save. A damaged `last.pt`
    is then put out of the way, or the next save would lay it over the good one before; and it is a Problem, too, when
    the new start would replace what nothing can go on from.
    """
    if not fold.last.exists() and not fold.previous.exists():
        if repair:
            check_that_no_epochs_are_lost(fold)
        return {}
    path = fold.last if fold.last.exists() else fold.previous
    try:
        state = load_last(path)
    except Problem:
        if path == fold.previous or not fold.previous.exists():
            raise
        state, path = load_last(fold.previous), fold.previous
    trained = config.parse(state["settings"], where=str(path))
    if changed := [line for line in config.difference(trained, settings) if not line.startswith(FREE_KEYS)]:
        raise Problem(
            f"{fold.folder} was begun with other settings ({', '.join(changed[:3])}); "
            "set them back, choose another RUN=, or delete that folder."
        )
    if repair and path == fold.previous:
        said = f"There is no {fold.last}"
        if fold.last.exists():
            os.replace(fold.last, fold.damaged)
            said = f"{fold.last} is damaged or cannot be read, and is {fold.damaged} now"
        print(f"{said}; going on from {fold.previous}, the one before.")
    return state


def load_last(path: pathlib.Path) -> dict[str, Any]:
    """What `last.pt` or the one before holds; Problem unless it is whole."""
    state = checkpoint.load(path, keys=tuple(LAST))
    if wrong := [key for key, kind in LAST.items() if not isinstance(state[key], kind)]:
        reason = f"its {wrong[0]} is no {LAST[wrong[0]].__name__}"
        raise Problem(f"The checkpoint {path} is not one of ours ({reason}); {checkpoint.ADVICE}.")
    return state


def check_that_no_epochs_are_lost(fold: Fold) -> None:
    """Problem when a new start would replace a `best.pt` that was brought here alone.

    One of a single epoch is what a kill leaves that came just before the first `last.pt`.
    """
    if not fold.best.exists():
        return
    log = checkpoint.load(fold.best, keys=()).get("log")
    if isinstance(log, list) and len(log) > 1:
        raise Problem(
            f"{fold.best} is of {len(log)} epochs, but there is no {fold.last.name} beside it to go on from, and a new "
            f"start would replace it; choose another RUN=, or move {fold.folder} away."
        )


def fingerprint_of(training: list[str], held_out: list[str], dataset: SegmentationDataset, other_masks: str) -> str:
    """Tells one set of pictures, one copy of it, and masks that were put right, from others."""
    lines = [*training, "held out", *held_out, f"stored at 1/{dataset.stored_scale}", *other_masks.splitlines()]
    text = "\n".join([*lines, *dataset.fingerprint.splitlines()])
    return hashlib.sha256(text.encode()).hexdigest()


def restore(
    last: dict[str, Any],
    network: nn.Module,
    ema: Ema,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    where: pathlib.Path,
) -> None:
    """Put all of them where they were; Problem when the state does not fit them."""
    try:
        network.load_state_dict(last["network"])
        ema.average.load_state_dict(last["average"])
        optimizer.load_state_dict(last["optimizer"])
        if last["scaler"]:  # empty when that processor needed none
            scaler.load_state_dict(last["scaler"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        advice = f"({reason}); {checkpoint.ADVICE}"
        raise Problem(f"The checkpoint {where} does not fit its own settings {advice}.") from None


def score_of(row: dict[str, Any], key: str) -> float:
    """By which an epoch may be the best; below all scores where it was not judged."""
    return -1.0 if row.get(key) is None else float(row[key])


def best_row(log: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Of the epoch whose weights are `best.pt`: the first of the best; {} where none was judged."""
    row = max(log, key=lambda row: score_of(row, key), default={})
    return row if score_of(row, key) >= 0 else {}


def report_lost_best(fold: Fold, epoch: int, is_last: bool) -> None:
    """What it means that there is no `best.pt` and `last.pt` has other weights; Problem when no epoch is to come."""
    if is_last:
        raise Problem(
            f"{fold.best}, the weights of epoch {epoch}, is gone, and {fold.last} has those of the last epoch alone; "
            f"put it back from a copy, or delete {fold.folder} and train it anew."
        )
    print(f"{fold.best}, the weights of epoch {epoch}, is gone; an epoch that is better makes a new one.")


def without_circumstances(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without their circumstances, and with keys that are one object each, read back or new.

    A pickle tells a word that it has met before from an equal one that is another object.
    """
    return [{sys.intern(key): row[key] for key in row if key not in CIRCUMSTANCES} for row in log]


def write_log(fold: Fold, log: list[dict[str, Any]]) -> None:
    """`log.jsonl`, one object an epoch; a file that says so already is left alone."""
    text = "".join(json.dumps(row) + "\n" for row in log)
    if log and (not fold.log.exists() or fold.log.read_text() != text):
        write_text(fold.log, text)
