"""`threshold.json`, the cut of a run: what stands there, and whether it still is of the predictions in `oof/`."""
import pathlib
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.data.zip_reader import DAMAGE
from pipeline.runtime.files import read_json, sha256
from pipeline.inference.oof import OofConfusion, OofHistograms
from pipeline.masks.dice import threshold_to_u8
from pipeline.paths import Run
from pipeline.runtime.problem import Problem

DICE_NAMES = {"oof_dice": "Dice", "oof_dice_cross_fitted": "cross-fitted Dice"}


def read_threshold_u8(path: pathlib.Path) -> int:
    """The cut of a `threshold.json` as the smallest 8-bit value that counts as object."""
    return threshold_to_u8(read_threshold_json(path)["threshold"])


def read_threshold_json(path: pathlib.Path, maker: str = "threshold") -> dict[str, Any]:
    """All that stands there; only `cut`, a probability, must. Problem when it is missing or damaged.

    maker: the stage that writes it. A `blend.json` has a cut, too.
    """
    damaged = Problem(f"{path} is damaged; delete it and run `make {maker}`.")
    try:
        found = read_json(path)
        probs = {"threshold": found["threshold"]}
        probs |= {name: found[key] for key, name in DICE_NAMES.items() if found.get(key) is not None}
        texts = [found.get("predicted_with", ""), *found.get("predictions", {}).values()]
    except FileNotFoundError:
        raise Problem(f"There is no {path}; run `make {maker}` first.") from None
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        raise damaged from None
    for name, prob in probs.items():
        if not isinstance(prob, (int, float)) or isinstance(prob, bool) or not 0 <= prob <= 1:
            raise Problem(f"{path}: the {name} is {reprlib.repr(prob)}, but it must lie between 0 and 1.")
    if not all(isinstance(text, str) for text in texts):
        raise damaged
    return found


def oof_digests(run: Run) -> dict[str, str]:
    """`fold0` -> sha256 of its out-of-fold predictions, of the trained folds that have some."""
    paths = {f"fold{fold}": run.oof(fold) for fold in run.trained_folds()}
    return {fold: sha256(path) for fold, path in paths.items() if path.is_file()}


def predicted_with(tta: str, scale: int, hq: bool) -> str:
    """The settings that a prediction depends on, beside the network, in words."""
    return f"predict.tta {tta}, data.scale {scale}{', data.hq' if hq else ''}"


def prediction_settings(judged: Iterable[OofHistograms | OofConfusion]) -> str:
    """What `predicted_with` said of these predictions; "" where none says it."""
    return "; ".join(sorted({one.predicted_with for one in judged} - {""}))


def other_network_message(run: Run, fold: int, checkpoint: str) -> str:
    """A sentence when a network of that sha256, which predicted a fold, is not its `best.pt`, else ""."""
    best = run.fold(fold).best
    same = checkpoint == sha256(best)
    return "" if same else f"{run.oof(fold)} was predicted by another {best}; run `make validate` again."


def stale_message(run: Run) -> str:
    """A sentence when `threshold.json` is not the cut of the predictions in `oof/`, or they of the networks, else "".

    One that names no predictions, written by hand perhaps, is not judged; nor are predictions that are gone.
    """
    named, there = read_threshold_json(run.threshold).get("predictions"), oof_digests(run)
    if not named:
        return ""
    if not all(named.get(fold) == digest for fold, digest in there.items()):
        return (
            f"{run.threshold} is the cut of other predictions than {run.folder / 'oof'} holds now; run `make threshold "
            f"RUN={run.name}` again."
        )
    folds = [int(fold.removeprefix("fold")) for fold in there]
    return next(filter(None, (other_network_message(run, fold, checkpoint_digest(run.oof(fold))) for fold in folds)), "")


def checkpoint_digest(path: pathlib.Path) -> str:
    """The sha256 of the network that made the predictions of a fold; "" when the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file["checkpoint"])
    except (*DAMAGE, KeyError, TypeError, AttributeError, MemoryError):
        return ""
