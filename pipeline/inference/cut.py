"""`threshold.json`, the cut of a run: what stands there, and whether it still is of the predictions in `oof/`."""
import pathlib
import reprlib
from collections.abc import Iterable
from typing import Any

from pipeline.files import read_json, sha256
from pipeline.inference.kept import Confused, Judged
from pipeline.masks.dice import cut_from_share
from pipeline.paths import Run
from pipeline.problem import Problem


def read_cut(path: pathlib.Path) -> int:
    """The cut of a `threshold.json` or `blend.json` as the smallest 8-bit value that counts as object."""
    return cut_from_share(read_threshold(path)["cut"])


def read_threshold(path: pathlib.Path) -> dict[str, Any]:
    """All that stands there; only `cut`, a probability, must. Problem when it is missing or damaged."""
    try:
        found = read_json(path)
        shares = {"cut": found["cut"], "Dice": found.get("oof_dice") or 0}
        shares["cross-fitted Dice"] = found.get("oof_dice_cross_fitted") or 0
        tta, predictions = found.get("tta", ""), found.get("predictions", {})
    except FileNotFoundError:
        raise Problem(f"There is no {path}; run `make threshold` first.") from None
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        raise Problem(f"{path} is damaged; delete it and run `make threshold`.") from None
    for name, share in shares.items():
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
            raise Problem(f"{path}: the {name} is {reprlib.repr(share)}, but it must lie between 0 and 1.")
    if not isinstance(tta, str) or not isinstance(predictions, dict):
        raise Problem(f"{path} is damaged; delete it and run `make threshold`.")
    return found


def predictions_of(run: Run) -> dict[str, str]:
    """Path -> sha256 of the out-of-fold predictions of the trained folds, as far as they are there."""
    paths = [run.oof(fold) for fold in run.trained_folds()]
    return {str(path): sha256(path) for path in paths if path.is_file()}


def views_of(judged: Iterable[Judged | Confused]) -> str:
    """`predict.tta` of predictions: one where they agree, else several as `hflip, none`; "" where none says it."""
    return ", ".join(sorted({one.tta for one in judged} - {""}))


def outdated(run: Run) -> str:
    """A sentence when `threshold.json` was found on other predictions than those in `oof/`, else "".

    One that names none, written by hand perhaps, is not judged; nor are predictions that are gone.
    """
    named, there = read_threshold(run.threshold).get("predictions"), predictions_of(run)
    if not named or all(named.get(path) == digest for path, digest in there.items()):
        return ""
    return (
        f"{run.threshold} is the cut of other predictions than {run.folder / 'oof'} holds now; run `make threshold "
        f"RUN={run.name}` again."
    )
