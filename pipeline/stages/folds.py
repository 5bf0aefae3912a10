"""Stage `folds`: the pictures in, `runs/RUN/folds.csv` out: car_id, make, fold of each car, or image, group, fold."""
import pathlib

from pipeline.config import Settings
from pipeline.data.collection import open_collection
from pipeline.files import locked, write_text
from pipeline.paths import Run
from pipeline.problem import Problem


def run(settings: Settings, run: Run, folder: pathlib.Path) -> None:
    table = open_collection(settings.data, settings.task, folder).folds(settings.data.folds)
    text = table.to_csv(index=False, lineterminator="\n")
    if not run.folds.is_file() or run.folds.read_text() != text:
        if begun := sorted(run.folder.glob("fold*/last.pt")):
            raise Problem(
                f"{run.folds} would change for {folder} and data.folds {settings.data.folds}, but {begun[0].parent} "
                "is trained on it; choose another RUN=, or delete that folder."
            )
        with locked(run.lock("folds"), f"{run.folds} is being written by another process; wait until it is done."):
            write_text(run.folds, text)
    cars, makes = ("cars", "makes") if table.columns[0] == "car_id" else ("pictures", "groups")
    makes_per_fold = table.groupby("fold")[table.columns[1]].nunique()
    cars_per_fold = table.groupby("fold").size()
    parts = [f"{cars_per_fold[fold]} {cars} of {makes_per_fold[fold]} {makes}" for fold in cars_per_fold.index]
    print(f"{run.folds}: {len(table)} {cars} in {len(parts)} folds ({', '.join(parts)}).")
