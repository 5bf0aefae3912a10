"""Where an earlier start of the same training left off: `last.pt`, what must agree with it, and the trainer's lock."""
import os
import pathlib
from contextlib import AbstractContextManager
from typing import Any

from pipeline import config
from pipeline.config import Settings
from pipeline.data.loader import BatchSchedule
from pipeline.model import checkpoint
from pipeline.paths import TrainingFiles
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.files import locked
from pipeline.runtime.problem import Problem, counted
from pipeline.training.fold_data import FoldData
from pipeline.training.state import TrainingState

KEYS: dict[str, type] = {  # of last.pt, and the types of their values
    **{"settings": dict, "fingerprint": str, "step": int, "network": dict, "average": dict, "optimizer": dict},
    **{"scaler": dict, "loss_sum": float, "log": list, "best_score": float, "score_name": str, "seconds": float},
    **{"epoch_watch": dict, "digests": dict},
}
# The last two are noted when the training starts.
ALWAYS_FREE = (*config.NOT_LEARNED, "train.init_sha256", "model.encoder_sha256")
# A refiner has its own settings in the section `refine`, which the network before it does not depend on.
FREE_KEYS = (*ALWAYS_FREE, "refine.")
FREE_OF_REFINER = tuple(key.replace("train.", "refine.") for key in ALWAYS_FREE)


def trainer_lock(files: TrainingFiles) -> AbstractContextManager[None]:
    return locked(files.lock, f"{files.folder} is being trained by another process; wait for it, or stop it.")


def read_last(
    files: TrainingFiles, settings: Settings, repair: bool, free_keys: tuple[str, ...] = FREE_KEYS
) -> dict[str, Any]:
    """Return the contents of `last.pt`, else of `last.previous.pt` if that is missing or damaged, else {}.

    Problem if other settings trained it, but for those whose keys begin with one of `free_keys`. repair: this process
    will train and save. It then renames a damaged `last.pt`, which the next save would otherwise keep in place of the
    good `last.previous.pt`; and it raises Problem, too, if the new start would replace a training that cannot be
    resumed.
    """
    if not files.last.exists() and not files.previous.exists():
        if repair:
            check_no_epochs_are_lost(files)
        return {}
    path = files.last if files.last.exists() else files.previous
    try:
        last = load_last(path)
    except Problem:
        if path == files.previous or not files.previous.exists():
            raise
        last, path = load_last(files.previous), files.previous
    trained = config.parse(last["settings"], where=str(path))
    if changed := [line for line in config.difference(trained, settings) if not line.startswith(free_keys)]:
        if more := more_epochs(files, trained, settings, last, changed):
            raise Problem(more)
        advice = f"set them back, choose another RUN=, or delete {files.all}"
        raise Problem(f"{files.all} was begun with other settings ({', '.join(changed[:3])}); {advice}.")
    if repair and path == files.previous:
        reason = f"There is no {files.last}"
        if files.last.exists():
            os.replace(files.last, files.damaged)
            reason = f"{files.last} was damaged or unreadable and is renamed to {files.damaged}"
        print(f"{reason}; resuming from {files.previous}, the checkpoint before.")
    return last


def more_epochs(
    files: TrainingFiles, trained: Settings, settings: Settings, last: dict[str, Any], changed: list[str]
) -> str:
    """Return how to train a finished network for more epochs, if that is all that was changed; else "".

    Its learning rate has gone down to its end, so more epochs need a schedule of their own, and a run of their own.
    """
    section = "refine" if files.best.name == "refiner.pt" else "train"
    before, after = getattr(trained, section).epochs, getattr(settings, section).epochs
    if files.is_short and before != after:
        what = f"{files.all} is of a training of {counted(before, 'epoch')}, but refine.short_epochs is {after} now"
        return f"{what}; set it back, or delete {files.all}."
    if after <= before or len(last["log"]) < before or not all(line.startswith(f"{section}.") for line in changed):
        return ""
    what = f"{files.all} is trained for all of its {before} epochs, but {section}.epochs is {after} now"
    override = f'SET="{section}.init_from={files.best} {section}.epochs={after - before}"'
    if section == "train":
        return f"{what}; to go on with a new schedule, add RUN=NAME and {override} to the command."
    copy = f"copy {files.folder.parent} to runs/NAME without its {files.best.name.split('.')[0]}.* files"
    return f"{what}; to go on with a new schedule, {copy}, then run `make refine` with RUN=NAME and {override}."


