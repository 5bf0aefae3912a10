"""What training does about masks that may be wrong: leave pictures out, or take other masks for them.

`data.exclude` and `data.relabel` name tables such as `runs/RUN/report/suspects.csv`, from which rows that a person
believes in the mask of were deleted. Held-out pictures are judged by the competition's masks all the same.
"""
import pathlib

import pandas as pd

from pipeline import carvana
from pipeline.data.competition import CsvMasks, read_table
from pipeline.masks import rle
from pipeline.runtime.problem import Problem


def without(names: list[str], exclude: str | None) -> list[str]:
    """The names that the table at `exclude` does not list, in the same order; all where there is no such table."""
    if exclude is None:
        return names
    listed = set(read_suspects(exclude, ("img",), "data.exclude")["img"])
    return [name for name in names if name not in listed]


def told(training: list[str], held_out: list[str], everything: list[str], other_masks: CsvMasks | None) -> str:
    """In words, after a comma each: how many pictures are left out, and how many have other masks."""
    left_out = len(everything) - len(training) - len(held_out)
    words = f", {left_out} left out" if left_out else ""
    return words + (f", {len(other_masks.names)} with masks of data.relabel" if other_masks is not None else "")


def relabelled(names: list[str], relabel: str | None) -> CsvMasks | None:
    """The masks that the table at `relabel` has for some of the names, None where there is no such table.

    Raises Problem when a row holds no mask.
    """
    if relabel is None:
        return None
    table = read_suspects(relabel, carvana.SUBMISSION_HEADER, "data.relabel")
    masks = CsvMasks(table[table["img"].isin(names)], where=relabel)
    for name in masks.names:
        masks.runs(name)
    return masks


def read_suspects(path: str, columns: tuple[str, ...], setting: str) -> pd.DataFrame:
    """Problem when there is no such table, it lacks a column, or it names what is no picture."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise Problem(f"{setting} is {path}, but there is no such file; `make report` writes one, or set it to null.")
    table = read_table(file.parent, file.name, columns, empty=True)  # no mask may be suspect, or a person believes all
    if odd := [name for name in table["img"] if not carvana.IMAGE_NAME.fullmatch(name)]:
        raise Problem(f"{path}: {odd[0][:40]!r} is no name of a picture.")
    return table


def fingerprint(masks: CsvMasks | None) -> str:
    """Tells masks from others; "" where there are none."""
    return "" if masks is None else "\n".join(f"{name} {rle.text(masks.runs(name))}" for name in masks.names)
