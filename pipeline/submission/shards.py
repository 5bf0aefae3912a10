"""The shards of a submission while it is predicted: what a kill leaves behind, and the next start continues.

    submissions/.RUN.shards/state.json       what every shard depends on: weights, threshold, images, settings
                          00000.csv.gz      the rows of the first `rows_per_shard` images; whole, or not there
                          ...
                          00000.json        how unsure they are: the fraction of unsure pixels of each image
                          bad_images.jsonl  images that could not be read, whose rows are empty
                .RUN.shards.1a2b3c4d5e6f/    the same for another state, set aside until a start has that state again

Where a shard begins does not depend on who writes it or when. So the joined file has the same bytes after any number
of kills, and with any number of processes that share the shards.
"""
import contextlib
import glob
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

from pipeline.data.pseudo import UNSURE_COLUMN
from pipeline.runtime.files import digest, read_json, write_json
from pipeline.runtime.problem import Problem
from pipeline.submission import writer
from pipeline.submission.writer import Row

State = dict[str, Any]  # as JSON gives it back
MAX_SET_ASIDE = 2  # folders; the shards of a test set have some hundred megabytes
DIGITS = 12


class Shards:
    """The shards in `folder` of a submission for the images `names`."""

    def __init__(self, folder: pathlib.Path, names: list[str], rows_per_shard: int):
        self.folder, self.names, self.rows_per_shard = folder, names, rows_per_shard
        self.state_path, self.bad_images_path = folder / "state.json", folder / "bad_images.jsonl"
        self.numbers = range(-(-len(names) // rows_per_shard))

    def path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:05d}.csv.gz"

    def names_of(self, number: int) -> list[str]:
        return self.names[number * self.rows_per_shard : (number + 1) * self.rows_per_shard]

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are still to be written."""
        return [number for number in self.numbers if not self.path(number).is_file()]

    # --- state: which shards may be continued ------------------------------------------------------------------------

    def resume_or_start(self, state: State) -> list[str]:
        """Continue the shards that an earlier start with the same `state` left, else begin; return notes to print.

        Shards of another state are set aside: they may be hours of work, and the other state a mistake.
        """
        notes = []
        if (old_state := read_state(self.folder)) != state:
            notes += self.set_aside(old_state, state)
            same_state = next((folder for folder in self.folders_set_aside() if read_state(folder) == state), None)
            if same_state:
                move_folder(same_state, self.folder)
            else:
                write_json(self.state_path, state)
            notes += self.remove_oldest_set_aside()
        if written := len(self.numbers) - len(self.missing()):
            notes += [f"Continuing: {written} of {len(self.numbers)} shards are in {self.folder} already."]
        return notes

    def find_state(self, facts: State) -> State | None:
        """Return the state of shards in place, or else set aside, that includes these facts; None if there are none."""
        states = map(read_state, [self.folder, *reversed(self.folders_set_aside())])
        return next((state for state in states if state is not None and state | facts == state), None)

    def set_aside(self, old_state: State | None, state: State) -> list[str]:
        """Empty the folder for the shards of `state`; return notes. old_state: of the shards that are in it now."""
        notes, count = [], len(list(self.folder.glob("[0-9]*.csv.gz")))  # another state may have had more shards
        if count and old_state is not None:
            changed = [key for key in state if old_state.get(key) != state[key]]
            place = self.folder.with_name(f"{self.folder.name}.{digest(old_state)[:DIGITS]}")
            move_folder(self.folder, place)
            os.utime(place)  # the newest is removed last
            moved = f"{self.folder} had {count} shards that differ in {', '.join(changed)}: they are moved to {place}"
            notes = [f"{moved}, and `make predict` continues them when all of that is as it was."]
        elif count:
            notes = [f"{self.folder} had {count} shards without a valid state.json: they are deleted."]
        self.remove()
        if list(self.folder.glob("[0-9]*.csv.gz")) or self.bad_images_path.exists():
            raise Problem(f"{self.folder} holds shards of another prediction that cannot be removed; delete it.")
        return notes

    def folders_set_aside(self) -> list[pathlib.Path]:
        """Return the folders that were set aside, oldest first."""
        name = glob.escape(self.folder.name) + "." + "[0-9a-f]" * DIGITS
        return sorted(self.folder.parent.glob(name), key=lambda folder: folder.stat().st_mtime_ns)

    def remove_oldest_set_aside(self) -> list[str]:
        """Remove all but the last MAX_SET_ASIDE folders that were set aside; return notes."""
        oldest = self.folders_set_aside()[:-MAX_SET_ASIDE]
        for folder in oldest:
            remove_folder(folder)
        return [f"{folder}, the oldest shards that were set aside, are deleted." for folder in oldest]

    # --- rows --------------------------------------------------------------------------------------------------------

    def write_shard(self, number: int, rows: Iterable[Row]) -> None:
        """rows: (name, run lengths) of `names_of(number)`, in order."""
        expected = len(self.names_of(number))
        if (written := writer.write_shard(self.path(number), rows)) != expected:
            raise AssertionError(f"shard {number} has {written} rows, but must have {expected}; this is a bug")

    def note_unsure(self, number: int, unsure_of: dict[str, float]) -> None:
        """Write how unsure the masks of a shard are, before the shard itself."""
        write_json(self.folder / f"{number:05d}.json", unsure_of)

    def unsure_csv(self, image_column: str) -> str:
        """Return a CSV table of all images and the fraction of their pixels that are unsure."""
        unsure_of = {name: value for number in self.numbers for name, value in self.read_unsure(number).items()}
        rows = (f"{name},{unsure_of[name]:.6f}\n" for name in self.names)
        return f"{image_column},{UNSURE_COLUMN}\n" + "".join(rows)

    def read_unsure(self, number: int) -> dict[str, float]:
        return read_json(self.folder / f"{number:05d}.json")

    def note_bad_images(self, problems: dict[str, str]) -> None:
        """Append images and what is wrong with them; before their shard is written, so that a kill loses none."""
        if not problems:
            return
        lines = "".join(json.dumps(pair) + "\n" for pair in problems.items())
        try:
            with open(self.bad_images_path, "a") as file:
                file.write("\n" + lines)  # a kill may have cut off the line above
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Problem(f"{self.bad_images_path} could not be written: {error.strerror or error}.") from None

    def read_bad_images(self) -> dict[str, str]:
        """Return name -> what was wrong, for each image that could not be read."""
        if not self.bad_images_path.exists():
            return {}
        problem_of_image: dict[str, str] = {}
        for line in self.bad_images_path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # cut off by a kill: its shard was not written and is predicted again
                problem_of_image |= [json.loads(line)]
        return problem_of_image

    def join(self, path: pathlib.Path, header: tuple[str, str]) -> None:
        """Join all shards to the submission; they stay until `remove`, so that nothing is predicted twice."""
        if missing := self.missing():
            raise Problem(f"{self.folder} lacks the shards {missing[:5]}; run `make predict` again.")
        writer.join_shards(map(self.path, self.numbers), path, header)

    def remove(self) -> str:
        """Delete the folder as far as possible; return a sentence if something stays, else ""."""
        remove_folder(self.folder)
        return f"{self.folder} could not be removed; it is no longer needed." if self.folder.exists() else ""


def read_state(folder: pathlib.Path) -> State | None:
    """Return what the shards in a folder depend on; None if that cannot be read."""
    try:
        state = read_json(folder / "state.json")
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def remove_folder(folder: pathlib.Path) -> None:
    """Delete as much as possible; state.json first, so that no start continues what a kill leaves of the rest."""
    with contextlib.suppress(OSError):
        (folder / "state.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)


def move_folder(folder: pathlib.Path, target: pathlib.Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        raise Problem(f"{folder} could not be renamed to {target}: {error.strerror or error}; move it away.") from None
