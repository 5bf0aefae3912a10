"""Cross-validation folds that no make crosses, or no group of whatever else the pictures show.

Makes that never occur in training cover 17 % of the test cars. A network that is judged on cars of makes
that it has seen, or even on another view of the same car, is judged too well.
"""
import pathlib

import pandas as pd
from sklearn.model_selection import GroupKFold

from pipeline.runtime import files
from pipeline.carvana import car_of
from pipeline.runtime.problem import Problem

# Of a `folds.csv`: what is held out as a whole, its group, the fold. The first column tells them apart.
HEADERS = (["car_id", "make", "fold"], ["image", "group", "fold"])


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
        raise Problem(too_few(folds, len(set(group)), "training cars", "makes"))
    table = pd.DataFrame({"car_id": cars, "make": makes, "fold": 0})
    for fold, (_, held_out) in enumerate(GroupKFold(folds).split(cars, groups=group)):
        table.loc[held_out, "fold"] = fold
    return table


def assign_groups(group_of_image: dict[str, str], folds: int) -> pd.DataFrame:
    """One row an image, `image, group, fold`, sorted by image; text, text, int.

    An image without a group is a group of its own.
    """
    images = sorted(group_of_image)
    groups = [group_of_image[image] for image in images]
    group = [group or f"alone: {image}" for image, group in zip(images, groups)]
    if len(set(group)) < folds:
        raise Problem(too_few(folds, len(set(group)), "pictures", "groups"))
    table = pd.DataFrame({"image": images, "group": groups, "fold": 0})
    for fold, (_, held_out) in enumerate(GroupKFold(folds).split(images, groups=group)):
        table.loc[held_out, "fold"] = fold
    return table


def too_few(folds: int, there: int, what: str, of_what: str) -> str:
    advice = f"set data.folds to {there} or less" if there > 1 else "two are the least to hold one out"
    return f"data.folds is {folds}, but the {what} have only {there} {of_what}, which no two folds may share; {advice}."


def group_key(name: str, table: pd.DataFrame) -> str:
    """What is held out with this picture, as the table's first column names it: its car, or the picture itself."""
    return car_of(name) if table.columns[0] == "car_id" else name


def read_folds(path: pathlib.Path) -> pd.DataFrame:
    """The table that `assign` made, from `folds.csv`; Problem when it is missing or damaged."""
    if not path.is_file():
        raise Problem(f"There is no {path}; run `make folds` first.")
    try:
        text = dict.fromkeys(("car_id", "make", "image", "group"), str)
        table = pd.read_csv(path, dtype={**text, "fold": int}, keep_default_na=False)
    except (ValueError, OverflowError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"{path} is damaged ({reason}); delete it and run `make folds`.") from None
    if list(table.columns) not in HEADERS:
        columns = " or ".join(map(",".join, HEADERS))
        raise Problem(f"{path} must have the columns {columns}; delete it and run `make folds`.")
    if not isinstance(table.index, pd.RangeIndex) or table.isna().any(axis=None):
        raise Problem(f"{path} has rows of more or fewer fields than three; delete it and run `make folds`.")
    if len(table) == 0 or sorted(set(table["fold"])) != list(range(table["fold"].max() + 1)):
        raise Problem(f"{path} must have folds from 0 up, none of them empty; delete it and run `make folds`.")
    unit = table.columns[0]
    if (twice := table[unit].duplicated()).any():
        raise Problem(f"{path} has {unit} {table[unit][twice.argmax()][:40]} twice; delete it and run `make folds`.")
    return table


def digest(table: pd.DataFrame) -> str:
    """Tells who is held out in which fold from another table's; not who the groups are, nor the order of rows."""
    return files.digest(sorted(zip(table[table.columns[0]], table["fold"].tolist())))


def check_trained_on(
    table: pd.DataFrame, trained_on: str | None, table_path: pathlib.Path, checkpoint_path: pathlib.Path
) -> None:
    """Problem where a network was trained on another table, or its pictures that are held out may be ones that it saw.

    trained_on: the digest that its checkpoint holds; those of before hold none, and are not judged.
    """
    if trained_on is not None and trained_on != digest(table):
        raise Problem(
            f"{checkpoint_path} was trained on other folds than {table_path} has, and may have seen the pictures that "
            f"are held out there; put the {table_path.name} of its training back, or train it again under another RUN=."
        )


def numbers(table: pd.DataFrame) -> list[int]:
    """Of all folds, in order; an official split may have fewer than `data.folds` asks for."""
    return sorted(map(int, set(table["fold"])))


def check(table: pd.DataFrame, fold: int) -> None:
    """Problem where the table has no such fold."""
    if fold not in set(table["fold"]):
        raise Problem(f"There is no fold {fold}; the folds are 0 to {table['fold'].max()}.")


def groups(table: pd.DataFrame) -> dict[str, str]:
    """Car -> the group that no choice may be judged across: its make, or itself where that is not known.

    Of a table of images: image -> its group.
    """
    unit, group, _ = table.columns
    return dict(zip(table[unit], table[group].where(table[group] != "", table[unit])))


def split(table: pd.DataFrame, fold: int, image_names: list[str]) -> tuple[list[str], list[str]]:
    """Names of the pictures to train on, and of those held out in `fold`, both in the given order.

    Pictures of cars that the table does not name are in neither.
    """
    check(table, fold)
    fold_of_unit = dict(zip(table[table.columns[0]], table["fold"]))
    folds = [fold_of_unit.get(group_key(name, table)) for name in image_names]
    training = [name for name, its_fold in zip(image_names, folds) if its_fold not in (None, fold)]
    held_out = [name for name, its_fold in zip(image_names, folds) if its_fold == fold]
    return training, held_out


def absent(table: pd.DataFrame, fold: int, image_names: list[str]) -> list[str]:
    """What the table holds out in `fold`, cars or pictures, and no name shows."""
    there = {group_key(name, table) for name in image_names}
    return [unit for unit in table[table.columns[0]][table["fold"] == fold] if unit not in there]
