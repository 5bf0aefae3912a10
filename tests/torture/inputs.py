"""Bad inputs, and good ones that look strange: each handed to a stage, in a place of its own.

A bad one must end with exit code 1 and one sentence on stderr that names the file and the place in it, within
`LONGEST_S` and `MOST_MEMORY_MB`, with nothing executed and nothing changed on the disk. A good one must be read right.

The cases are in `bad_data` (archives, pictures), `bad_tables` (masks, tables), `bad_run` (settings, checkpoints,
results, submissions) and `bad_folders` (plain folders, NYU Depth v2, what a report reads).
"""
import contextlib
import gzip
import importlib
import io
import multiprocessing
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline import carvana, config
from pipeline.__main__ import main
from pipeline.data import competition, folds
from pipeline.files import sha256
from pipeline.leaderboard.submission import read_rows
from pipeline.model import checkpoint
from pipeline.model.build import build
from pipeline.problem import LONGEST_SENTENCE
from tests.torture.table import Row

LONGEST_S = 5.0  # on a machine with nothing else to do
HANGS_S = 60
MOST_MEMORY_MB = 1024
SETTINGS = """\
data: {folder: demo, scale: 8, folds: 2, workers: 0}
model: {width: 2, depth: 1, patch: 4}
train: {epochs: 1, batch_size: 4}
predict: {tta: none, batch_size: 2}
"""
PREDICT, TRAIN, FOLDS = ("predict",), ("train",), ("folds",)
VALIDATE, THRESHOLD, CHECK = ("validate",), ("threshold",), ("check", "submissions/tiny.csv.gz")
# What a stage may leave that stops in the middle of its work: where it goes on, not what it makes.
LEFT_BEHIND = re.compile(r".*lock|submissions/\.tiny\.parts.*|runs/tiny/fold0/(config\.yaml|tb.*)")


@dataclass(frozen=True)
class Place:
    """A folder to spoil: `demo/`, a competition; `runs/tiny/`, a run that is trained; a submission of all its cars."""

    folder: pathlib.Path

    @property
    def run(self) -> pathlib.Path:
        return self.folder / "runs/tiny"

    @property
    def best(self) -> pathlib.Path:
        return self.run / "fold0/best.pt"

    @property
    def submission(self) -> pathlib.Path:
        return self.folder / "submissions/tiny.csv.gz"

    def demo(self, name: str) -> pathlib.Path:
        return self.folder / "demo" / name

    def put(self, name: str, data: bytes | str) -> None:
        """Write a file, in the place of what may be there."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def change(self, name: str, change: Callable[[bytes], bytes]) -> None:
        self.put(name, change((self.folder / name).read_bytes()))

    def members(self, name: str) -> dict[str, bytes]:
        with zipfile.ZipFile(self.demo(name)) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()}

    def first_picture(self, set_name: str = "test") -> tuple[str, bytes]:
        """Name and bytes of the picture that is read first."""
        name, data = min(self.members(f"{set_name}.zip").items())
        return name.rpartition("/")[2], data


@dataclass(frozen=True)
class Case:
    """kind: "bad_inputs", `says` is then what the sentence must show; or "good_inputs", and `right` must hold."""

    kind: str
    what: str
    words: tuple[str, ...]
    spoil: Callable[[Place], None]
    says: tuple[str, ...] = ()
    right: Callable[[Place], bool] | None = None


def bad(what: str, words: tuple[str, ...], spoil: Callable[[Place], None], *says: str) -> Case:
    return Case("bad_inputs", what, words, spoil, says)


def good(what: str, words: tuple[str, ...], spoil: Callable[[Place], None], right: Callable[[Place], bool]) -> Case:
    return Case("good_inputs", what, words, spoil, (), right)


# --- the place ------------------------------------------------------------------------------------


def make_place(folder: pathlib.Path, demo: pathlib.Path) -> Place:
    """demo: a drawn competition of at least two makes. Nothing is trained: the weights are as they were drawn."""
    place = Place(folder)
    (folder / "configs").mkdir(parents=True)
    (folder / "tiny.yaml").write_text(SETTINGS)
    os.symlink(demo.resolve(), folder / "demo")
    settings = config.load(folder / "tiny.yaml")
    makes = competition.read_makes(demo)
    names = competition.Pictures(demo, "train").names
    table = folds.assign({carvana.car_of(name): makes[carvana.car_of(name)] for name in names}, folds=2)
    place.put("runs/tiny/folds.csv", table.to_csv(index=False))
    place.put("runs/tiny/fold0/config.yaml", config.dump(settings))
    torch.manual_seed(0)
    network = build(**settings.model.model_dump())
    checkpoint.save(place.best, {"settings": settings.model_dump(), "network": network.state_dict(), "log": []})
    place.put("runs/tiny/threshold.json", '{"cut": 0.5}\n')
    (place.run / "oof").mkdir()
    write_oof(place)
    rows = ["img,rle_mask\n"]
    rows += [f"{row[0]},{row[1]}\n" for _, row in read_rows(demo / "solution.csv", carvana.SOLUTION_HEADER)]
    place.put("submissions/tiny.csv.gz", gzip.compress("".join(rows).encode(), mtime=0))
    return place


def write_oof(place: Place, **other: object) -> None:
    """What validate would write, with other arrays where given."""
    _, held_out = folds.split(
        folds.read_folds(place.run / "folds.csv"), 0, competition.Pictures(place.demo(""), "train").names
    )
    counts = np.random.default_rng(0).integers(0, 9, (len(held_out), 2, 256), np.int32)
    arrays = {"names": np.array(held_out), "histograms": counts, "checkpoint": sha256(place.best)} | other
    with open(place.run / "oof/fold0.npz", "wb") as file:
        np.savez_compressed(file, **{name: np.asarray(value) for name, value in arrays.items() if value is not None})


def copy_place(place: Place, folder: pathlib.Path) -> Place:
    """With links to the competition's files: a case removes the link of the one that it replaces."""
    shutil.copytree(place.folder, folder, symlinks=True)
    os.unlink(folder / "demo")
    (folder / "demo").mkdir()
    for file in place.demo("").iterdir():
        os.symlink(file.resolve(), folder / "demo" / file.name)
    return Place(folder)


