"""Stage `folds`: the competition folder in, `runs/RUN/folds.csv` out, one row a car: car_id, make, fold."""
import pathlib

from pipeline.config import Settings
from pipeline.data import competition, folds
from pipeline.files import locked, write_text
from pipeline.paths import Run
from pipeline.problem import Problem


def run(settings: Settings, run: Run, folder: pathlib.Path) -> None:
    pictures = competition.Pictures(folder, "train_hq" if settings.data.hq else "train")
    masks = competition.open_masks(folder)
    make_of_car = competition.read_makes(folder)
    cars = competition.check_training_set(pictures, masks, make_of_car)

    table = folds.assign({car: make_of_car[car] for car in cars}, settings.data.folds)
    text = table.to_csv(index=False, lineterminator="\n")
    if not run.folds.is_file() or run.folds.read_text() != text:
        if begun := sorted(run.folder.glob("fold*/last.pt")):
            raise Problem(
                f"{run.folds} would change for {folder} and data.folds {settings.data.folds}, but {begun[0].parent} "
                "is trained on it; choose another RUN=, or delete that folder."
            )
        with locked(run.lock("folds"), f"{run.folds} is being written by another process; wait until it is done."):
            write_text(run.folds, text)
    makes = table.groupby("fold")["make"].nunique()
    cars_per_fold = table.groupby("fold").size()
    parts = [f"{cars_per_fold[fold]} cars of {makes[fold]} makes" for fold in cars_per_fold.index]
    print(f"{run.folds}: {len(table)} cars in {len(parts)} folds ({', '.join(parts)}).")
