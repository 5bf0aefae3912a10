"""Cross-validation folds that no make crosses.

Makes that never occur in training cover 17 % of the test cars. A network that is judged on cars of makes
that it has seen, or even on another view of the same car, is judged too well.
"""
import pathlib

import pandas as pd
from sklearn.model_selection import GroupKFold

from pipeline.carvana import car_of
from pipeline.problem import Problem


def normal_make(make: str) -> str:
    """`" Infiniti"` and `"INFINITI"` are one make."""
    return " ".join(make.split()).casefold()


def assign(make_of_car: dict[str, str], folds: int) -> pd.DataFrame:
    """One row a car, `car_id, make, fold`, sorted by car; text, text, int.

    A car without a make is a group of its own. Deterministic, and balanced as well as whole makes allow.
    """
    cars = sorted(make_of_car)
    makes = [normal_make(make_of_car[car]) for car in cars]
    group = [make or f"unknown make of {car}" for car, make in zip(cars, makes)]
    if len(set(group)) < folds:
        raise Problem(f"data.folds is {folds}, but the training cars have only {len(set(group))} makes.")
    table = pd.DataFrame({"car_id": cars, "make": makes, "fold": 0})
    for fold, (_, held_out) in enumerate(GroupKFold(folds).split(cars, groups=group)):
        table.loc[held_out, "fold"] = fold
    return table


def read_folds(path: pathlib.Path) -> pd.DataFrame:
    """The table that `assign` made, from `folds.csv`; Problem when it is missing or damaged."""
    if not path.is_file():
        raise Problem(f"There is no {path}; run `make folds` first.")
    try:
        table = pd.read_csv(path, dtype={"car_id": str, "make": str, "fold": int}, keep_default_na=False)
    except (ValueError, OverflowError, OSError) as error:
        raise Problem(f"{path} is damaged ({' '.join(str(error).split())[:120]}); delete it and run `make folds`.") from None
    if list(table.columns) != ["car_id", "make", "fold"]:
        raise Problem(f"{path} must have the columns car_id,make,fold; delete it and run `make folds`.")
    if not isinstance(table.index, pd.RangeIndex) or table.isna().any(axis=None):
        raise Problem(f"{path} has rows of more or fewer fields than three; delete it and run `make folds`.")
    if len(table) == 0 or sorted(set(table["fold"])) != list(range(table["fold"].max() + 1)):
        raise Problem(f"{path} must have folds from 0 up, none of them empty; delete it and run `make folds`.")
    if (twice := table["car_id"].duplicated()).any():
        raise Problem(f"{path} has the car {table['car_id'][twice.argmax()][:40]} twice; delete it and run `make folds`.")
    return table


def groups(table: pd.DataFrame) -> dict[str, str]:
    """Car -> the group that no choice may be judged across: its make, or itself where that is not known."""
    return dict(zip(table["car_id"], table["make"].where(table["make"] != "", table["car_id"])))


def split(table: pd.DataFrame, fold: int, image_names: list[str]) -> tuple[list[str], list[str]]:
    """Names of the pictures to train on, and of those held out in `fold`, both in the given order.

    Pictures of cars that the table does not name are in neither.
    """
    if fold not in set(table["fold"]):
        raise Problem(f"There is no fold {fold}; the folds are 0 to {table['fold'].max()}.")
    fold_of_car = dict(zip(table["car_id"], table["fold"]))
    folds = [fold_of_car.get(car_of(name)) for name in image_names]
    training = [name for name, its_fold in zip(image_names, folds) if its_fold not in (None, fold)]
    held_out = [name for name, its_fold in zip(image_names, folds) if its_fold == fold]
    return training, held_out
