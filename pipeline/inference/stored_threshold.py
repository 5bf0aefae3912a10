"""`threshold.json`: read the threshold of a run, and check that it still belongs to the predictions in `oof/`."""
import pathlib
import reprlib
from collections.abc import Iterable
from typing import Any

from pipeline.config import Settings
from pipeline.inference.oof import OofConfusion, OofHistograms, read_oof_histograms
from pipeline.masks.dice import threshold_to_u8
from pipeline.paths import Run
from pipeline.runtime.files import read_json, sha256
from pipeline.runtime.problem import Problem

DICE_NAMES = {"oof_dice": "Dice", "oof_dice_cross_fitted": "cross-fitted Dice"}


def read_threshold_u8(path: pathlib.Path) -> int:
    """Return the threshold of a `threshold.json` as the smallest 8-bit value that counts as object."""
    return threshold_to_u8(read_threshold_json(path)["threshold"])


def read_threshold_json(path: pathlib.Path, stage: str = "threshold") -> dict[str, Any]:
    """Return the content; only the key `threshold`, a probability, is required. Raise Problem if missing or damaged.

    stage: the one that writes the file; a `blend.json` has a threshold, too.
    """
    damaged = Problem(f"{path} is damaged; delete it and run `make {stage}`.")
    try:
        content = read_json(path)
        fractions = {"threshold": content["threshold"]}
        fractions |= {name: content[key] for key, name in DICE_NAMES.items() if content.get(key) is not None}
        errors = content.get("standard_errors", {})
        fractions |= {f"standard error over {noun}s": error for noun, error in errors.items()}
        texts = [content.get("predicted_with", ""), *content.get("predictions", {}).values()]
    except FileNotFoundError:
        raise Problem(f"There is no {path}; run `make {stage}` first.") from None
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        raise damaged from None
    for name, value in fractions.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
            raise Problem(f"{path}: the {name} is {reprlib.repr(value)}, but it must lie between 0 and 1.")
    if not all(isinstance(text, str) for text in texts):
        raise damaged
    return content


def error_summary(content: dict[str, Any]) -> str:
    """Return the standard errors as in `0.00008 over cars, 0.00011 over makes`; "" if an earlier version wrote none."""
    return ", ".join(f"{error:.5f} over {noun}s" for noun, error in content.get("standard_errors", {}).items())


def oof_digests(run: Run) -> dict[str, str]:
    """Return `fold0` -> sha256 of its `.npz`, for the trained folds that have out-of-fold predictions."""
    paths = {f"fold{fold}": run.oof(fold) for fold in run.trained_folds()}
    return {fold: sha256(path) for fold, path in paths.items() if path.is_file()}


def predicted_with(settings: Settings, refined: bool) -> str:
    """Describe the settings that a prediction depends on, beside the networks."""
    data = settings.data
    extra = f"{', data.hq' if data.hq else ''}{refined_with(settings) if refined else ''}"
    return f"predict.tta {settings.predict.tta}, data.scale {data.scale}{extra}"


def refined_with(settings: Settings) -> str:
    """Describe how tiles are refined, to follow what is said of the network."""
    tta = settings.predict.tile_tta
    return ", refined" + (f" with predict.refiner_tta {tta}" if tta != settings.predict.tta else "")


def prediction_settings(oofs: Iterable[OofHistograms | OofConfusion]) -> str:
    """Return the different `predicted_with` of several folds, joined; "" if there is no fold."""
    return join_settings(oof.predicted_with for oof in oofs)


def join_settings(settings: Iterable[str]) -> str:
    return "; ".join(sorted(set(settings)))


def other_network_message(run: Run, fold: int, oof: OofHistograms | OofConfusion) -> str:
    """Return a message if a fold was predicted by another network than its `best.pt` or `refiner.pt`, else ""."""
    files = run.fold(fold)
    digest_of = {files.best: oof.checkpoint_sha256}
    if oof.refiner_sha256:
        digest_of[files.refiner.best] = oof.refiner_sha256
    for path, digest in digest_of.items():
        if not path.is_file() or digest != sha256(path):
            return f"{run.oof(fold)} was predicted by another {path}; run `make validate` again."
    return ""


def unrefined_note(run: Run, fold: int, oof: OofHistograms | OofConfusion) -> str:
    """Return a note if a fold has a refiner that its predictions were made without, else ""."""
    refiner = run.fold(fold).refiner.best
    if oof.refiner_sha256 or not refiner.exists():
        return ""
    return f"{run.oof(fold)} was predicted without {refiner}; `make validate` uses it."


def stale_message(run: Run) -> str:
    """Return a message if `threshold.json` does not belong to `oof/`, or `oof/` not to the networks, else "".

    A threshold that names no predictions, perhaps written by hand, is not checked; nor are predictions that are gone.
    """
    named, current = read_threshold_json(run.threshold).get("predictions"), oof_digests(run)
    if not named:
        return ""
    if any(named.get(fold) != digest for fold, digest in current.items()):
        others = f"other predictions than those in {run.folder / 'oof'}"
        return f"{run.threshold} belongs to {others}; run `make threshold RUN={run.name}` again."
    for fold in (int(name.removeprefix("fold")) for name in current):
        if message := other_network_message(run, fold, read_oof_histograms(run.oof(fold))):
            return message
    return ""
