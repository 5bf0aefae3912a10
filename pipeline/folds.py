"""Stage `folds`: the pictures in, `runs/RUN/folds.csv` out: car_id, make, fold of each car, or image, group, fold."""
import contextlib
import pathlib
from collections.abc import Iterator

import pandas as pd

from pipeline import config
from pipeline.config import Settings
from pipeline.data.dataset import open_dataset
from pipeline.data.grouping import digest, read_folds
from pipeline.runtime.files import locked, write_text
from pipeline.paths import Run
from pipeline.runtime.problem import Problem


def main(settings: Settings, run: Run, folder: pathlib.Path) -> None:
    table = open_dataset(settings.data, settings.task, folder).folds(settings.data.folds)
    text = table.to_csv(index=False, lineterminator="\n")
    if not run.folds.is_file() or run.folds.read_text() != text:
        with locked(run.lock("folds"), f"{run.folds} is being written by another process; wait until it is done."):
            with no_fold_in_training(run):
                check_trained_folds(run, table, settings.data.folds, folder)
                write_text(run.folds, text)
    cars, makes = ("cars", "makes") if table.columns[0] == "car_id" else ("pictures", "groups")
    makes_per_fold = table.groupby("fold")[table.columns[1]].nunique()
    cars_per_fold = table.groupby("fold").size()
    parts = [f"{cars_per_fold[fold]} {cars} of {makes_per_fold[fold]} {makes}" for fold in cars_per_fold.index]
    print(f"{run.folds}: {len(table)} {cars} in {len(parts)} folds ({', '.join(parts)}).")


@contextlib.contextmanager
def no_fold_in_training(run: Run) -> Iterator[None]:
    """Hold the locks of the folds, also of one that has no checkpoint yet; Problem when it is being trained."""
    with contextlib.ExitStack() as locks:
        for lock in sorted(run.folder.glob("fold*/.lock")):
            busy = f"{run.folds} would change, but {lock.parent} is being trained by another process; stop that first."
            locks.enter_context(locked(lock, busy))
        yield


def check_trained_folds(run: Run, table: pd.DataFrame, count: int, folder: pathlib.Path) -> None:
    """Problem where a network was trained on other folds than these, or may have been. count: data.folds.

    A table that is gone may be made again where it fits what every `best.pt` says of its own; `last.pt` goes on with
    the same pictures alone.
    """
    if run.folds.is_file():
        names = ("config.yaml", "best.pt", "last.pt", "last.previous.pt")
        begun = [path for name in names for path in sorted(run.folder.glob(f"fold*/{name}"))]
    else:
        begun = [path for path in sorted(run.folder.glob("fold*/best.pt")) if not may_be_of(path, table, count)]
    if begun:
        if run.folds.is_file():
            read_folds(run.folds)  # a damaged one is another problem
        raise Problem(
            f"{run.folds} would change for {folder} and data.folds {count}, but {begun[0].parent} is trained on other "
            "folds; set both as they were, choose another RUN=, or delete that folder."
        )


def may_be_of(best: pathlib.Path, table: pd.DataFrame, count: int) -> bool:
    """Whether a network was trained on this table; of one that does not say, whether on as many folds."""
    from pipeline.model import checkpoint

    state = checkpoint.load(best, keys=("settings",))
    if "folds" in state:
        return state["folds"] == digest(table)
    return config.parse(state["settings"], where=str(best)).data.folds == count
