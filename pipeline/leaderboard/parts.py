"""The parts of a submission that is being predicted: what a kill leaves behind, and the next start goes on with.

    submissions/.RUN.parts/state.json       what every part depends on: weights, cut, pictures, settings
                          00000.csv.gz      the rows of the first `rows_per_part` pictures, whole or not there
                          ...
                          unreadable.jsonl  pictures that could not be read, whose rows are empty

Where a part begins does not depend on who writes it or when, so that the joined file has the same bytes after any
number of kills, and with any number of processes that share the parts out.
"""
import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

from pipeline.files import read_json, write_json
from pipeline.leaderboard import writer
from pipeline.leaderboard.writer import Row
from pipeline.problem import Problem

State = dict[str, Any]  # as JSON gives it back


class Parts:
    """The parts in a folder of a submission of the pictures `names`."""

    def __init__(self, folder: pathlib.Path, names: list[str], rows_per_part: int):
        self.folder, self.names, self.rows_per_part = folder, names, rows_per_part
        self.state_path, self.unreadable_path = folder / "state.json", folder / "unreadable.jsonl"
        self.numbers = range(-(-len(names) // rows_per_part))

    def open(self, state: State) -> str:
        """Keep what an earlier start left, if it had the same `state`, else begin anew; say which, "" for nothing."""
        found = self.read_state()
        if found == state:
            return f"{self.done()} of {len(self.numbers)} parts are there already: going on in {self.folder}."
        lost = self.done()
        self.remove()
        if self.done():
            raise Problem(f"The parts of another prediction in {self.folder} cannot be removed; remove that folder.")
        write_json(self.state_path, state)
        if not lost:
            return ""
        changed = [key for key in state if found is None or found.get(key) != state[key]]
        return f"{self.folder} had {lost} parts with another {', '.join(changed)}: they are discarded."

    def read_state(self) -> State | None:
        try:
            return read_json(self.state_path)
        except (OSError, ValueError):
            return None

    def path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:05d}.csv.gz"

    def names_of(self, number: int) -> list[str]:
        return self.names[number * self.rows_per_part : (number + 1) * self.rows_per_part]

    def missing(self) -> list[int]:
        return [number for number in self.numbers if not self.path(number).is_file()]

    def done(self) -> int:
        return len(self.numbers) - len(self.missing())

    def write(self, number: int, rows: Iterable[Row]) -> None:
        """rows: (name, run lengths) of `names_of(number)`, in order."""
        expected = len(self.names_of(number))
        if (written := writer.write_part(self.path(number), rows)) != expected:
            raise AssertionError(f"part {number} has {written} rows, but must have {expected}; this is a bug")

    def note_unreadable(self, problems: dict[str, str]) -> None:
        """Remember what was wrong with pictures; before their part is there, so that a kill forgets none of them."""
        if not problems:
            return
        lines = "".join(json.dumps(pair) + "\n" for pair in problems.items())
        try:
            with open(self.unreadable_path, "a") as file:
                file.write("\n" + lines)  # a kill may have cut the line above
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Problem(f"{self.unreadable_path} could not be written: {error.strerror or error}.") from None

    def unreadable(self) -> dict[str, str]:
        """Name of each such picture -> what was wrong with it."""
        if not self.unreadable_path.exists():
            return {}
        found: dict[str, str] = {}
        for line in self.unreadable_path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # cut by a kill: its part was not written, so that it came again
                found |= [json.loads(line)]
        return found

    def join(self, path: pathlib.Path, header: tuple[str, str]) -> None:
        """All parts to the submission; they stay until `remove`, so that nothing is predicted twice."""
        if missing := self.missing():
            raise Problem(f"The parts {missing[:5]} of {self.folder} are gone; run `make predict` again.")
        writer.join(map(self.path, self.numbers), path, header)

    def remove(self) -> None:
        """As far as that is possible."""
        shutil.rmtree(self.folder, ignore_errors=True)