def load_last(path: pathlib.Path) -> dict[str, Any]:
    """Load `last.pt` or `last.previous.pt`; Problem unless it has all KEYS with values of their types."""
    last = checkpoint.load(path, keys=tuple(key for key in KEYS if key != "digests"))
    last.setdefault("digests", {})  # an earlier version saved none
    if wrong := [key for key, kind in KEYS.items() if not isinstance(last[key], kind)]:
        reason = f"its {wrong[0]} is not a {KEYS[wrong[0]].__name__}"
        raise Problem(f"The checkpoint {path} is not one of ours ({reason}); {checkpoint.ADVICE}.")
    return last


def check_no_epochs_are_lost(files: TrainingFiles) -> None:
    """Raise Problem if a new start would replace a `best.pt` that was copied here without its `last.pt`.

    A `best.pt` of a single epoch is what a kill leaves just before the first `last.pt`; it may be replaced.
    """
    if not files.best.exists():
        return
    log = checkpoint.load(files.best, keys=()).get("log")
    if isinstance(log, list) and len(log) > 1:
        why = f"there is no {files.last.name} beside it to resume from, and a new start would replace it"
        advice = f"choose another RUN=, or move {files.best} away"
        raise Problem(f"{files.best} is of {len(log)} epochs, but {why}; {advice}.")


def check_same_data(last: dict[str, Any], data: FoldData) -> None:
    """Raise Problem if the training was begun with other images or masks."""
    if last and last["fingerprint"] != data.fingerprint:
        fold = data.run.fold(data.number)
        learnt_from = " or ".join(str(path) for path in (fold.best, fold.short.best) if path.exists())
        refined = f", or for another {learnt_from}" if "coarse_sha256" in data.facts else ""
        what = f"{data.files.all} was begun with other images or masks than {data.folder} has{refined}"
        raise Problem(f"{what}; choose a new RUN=, or delete {data.files.all}.")


def check_same_pixels(last: dict[str, Any], data: FoldData) -> None:
    """Raise Problem if an image or a mask has other pixels than when the training was begun."""
    began = last.get("digests", {})
    if changed := [name for name, digest in data.digest_of.items() if began.get(name, digest) != digest]:
        names = f"{', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}"
        where = f"{data.folder}{' or data.pseudo' if data.pseudo else ''}"
        what = f"{data.files.all} was begun with other pixels in {len(changed)} images or masks of {where}"
        raise Problem(f"{what} ({names}); put them back, choose a new RUN=, or delete {data.files.all}.")


def check_ranks_agree(dist: ProcessGroup, last: dict[str, Any], data: FoldData, settings: Settings) -> None:
    """Raise Problem unless all processes have the same settings and images and the same checkpoint to resume from."""
    if len(set(dist.gather((last.get("step", 0), data.fingerprint, config.dump(settings))))) > 1:
        raise dist.problem(f"The processes do not see the same {data.files.folder}; they must share that folder.")


def restore_files(settings: Settings, data: FoldData, schedule: BatchSchedule, state: TrainingState) -> None:
    """Write what is missing beside `last.pt`: a last row of the log, which a kill prevented, or a deleted `best.pt`."""
    state.write_log(data.files.log)
    best, path = state.best_row(), data.files.best
    if best is None or path.exists():
        return
    if best["epoch"] * schedule.steps_per_epoch == state.step:
        state.save_best(settings, data)
        print(f"{path} was missing; it is written again from {data.files.last}.")
    elif state.step < schedule.total_steps:
        print(f"{path}, the weights of epoch {best['epoch']}, is missing; the next better epoch writes a new one.")


def check_best_exists(data: FoldData, state: TrainingState) -> None:
    """Raise Problem if a finished training has no `best.pt`: `last.pt` has the weights of the last epoch only."""
    paths, best = data.files, state.best_row()
    if best and not paths.best.exists():
        missing = f"{paths.best}, the weights of epoch {best['epoch']}, is missing"
        advice = f"put it back from a copy, or delete {paths.all} and train it again"
        raise Problem(f"{missing}, and {paths.last} has only those of the last epoch; {advice}.")
