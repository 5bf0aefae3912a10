"""Stage `folds`: writes `runs/RUN/folds.csv`: key, group and fold of each image, or car_id, make, fold of each car."""
import contextlib
import pathlib
from collections.abc import Iterator

import pandas as pd

from pipeline.config import Settings
from pipeline.data.dataset import open_dataset
from pipeline.data.grouping import count_of, digest, map_keys_to_groups, read_folds
from pipeline.paths import Run
from pipeline.runtime.files import locked, write_text
from pipeline.runtime.problem import Problem


def main(settings: Settings, run: Run, folder: pathlib.Path) -> None:
    """Assign the folds, write the table unless it is there already, and print how large they are."""
    dataset = open_dataset(settings.data, settings.task, folder)
    table = dataset.folds(settings.data.folds)
    text = table.to_csv(index=False, lineterminator="\n")
    if not run.folds.is_file() or run.folds.read_text() != text:
        with locked(run.lock("folds"), f"{run.folds} is being written by another process; wait until it is done."):
            with no_fold_in_training(run):
                check_trained_folds(run, table, settings.data.folds, folder)
                write_text(run.folds, text)
    key_column, group_column, _ = table.columns
    groups = table.iloc[:, 0].map(map_keys_to_groups(table)).groupby(table["fold"])
    sizes = ", ".join(f"{len(group)} of {count_of(group_column, group.nunique())}" for _, group in groups)
    print(f"{run.folds}: {count_of(key_column, len(table))} in {len(groups)} folds ({sizes}).")
    if dataset.warning:
        print(dataset.warning)


@contextlib.contextmanager
def no_fold_in_training(run: Run) -> Iterator[None]:
    """Hold the locks of all folds, even without a checkpoint. Raise Problem if one is being trained."""
    with contextlib.ExitStack() as locks:
        for lock in sorted(run.folder.glob("fold*/.lock")):
            busy = f"{run.folds} would change, but {lock.parent} is being trained by another process; stop that first."
            locks.enter_context(locked(lock, busy))
        yield


def check_trained_folds(run: Run, table: pd.DataFrame, count: int, folder: pathlib.Path) -> None:
    """Raise Problem if a network was trained on other folds than `table`, or may have been.

    A table that is gone may be written again if it is the one that every `best.pt` was trained on; a `last.pt` only
    goes on with the same images. count: `data.folds`.
    """
    if run.folds.is_file():
        names = ("config.yaml", "best.pt", "last.pt", "last.previous.pt")
        conflicts = [path for name in names for path in sorted(run.folder.glob(f"fold*/{name}"))]
    else:
        conflicts = [path for path in sorted(run.folder.glob("fold*/best.pt")) if not was_trained_on(path, table)]
    if conflicts:
        if run.folds.is_file():
            read_folds(run.folds)  # a damaged table is a problem of its own
        what = f"for {folder} and data.folds {count}, but {conflicts[0].parent} is trained on other folds"
        advice = "set both as they were, choose another RUN=, or delete that folder"
        raise Problem(f"{run.folds} would change {what}; {advice}.")


def was_trained_on(best: pathlib.Path, table: pd.DataFrame) -> bool:
    """Return whether a `best.pt` was trained on these folds."""
    from pipeline.model import checkpoint  # imports torch

    return checkpoint.load(best, keys=("folds",))["folds"] == digest(table)