# --- trying ---------------------------------------------------------------------------------------


def try_inputs(demo: pathlib.Path, folder: pathlib.Path, cases: list[Case] | None = None) -> Iterator[Row]:
    """A row for each case. demo: a drawn competition, which is only read; folder: an empty one to work in."""
    for stage in ("cutout", "train", "validate", "predict", "threshold", "submit", "reproduce", "report"):
        importlib.import_module(f"pipeline.stages.{stage}")  # beforehand: a start is not what is timed
    import albumentations  # noqa: F401

    first = make_place(folder / "place", demo)
    for number, case in enumerate(all_cases() if cases is None else cases):
        place = copy_place(first, folder / f"case{number}")
        case.spoil(place)
        yield try_case(place, case)
        for worker in multiprocessing.active_children():  # of a stage that stopped: a process of its own would end them
            worker.terminate()
        shutil.rmtree(place.folder)


def all_cases() -> list[Case]:
    from tests.torture import bad_data, bad_folders, bad_run, bad_tables

    return [case for room in (bad_data, bad_tables, bad_run, bad_folders) for case in room.cases()]


def try_case(place: Place, case: Case) -> Row:
    before, memory_before = listing(place.folder), peak_mb()
    began = time.monotonic()
    code, err = call(place.folder, [case.words[0], "--config", "tiny.yaml", *case.words[1:]])
    seconds = time.monotonic() - began
    wrong = []
    if case.kind == "good_inputs":
        if code != 0:
            wrong.append(f"exit code {code}: {err[-900:]}")
        elif case.right is not None and not case.right(place):
            wrong.append("it was not read right")
        return Row(case.kind, case.what, "; ".join(wrong), "", seconds)
    if code != 1:
        wrong.append(f"exit code {code}")
    if len(err.splitlines()) != 1 or not err.startswith(f"{case.words[0]}: ") or "Traceback" in err:
        wrong.append(f"no single sentence: {err[-900:]}")
    if len(err) > LONGEST_SENTENCE + 100:
        wrong.append(f"a sentence of {len(err)} letters")
    wrong += [f"does not say {pattern}" for pattern in case.says if not re.search(pattern, err)]
    if seconds > LONGEST_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)):
        wrong.append(f"took {seconds:.1f} s")
    if (grown := peak_mb() - memory_before) > MOST_MEMORY_MB:
        wrong.append(f"took {grown:.0f} MB")
    changed = {name for name, _ in before ^ listing(place.folder)}
    if changed := sorted(name for name in changed if not LEFT_BEHIND.fullmatch(name)):
        wrong.append(f"changed {', '.join(changed)[:200]}")
    return Row(case.kind, case.what, "; ".join(wrong), " ".join(err.split())[:400], seconds)


def call(folder: pathlib.Path, words: list[str]) -> tuple[int, str]:
    """Exit code and all that was said on stderr, by Python or by a library below it, of a stage in this process."""
    back = os.getcwd()
    said = io.StringIO()
    os.chdir(folder)
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS_S)
    try:
        with below_python() as low, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                code = main(words)
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 1
            except BaseException:  # a bug: what the interpreter would print
                traceback.print_exc()
                code = 70
            finally:
                signal.alarm(0)
        return code, "".join(low) + said.getvalue()
    finally:
        signal.signal(signal.SIGALRM, before)
        os.chdir(back)


def hangs(number: int, frame: object) -> None:
    raise TimeoutError(f"no end after {HANGS_S} s")


@contextlib.contextmanager
def below_python() -> Iterator[list[str]]:
    """What libraries write on stderr themselves, as libjpeg does; in the list when the block has ended."""
    said: list[str] = []
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.append(os.pread(file.fileno(), 2**20, 0).decode("utf-8", "replace"))


def listing(folder: pathlib.Path) -> set[tuple[str, tuple[int, ...]]]:
    """Name, kind, size, time and number of all below a folder; times of folders aside."""
    found = set()
    for path in folder.rglob("*"):
        about = path.lstat()
        same = (about.st_mode,) if path.is_dir() else (about.st_mode, about.st_size, about.st_mtime_ns, about.st_ino)
        found.add((str(path.relative_to(folder)), same))
    return found


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def some(cases: list[Case], seed: int, count: int) -> list[Case]:
    """A few of them, for a quick look."""
    return random.Random(seed).sample(cases, min(count, len(cases)))
