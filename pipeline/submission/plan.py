"""What a submission is made of: networks and their weights, the threshold, the test images and the settings."""
import hashlib
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import config
from pipeline.config import Settings
from pipeline.data.competition import Competition, ImageSet
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.loading import (
    checkpoints_of, common_competition, load_members, read_pseudo_labels, refiner_path, with_refiners
)  # fmt: skip
from pipeline.inference.stored_threshold import (
    join_settings, predicted_with, read_threshold_json, stale_message
)  # fmt: skip
from pipeline.masks.dice import threshold_to_u8
from pipeline.model import checkpoint
from pipeline.paths import Run
from pipeline.runtime import git
from pipeline.runtime.device import describe_machine
from pipeline.runtime.files import read_json, sha256
from pipeline.runtime.problem import Problem

Weights = dict[pathlib.Path, float]  # checkpoint -> its weight in the mean; they sum to 1


@dataclass(frozen=True)
class Plan:
    """All that is known of a submission before the first image is predicted."""

    run: Run  # names the submission
    runs: Sequence[Run]  # whose networks are averaged
    weight_of_path: Weights
    sha256_of_path: dict[str, str]  # checkpoint, refiners included -> hex digest of its bytes
    trained: list[Settings]  # by which each network was trained
    pseudo_labels: dict[str, str]  # on which networks were trained: sha256 -> data.pseudo
    settings_of_network: list[Settings]  # by which each network predicts
    ensemble: Ensemble
    threshold_u8: int
    threshold_facts: dict[str, Any]  # `threshold`, and `oof_dice...` where that belongs to these predictions
    names: list[str]  # of the sample submission, in its order
    images: ImageSet  # the test images, which include all `names`
    notes: list[str]  # sentences about the threshold and the weights

    @property
    def settings(self) -> Settings:
        """What is common to all networks, such as the batch size, is taken from the first."""
        return self.settings_of_network[0]

    def state(self, on_bad_image: str) -> dict[str, Any]:
        """Return everything that a row may depend on, as JSON can hold it, for `shards.Shards`."""
        row_settings = [  # on which a row may depend
            each.data.model_dump(include={"scale", "hq"}) | each.predict.model_dump(exclude={"batch_size"})
            for each in self.settings_of_network
        ]
        return {
            "checkpoints": self.sha256_of_path,
            "weights": {str(path): weight for path, weight in self.weight_of_path.items()},
            "threshold_u8": self.threshold_u8,
            "settings": row_settings,
            "batch_size": self.settings.predict.batch_size,
            "on_bad_image": on_bad_image,
            "test_images": fingerprint(self.images, self.names),
            "machine": describe_machine(self.ensemble.device),
            "code": git.code_digest(), "packages": git.packages(),
        }

    def provenance(self) -> dict[str, Any]:
        """Return the fields of `provenance.Provenance` that are known before the submission is written."""
        same_training = all(config.learn_alike(self.trained[0], other) for other in self.trained)
        nearest, train_overrides = config.nearest(self.trained[0]) if same_training else ("", [])
        config_texts = dict.fromkeys(map(config.dump, self.trained))  # each once
        return {
            "runs": [run.name for run in self.runs],
            "folds": sorted({int(path.parent.name.removeprefix("fold")) for path in self.weight_of_path}),
            "threshold": self.threshold_facts["threshold"],
            "oof_dice": self.threshold_facts.get("oof_dice"),
            "oof_dice_cross_fitted": self.threshold_facts.get("oof_dice_cross_fitted"),
            "config": nearest, "train_overrides": train_overrides,
            "predict_overrides": config.overrides_between(self.trained[0], self.settings),
            "config_sha256": hashlib.sha256("".join(config_texts).encode()).hexdigest(),
            "checkpoints": self.sha256_of_path, "pseudo_labels": self.pseudo_labels,
            "test_images": fingerprint(self.images, self.names),
            "commit": git.commit(), "clean": git.is_clean(),
        }


