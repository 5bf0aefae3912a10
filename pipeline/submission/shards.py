"""The parts of a submission that is being predicted: what a kill leaves behind, and the next start goes on with.

    submissions/.RUN.shards/state.json       what every part depends on: weights, cut, pictures, settings
                          00000.csv.gz      the rows of the first `rows_per_shard` pictures, whole or not there
                          ...
                          bad_images.jsonl  pictures that could not be read, whose rows are empty
                .RUN.shards.1a2b3c4d5e6f/    the same of another state, set aside until a start has that state again

Where a part begins does not depend on who writes it or when, so that the joined file has the same bytes after any
number of kills, and with any number of processes that share the parts out.
"""
import contextlib
import glob
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

from pipeline.runtime.files import digest, read_json, write_json
from pipeline.submission import writer
from pipeline.submission.writer import Row
from pipeline.runtime.problem import Problem

State = dict[str, Any]  # as JSON gives it back
MAX_SET_ASIDE = 2  # folders; a test set's parts are some hundred megabytes
DIGITS = 12


class Shards:
    """The parts in a folder of a submission of the pictures `names`."""

    def __init__(self, folder: pathlib.Path, names: list[str], rows_per_shard: int):
        self.folder, self.names, self.rows_per_shard = folder, names, rows_per_shard
        self.state_path, self.bad_images_path = folder / "state.json", folder / "bad_images.jsonl"
        self.numbers = range(-(-len(names) // rows_per_shard))

    def open(self, state: State) -> list[str]:
        """Go on with what an earlier start with the same `state` left, else begin anew; what is to be told of it.

        What was there with another state is set aside: it may be hours of work, and the other state a slip.
        """
        told = []
        if (found := read_state(self.folder)) != state:
            told += self.set_aside(found, state)
            before = next((folder for folder in self.aside() if read_state(folder) == state), None)
            if before:
                move(before, self.folder)
            else:
                write_json(self.state_path, state)
            told += self.forget_the_oldest()
        if done := self.done():
            told += [f"{done} of {len(self.numbers)} parts are there already: going on in {self.folder}."]
        return told

    def earlier(self, facts: State) -> State | None:
        """The state of parts that are there, or set aside, if these facts are among its own."""
        states = map(read_state, [self.folder, *reversed(self.aside())])
        return next((state for state in states if state is not None and state | facts == state), None)

    def set_aside(self, found: State | None, state: State) -> list[str]:
        """Make room for the parts of `state`. found: that of those that are there."""
        told, lost = [], self.there()
        if lost and found is not None:
            changed = [key for key in state if found.get(key) != state[key]]
            place = self.folder.with_name(f"{self.folder.name}.{digest(found)[:DIGITS]}")
            move(self.folder, place)
            os.utime(place)  # the last to be forgotten
            told = [
                f"{self.folder} had {lost} parts with another {', '.join(changed)}: they are kept in {place}, where "
                "`make predict` finds them when all is as it was."
            ]
        elif lost:
            told = [f"{self.folder} had {lost} parts of nobody knows what (no whole state.json): they are discarded."]
        self.remove()
        if self.there() or self.bad_images_path.exists():
            raise Problem(f"The parts of another prediction in {self.folder} cannot be removed; remove that folder.")
        return told

    def there(self) -> int:
        """How many parts lie here, of whatever state; another one may have had more of them."""
        return len(list(self.folder.glob("[0-9]*.csv.gz")))

    def aside(self) -> list[pathlib.Path]:
        """The folders that were set aside, the last one last."""
        name = glob.escape(self.folder.name) + "." + "[0-9a-f]" * DIGITS
        return sorted(self.folder.parent.glob(name), key=lambda folder: folder.stat().st_mtime_ns)

    def forget_the_oldest(self) -> list[str]:
        told = []
        for folder in self.aside()[:-MAX_SET_ASIDE]:
            remove(folder)
            told += [f"{folder}, the oldest parts that were set aside, are removed."]
        return told

    def path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:05d}.csv.gz"

    def names_of(self, number: int) -> list[str]:
        return self.names[number * self.rows_per_shard : (number + 1) * self.rows_per_shard]

    def missing(self) -> list[int]:
        return [number for number in self.numbers if not self.path(number).is_file()]

    def done(self) -> int:
        return len(self.numbers) - len(self.missing())

    def write(self, number: int, rows: Iterable[Row]) -> None:
        """rows: (name, run lengths) of `names_of(number)`, in order."""
        expected = len(self.names_of(number))
        if (written := writer.write_shard(self.path(number), rows)) != expected:
            raise AssertionError(f"part {number} has {written} rows, but must have {expected}; this is a bug")

    def note_bad_images(self, problems: dict[str, str]) -> None:
        """Remember what was wrong with pictures; before their part is there, so that a kill forgets none of them."""
        if not problems:
            return
        lines = "".join(json.dumps(pair) + "\n" for pair in problems.items())
        try:
            with open(self.bad_images_path, "a") as file:
                file.write("\n" + lines)  # a kill may have cut the line above
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Problem(f"{self.bad_images_path} could not be written: {error.strerror or error}.") from None

    def bad_images(self) -> dict[str, str]:
        """Name of each such picture -> what was wrong with it."""
        if not self.bad_images_path.exists():
            return {}
        found: dict[str, str] = {}
        for line in self.bad_images_path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # cut by a kill: its part was not written, so that it came again
                found |= [json.loads(line)]
        return found

    def join(self, path: pathlib.Path, header: tuple[str, str]) -> None:
        """All parts to the submission; they stay until `remove`, so that nothing is predicted twice."""
        if missing := self.missing():
            raise Problem(f"The parts {missing[:5]} of {self.folder} are gone; run `make predict` again.")
        writer.join(map(self.path, self.numbers), path, header)

    def remove(self) -> str:
        """A sentence when something stays, else ""."""
        remove(self.folder)
        return f"{self.folder} could not be removed; nothing needs it any more." if self.folder.exists() else ""


def read_state(folder: pathlib.Path) -> State | None:
    """What parts in a folder depend on; None where that cannot be read."""
    try:
        state = read_json(folder / "state.json")
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def remove(folder: pathlib.Path) -> None:
    """As far as that is possible; first what makes parts of them, for of what a kill leaves some may be gone."""
    with contextlib.suppress(OSError):
        (folder / "state.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)


def move(folder: pathlib.Path, target: pathlib.Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        raise Problem(f"{folder} could not be renamed to {target}: {error.strerror or error}; move it away.") from None
