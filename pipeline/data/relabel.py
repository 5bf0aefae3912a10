"""Handle masks that may be wrong in training: leave images out, or replace their masks.

`data.exclude` and `data.relabel` name tables such as `runs/RUN/report/suspects.csv`, from which a person deleted the
rows whose masks are right. Validation uses the competition's own masks all the same.
"""
import pathlib

import pandas as pd

from pipeline.data.competition import CsvMasks
from pipeline.data.dataset import competition_of
from pipeline.data.spreadsheet import read_spreadsheet
from pipeline.masks import rle
from pipeline.runtime.problem import Problem


def without(names: list[str], exclude: str | None, kind: str) -> list[str]:
    """Return the names that the table at `exclude` does not list, in the same order; all if there is no table."""
    if exclude is None:
        return names
    image_column = competition_of(kind).submission_header[0]
    listed = set(read_suspects(exclude, (image_column,), "data.exclude", kind)[image_column])
    return [name for name in names if name not in listed]


def relabel_summary(training: list[str], held_out: list[str], all_names: list[str], relabelled: CsvMasks | None) -> str:
    """How many images are left out and how many have other masks, each after a comma; "" if none."""
    left_out = len(all_names) - len(training) - len(held_out)
    summary = f", {left_out} left out" if left_out else ""
    return summary + (f", {len(relabelled.names)} with masks of data.relabel" if relabelled is not None else "")


def read_relabelled(names: list[str], relabel: str | None, kind: str) -> CsvMasks | None:
    """Read the masks of the table at `relabel`, if any, for these names. Raises Problem when a row holds no mask."""
    if relabel is None:
        return None
    competition = competition_of(kind)
    table = read_suspects(relabel, competition.submission_header, "data.relabel", kind)
    masks = CsvMasks(table[table[competition.submission_header[0]].isin(names)], relabel, competition)
    for name in masks.names:
        masks.runs(name)
    return masks


def read_suspects(path: str, columns: tuple[str, ...], setting: str, kind: str) -> pd.DataFrame:
    """Raise Problem if there is no such table, it lacks a column, or a name in it is not an image's name."""
    file, competition = pathlib.Path(path), competition_of(kind)
    if not file.is_file():
        raise Problem(f"{setting} is {path}, but there is no such file; `make report` writes one, or set it to null.")
    table = read_spreadsheet(file, columns)  # perhaps of no row: all masks are right
    for name in table[columns[0]]:
        if not competition.pattern(competition.image_suffix).fullmatch(competition.image_file(name)):
            raise Problem(f"{path}: {name[:40]!r} is not an image's name; write it as {competition.sample_table} does.")
    return table


def fingerprint(masks: CsvMasks | None) -> str:
    """Text that differs for other masks; "" if there are none."""
    return "" if masks is None else "\n".join(f"{name} {rle.text(masks.runs(name))}" for name in masks.names)