def make_plan(run: Run, runs: Sequence[Run], folds: list[int], overrides: list[str], device: torch.device) -> Plan:
    """Load the networks and find the threshold and the test images.

    run: names the submission; runs: to average, often `run` alone; folds: their numbers, empty for all trained ones.
    Raises Problem for whatever is missing, damaged or does not belong together.
    """
    for path in (member.fold(fold).config for member in runs for fold in folds or member.trained_folds()):
        config.check_binary(path, "A submission")
    weight_of_path, threshold_u8, threshold_facts = weights_and_threshold(run, runs, folds)
    with checkpoint.unchanged(with_refiners(weight_of_path)) as digest_of:
        members, trained = load_members(weight_of_path, overrides, device)
        pseudo_labels = read_pseudo_labels(dict(zip(weight_of_path, trained)))
    used = [path for best, member in zip(weight_of_path, members) for path in checkpoints_of(best, member)]
    sha256_of_path = {str(path): digest_of[str(path)] for path in used}
    if len(runs) > 1 and run.blend.is_file():
        check_blend_refined(run.blend, sha256_of_path)
    competition = common_competition(weight_of_path, trained, "A submission")
    settings_of_network = [config.for_later_stage(settings, overrides) for settings in trained]
    notes = []
    if not run.blend.is_file():
        refined = [member.refiner is not None for member in members]
        predicted = dict(zip(weight_of_path, map(predicted_with, settings_of_network, refined)))
        threshold_notes = [threshold_note(each, predicted) for each in runs]
        if any(is_mismatch for _, is_mismatch in threshold_notes):  # then the Dice beside it does not apply either
            threshold_facts = {"threshold": threshold_facts["threshold"]}
        notes = [note for note, _ in threshold_notes if note]
        if len(runs) > 1:
            notes.append(missing_blend_note(run, runs))
    names, images = open_test_images(competition, settings_of_network[0])
    ensemble = Ensemble(members, competition.height_px, competition.width_px)
    return Plan(
        run=run, runs=runs, weight_of_path=weight_of_path, sha256_of_path=sha256_of_path, trained=trained,
        pseudo_labels=pseudo_labels, settings_of_network=settings_of_network, ensemble=ensemble,
        threshold_u8=threshold_u8, threshold_facts=threshold_facts, names=names, images=images, notes=notes,
    )  # fmt: skip


# --- weights and threshold -------------------------------------------------------------------------------------------


def weights_and_threshold(joint: Run, runs: Sequence[Run], folds: list[int]) -> tuple[Weights, int, dict[str, Any]]:
    """Return checkpoint -> its weight in the mean, the threshold as an 8-bit value, and the content of its file.

    Several runs are weighted as the stage `blend` found in `joint`. Without its file they get equal weights, and the
    threshold is the mean of the runs' own. Raises Problem for a file that is missing, damaged or out of date.
    """
    paths_of_run = {run.name: [run.fold(fold).best for fold in folds or run.trained_folds()] for run in runs}
    for run in runs:
        if not paths_of_run[run.name]:
            raise Problem(run.untrained_message())
    if len(runs) > 1 and joint.blend.is_file():
        weights, facts = read_blend(joint.blend, runs), read_threshold_json(joint.blend, "blend")
    else:
        if message := next(filter(None, map(stale_message, runs)), ""):
            raise Problem(message)
        weights = {run.name: 1 / len(runs) for run in runs}
        facts, *others = [read_threshold_json(run.threshold) for run in runs]
        if others:
            facts = {"threshold": sum(each["threshold"] for each in (facts, *others)) / len(runs)}
    weight_of_path = {
        path: weights[name] / len(paths) for name, paths in paths_of_run.items() for path in paths if weights[name]
    }
    return weight_of_path, threshold_to_u8(facts["threshold"]), facts


def threshold_note(run: Run, predicted_with_of: dict[pathlib.Path, str]) -> tuple[str, bool]:
    """Compare the predictions that a run's threshold was chosen on with those that are planned.

    predicted_with_of: best.pt -> the settings by which it predicts. Returns a sentence when the two differ or the file
    does not say what it was chosen on, else ""; and whether they certainly differ.
    """
    of_run = {path: settings for path, settings in predicted_with_of.items() if path.parent.parent == run.folder}
    planned, content = join_settings(of_run.values()), read_threshold_json(run.threshold)
    chosen_on = content.get("predicted_with", "")
    if not chosen_on:
        return f"{run.threshold} does not name the settings of the predictions that it was chosen on.", False
    if planned not in ("", chosen_on):
        what = f"{run.threshold} was chosen with {chosen_on}, but this prediction uses {planned}"
        return f"{what}: run `make validate threshold` with the same SET to choose a threshold for it.", True
    folds, folds_of_threshold = {path.parent.name for path in of_run}, set(content.get("predictions", ()))
    if not folds or not folds_of_threshold or folds == folds_of_threshold:
        return "", False
    what = f"{run.threshold} was chosen on {fold_list(folds_of_threshold)}, but this prediction uses {fold_list(folds)}"
    return f"{what}: the threshold is used, its out-of-fold Dice is not recorded.", True


