"""Cross-validation folds that no make of car crosses, nor any other group of images.

Makes that never occur in training cover 17 % of the test cars. A score on cars of makes that the network has seen, or
even on another angle of the same car, is too good.

A table of folds (`folds.csv`) has three columns: the key, such as a car or an image; its group; its fold. The angles
of a car are held out together, as are all keys of a group. Carvana's columns are car_id, make, fold.
"""
import pathlib
from collections import defaultdict
from collections.abc import Callable

import pandas as pd
from sklearn.model_selection import GroupKFold

from pipeline.runtime import files
from pipeline.runtime.problem import Problem, counted

KeyOf = Callable[[str], str]  # the name of an image -> its key
IMAGE_COLUMNS = ("image", "group")  # of a key and its group
NOUNS = {"car_id": "car"}  # of columns, in messages; else the column's own name


def assign_folds(group_of_key: dict[str, str], folds: int, columns: tuple[str, str] = IMAGE_COLUMNS) -> pd.DataFrame:
    """Return a table of folds, one row a key, sorted by key; text, text, int. Raise Problem for too few groups.

    A key without a group is a group of its own. Deterministic, and balanced as well as whole groups allow: groups of
    equal size get their folds in the order of their names.
    """
    keys = sorted(group_of_key)
    groups = [group_of_key[key] for key in keys]
    alone = "unknown make of " if columns[1] == "make" else "alone: "
    named = [group or f"{alone}{key}" for key, group in zip(keys, groups)]
    if (count := len(set(named))) < folds:
        advice = f"set data.folds to {count} or less" if count > 1 else "two are the least to hold one out"
        what = f"the {count_of(columns[0], len(keys))} have only {count_of(columns[1], count)}"
        raise Problem(f"data.folds is {folds}, but {what}, not to be split; {advice}.")
    table = pd.DataFrame(dict(zip((*columns, "fold"), (keys, groups, 0))))
    for fold, (_, held_out) in enumerate(GroupKFold(folds).split(keys, groups=named)):
        table.loc[held_out, "fold"] = fold
    return table


def read_folds(path: pathlib.Path) -> pd.DataFrame:
    """Read the table of a `folds.csv`. Raise Problem if it is missing or damaged."""
    if not path.is_file():
        raise Problem(f"There is no {path}; run `make folds` first.")
    try:
        dtypes: defaultdict[str, type] = defaultdict(lambda: str, fold=int)
        table = pd.read_csv(path, dtype=dtypes, keep_default_na=False)
    except (ValueError, OverflowError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"{path} is damaged ({reason}); delete it and run `make folds`.") from None
    if len(table.columns) != 3 or table.columns[2] != "fold":
        raise Problem(f"{path} must have three columns, the last of them fold; delete it and run `make folds`.")
    if not isinstance(table.index, pd.RangeIndex) or table.isna().any(axis=None):
        raise Problem(f"{path} has rows of more or fewer fields than three; delete it and run `make folds`.")
    if len(table) == 0 or sorted(set(table["fold"])) != list(range(table["fold"].max() + 1)):
        raise Problem(f"{path} must have folds from 0 up, none of them empty; delete it and run `make folds`.")
    key = table.columns[0]
    if (repeated := table[key].duplicated()).any():
        raise Problem(f"{path} has {key} {table[key][repeated.argmax()][:40]} twice; delete it and run `make folds`.")
    return table


def count_of(column: str, count: int) -> str:
    """Return a number of keys or groups of a column for a message, such as "4 images" or "1 make"."""
    return counted(count, NOUNS.get(column, column))


def digest(table: pd.DataFrame) -> str:
    """Return a hash of which key is held out in which fold; groups and the order of rows do not matter."""
    return files.digest(sorted(zip(table[table.columns[0]], table["fold"].tolist())))


def check_trained_on(table: pd.DataFrame, trained_on: str, table_path: pathlib.Path, best: pathlib.Path) -> None:
    """Raise Problem if a network was trained on other folds, so that it may have seen images that are held out here.

    trained_on: the digest that its checkpoint holds.
    """
    if trained_on != digest(table):
        what = f"{best} was trained on other folds than {table_path} has"
        advice = f"put the {table_path.name} of its training back, or train it again under another RUN="
        raise Problem(f"{what}, and may have seen the images that are held out there; {advice}.")


def fold_numbers(table: pd.DataFrame) -> list[int]:
    """Return the numbers of all folds, in order; an official split may have fewer than `data.folds` asks for."""
    return sorted(map(int, set(table["fold"])))


def check_fold(table: pd.DataFrame, fold: int) -> None:
    """Raise Problem if the table has no such fold."""
    if fold not in set(table["fold"]):
        raise Problem(f"There is no fold {fold}; the folds are 0 to {table['fold'].max()}.")


def map_keys_to_groups(table: pd.DataFrame) -> dict[str, str]:
    """Return key -> group; a key without a group, such as a car of unknown make, is its own group."""
    key, group, _ = table.columns
    return dict(zip(table[key], table[group].where(table[group] != "", table[key])))


def split(table: pd.DataFrame, fold: int, image_names: list[str], key_of: KeyOf) -> tuple[list[str], list[str]]:
    """Return the names of the training images and of the images held out in `fold`, both in the given order.

    Images whose key is not in the table are in neither. key_of: `SegmentationDataset.group_key`.
    """
    check_fold(table, fold)
    fold_of_key = dict(zip(table[table.columns[0]], table["fold"]))
    folds = [fold_of_key.get(key_of(name)) for name in image_names]
    training = [name for name, its_fold in zip(image_names, folds) if its_fold not in (None, fold)]
    held_out = [name for name, its_fold in zip(image_names, folds) if its_fold == fold]
    return training, held_out


def find_missing_keys(table: pd.DataFrame, fold: int, image_names: list[str], key_of: KeyOf) -> list[str]:
    """Return the cars or images that the table holds out in `fold` and that no image belongs to."""
    present = set(map(key_of, image_names))
    return [key for key in table[table.columns[0]][table["fold"] == fold] if key not in present]
