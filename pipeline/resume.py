"""Where an earlier start of the same training left off: `last.pt`, its log, and the lock that keeps others out."""
import json
import pathlib
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline import config
from pipeline.config import Settings
from pipeline.files import locked, write_text
from pipeline.model import checkpoint
from pipeline.model.ema import Ema
from pipeline.paths import Fold
from pipeline.problem import Problem

LAST: dict[str, type] = {  # what last.pt holds
    **{"settings": dict, "fingerprint": str, "step": int, "network": dict, "average": dict, "optimiser": dict},
    **{"scaler": dict, "loss_sum": float, "log": list, "best_dice": float, "seconds": float, "epoch_watch": dict},
}
# Settings that change how fast a run goes and what is done with it later, but not what it learns.
FREE_KEYS = (
    *("data.folder", "data.workers", "data.cache", "train.compile", "predict."),
    *("train.checkpoint_activations", "train.checkpoint_minutes", "train.checkpoint_steps"),
)
# Of an epoch what tells of the circumstances: best.pt has none of it, so that the same training gives the same bytes.
CIRCUMSTANCES = ("images_per_s", "waited_share", "seconds", "device", "commit")


def the_only_trainer(fold: Fold) -> AbstractContextManager[None]:
    return locked(fold.lock, f"{fold.folder} is being trained by another process; wait for it, or stop it.")


def read_last(fold: Fold, settings: Settings) -> dict[str, Any]:
    """The state of `last.pt`, or an empty one; Problem when other settings trained it."""
    if not fold.last.exists():
        return {}
    try:
        state = checkpoint.load(fold.last, keys=tuple(LAST))
    except Problem as problem:
        if not fold.previous.exists():
            raise
        state = checkpoint.load(fold.previous, keys=tuple(LAST))
        print(f"{problem} Going on from {fold.previous}, the one before.")
    if wrong := [key for key, kind in LAST.items() if not isinstance(state[key], kind)]:
        kind = LAST[wrong[0]].__name__
        raise Problem(f"The checkpoint {fold.last} is not one of ours (its {wrong[0]} is no {kind}); delete it.")
    trained = config.parse(state["settings"], where=str(fold.last))
    if changed := [line for line in config.difference(trained, settings) if not line.startswith(FREE_KEYS)]:
        raise Problem(
            f"{fold.folder} was begun with other settings ({', '.join(changed[:3])}); "
            "set them back, choose another RUN=, or delete that folder."
        )
    return state


def restore(
    last: dict[str, Any],
    network: nn.Module,
    ema: Ema,
    optimiser: Optimizer,
    scaler: torch.amp.GradScaler,
    where: pathlib.Path,
) -> None:
    """Put all of them where they were; Problem when the state does not fit them."""
    try:
        network.load_state_dict(last["network"])
        ema.average.load_state_dict(last["average"])
        optimiser.load_state_dict(last["optimiser"])
        if last["scaler"]:  # empty when that processor needed none
            scaler.load_state_dict(last["scaler"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"The checkpoint {where} does not fit its own settings ({reason}); delete it.") from None


def score_of(row: dict[str, Any], key: str) -> float:
    """By which an epoch may be the best; below all scores where it was not judged."""
    return -1.0 if row.get(key) is None else float(row[key])


def timeless(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without their circumstances, and with keys that are one object each, read back or new.

    A pickle tells a word that it has met before from an equal one that is another object.
    """
    return [{sys.intern(key): row[key] for key in row if key not in CIRCUMSTANCES} for row in log]


def write_log(fold: Fold, log: list[dict[str, Any]]) -> None:
    """`log.jsonl`, one object an epoch; a file that says so already is left alone."""
    text = "".join(json.dumps(row) + "\n" for row in log)
    if log and (not fold.log.exists() or fold.log.read_text() != text):
        write_text(fold.log, text)