def fold_list(names: set[str]) -> str:
    """Return the names in the order of their numbers, fold2 before fold10."""
    return ", ".join(sorted(names, key=lambda name: (len(name), name)))


def missing_blend_note(joint: Run, runs: Sequence[Run]) -> str:
    """Say what replaces the blend, and name the blend of the same runs in another order if there is one."""
    names = sorted(run.name for run in runs)
    others = (path for path in joint.folder.parent.glob("*/blend.json") if sorted(path.parent.name.split("+")) == names)
    hint = next((f" To use the weights of {path}, name the runs in its order." for path in others), "")
    return f"There is no {joint.blend}: the runs have equal weights, and the threshold is the mean of theirs.{hint}"


def read_blend(path: pathlib.Path, runs: Sequence[Run]) -> dict[str, float]:
    """Return run name -> weight from a `blend.json`, divided by their sum, which rounding may have moved off 1.

    Raises Problem if the file is damaged, or is for other runs or other checkpoints.
    """
    try:
        blend = read_json(path)
        weights = {str(name): float(weight) for name, weight in blend["weights"].items()}
        sha256_of_path = dict(blend["checkpoints"])
        if not all(map(math.isfinite, weights.values())):
            raise ValueError("a weight is not a number")
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise Problem(f"{path} is damaged; delete it and run `make blend`.") from None
    if set(weights) != {run.name for run in runs} or min(weights.values()) < 0 or not sum(weights.values()):
        raise Problem(f"{path} has weights for the runs {', '.join(weights)}; change RUN=, or run `make blend` again.")
    for name, digest in sha256_of_path.items():
        if not pathlib.Path(name).is_file() or sha256(pathlib.Path(name)) != digest:
            raise Problem(f"{path} was made with another {name}; run `make blend` again.")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def check_blend_refined(path: pathlib.Path, sha256_of_path: dict[str, str]) -> None:
    """Raise Problem unless the folds of a `blend.json` were refined by the networks that refine this prediction.

    sha256_of_path: of the checkpoints of this prediction, which may have more folds.
    """
    blended = read_json(path)["checkpoints"]
    for name in blended:
        refiner = str(refiner_path(pathlib.Path(name)))
        if name in sha256_of_path and (refiner in sha256_of_path) != (refiner in blended):
            how = "with" if refiner in blended else "without"
            advice = "run `make blend` again with the same SET"
            raise Problem(f"{path} was made {how} {refiner}, other than this prediction; {advice}.")


# --- test images and state -------------------------------------------------------------------------------------------


def open_test_images(competition: Competition, settings: Settings) -> tuple[list[str], ImageSet]:
    """Return the names of the sample submission, in its order, and the test images. Problem if an image is missing."""
    folder = pathlib.Path(settings.data.folder)
    names = competition.read_sample(folder)
    images = competition.open_images(folder, competition.test_set, settings.data.hq)
    if missing := sorted(set(names) - set(images.names)):
        raise Problem(f"{folder} lacks {len(missing)} images of the sample submission; the first is {missing[0]}.")
    return names, images


def fingerprint(images: ImageSet, names: list[str]) -> str:
    """Return a hex digest of the test images by their names and the sizes of the archive and of the loose files."""
    files = images.files
    archive_bytes = files.archive_path.stat().st_size if files.archive_path.is_file() else 0
    loose = [f"{name} {path.stat().st_size}" for name, path in sorted(files.loose.items())]
    text = "\n".join([*names, "loose", *loose, f"{archive_bytes} bytes at 1/{images.stored_scale}"])
    return hashlib.sha256(text.encode()).hexdigest()
