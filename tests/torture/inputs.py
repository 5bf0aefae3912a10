"""Bad inputs, and good ones that look strange: each is given to a stage, in a folder of its own.

A bad one must end with exit code 1 and one sentence on stderr that names the file and the place in it, within
`LONGEST_S` and `MOST_MEMORY_MB`, with nothing executed and nothing changed on the disk. A good one must be read right.
Each is a process of its own, forked from one that has imported all stages, so that its time and memory are its own.

The cases are in `bad_data` (archives, images), `bad_tables` (masks, tables), `bad_run` (settings, checkpoints,
results, submissions) and `bad_folders` (plain folders, NYU Depth v2, what a report reads).
"""
import contextlib
import gzip
import importlib
import multiprocessing
import os
import pathlib
import random
import re
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
from pipeline.data import grouping
from pipeline.runtime.files import sha256
from pipeline.submission.reader import read_rows
from pipeline.model import checkpoint
from pipeline.model.factory import build
from pipeline.runtime.problem import LONGEST_SENTENCE
from tests.torture.table import Row
from tests.torture.warm import be_ready, end_with_parent, stay_on_the_cpu

LONGEST_S = 5.0  # of a processor's time; by the clock, too, on a machine with nothing else to do
HANGS_S = 20.0  # by the clock, whatever else the machine does
MOST_MEMORY_MB = 1024  # beyond what its process began with
SETTINGS = """\
data: {folder: demo, scale: 8, folds: 2, workers: 0}
model: {width: 2, depth: 1, patch: 4}
train: {epochs: 1, batch_size: 4}
predict: {tta: none, batch_size: 2}
"""
PREDICT, TRAIN, FOLDS = ("predict",), ("train",), ("folds",)
VALIDATE, THRESHOLD, CHECK = ("validate",), ("threshold",), ("check", "--file", "submissions/tiny.csv.gz")
# What a stage may leave that stops in the middle of its work: where it goes on, not what it makes.
LEFT_BEHIND = re.compile(r".*lock|submissions/\.tiny\.shards.*|runs/tiny/(inspected\.json|fold0/(config\.yaml|tb.*))")


@dataclass(frozen=True)
class Place:
    """A folder to damage: `demo/`, a competition; `runs/tiny/`, a run that is trained; a submission of all its cars."""

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

    def transform(self, name: str, transform: Callable[[bytes], bytes]) -> None:
        self.put(name, transform((self.folder / name).read_bytes()))

    def members(self, name: str) -> dict[str, bytes]:
        with zipfile.ZipFile(self.demo(name)) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()}

    def first_image(self, set_name: str = "test") -> tuple[str, bytes]:
        """Name and bytes of the image that is read first."""
        name, data = min(self.members(f"{set_name}.zip").items())
        return name.rpartition("/")[2], data


@dataclass(frozen=True)
class Case:
    """kind: "bad_inputs", `says` is then what the sentence must show; or "good_inputs", and `right` must hold."""

    kind: str
    what: str
    arguments: tuple[str, ...]
    damage: Callable[[Place], None]
    says: tuple[str, ...] = ()
    right: Callable[[Place], bool] | None = None


def bad(what: str, arguments: tuple[str, ...], damage: Callable[[Place], None], *says: str) -> Case:
    return Case("bad_inputs", what, arguments, damage, says)


def good(
    what: str, arguments: tuple[str, ...], damage: Callable[[Place], None], right: Callable[[Place], bool]
) -> Case:
    return Case("good_inputs", what, arguments, damage, (), right)


# --- the place ------------------------------------------------------------------------------------


def make_place(folder: pathlib.Path, demo: pathlib.Path) -> Place:
    """demo: a drawn competition of at least two makes. Nothing is trained: the weights are as they were drawn."""
    place = Place(folder)
    (folder / "configs").mkdir(parents=True)
    (folder / "tiny.yaml").write_text(SETTINGS)
    os.symlink(demo.resolve(), folder / "demo")
    settings = config.load(folder / "tiny.yaml")
    makes = carvana.read_makes(demo)
    names = carvana.CARVANA.open_images(demo, "train").names
    make_of_car = {carvana.car_of(name): carvana.normal_make(makes[carvana.car_of(name)]) for name in names}
    table = grouping.assign_folds(make_of_car, 2, carvana.CARVANA.group_columns)
    place.put("runs/tiny/folds.csv", table.to_csv(index=False))
    place.put("runs/tiny/fold0/config.yaml", config.dump(settings))
    torch.manual_seed(0)
    network = build(**settings.model.model_dump())
    state = {"settings": settings.model_dump(), "network": network.state_dict(), "log": [], "classes": []}
    state |= {"full_size": [carvana.HEIGHT_PX, carvana.WIDTH_PX], "folds": grouping.digest(table)}
    checkpoint.save(place.best, state)
    place.put("runs/tiny/threshold.json", '{"threshold": 0.5}\n')
    (place.run / "oof").mkdir()
    write_oof(place)
    rows = ["img,rle_mask\n"]
    rows += [f"{row[0]},{row[1]}\n" for _, row in read_rows(demo / "solution.csv", carvana.CARVANA.solution_header)]
    place.put("submissions/tiny.csv.gz", gzip.compress("".join(rows).encode(), mtime=0))
    return place


def write_oof(place: Place, **other: object) -> None:
    """What validate would write, with other arrays where given."""
    _, held_out = grouping.split(
        grouping.read_folds(place.run / "folds.csv"), 0, carvana.CARVANA.open_images(place.demo(""), "train").names,
        carvana.car_of,
    )
    counts = np.random.default_rng(0).integers(0, 9, (len(held_out), 2, 256), np.int32)
    arrays = {"names": np.array(held_out), "histograms": counts, "checkpoint_sha256": sha256(place.best)}
    arrays |= {"predictions_sha256": "", "predicted_with": ""} | other
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
    ground_floor = ("cutout", "train", "validate", "predict", "threshold")
    for stage in (*ground_floor, "kaggle.submit", "kaggle.reproduce", "report.report"):
        importlib.import_module(f"pipeline.{stage}")  # beforehand: a start is not what is timed
    import albumentations  # noqa: F401

    be_ready()
    first = make_place(folder / "place", demo)
    for number, case in enumerate(all_cases() if cases is None else cases):
        place = copy_place(first, folder / f"case{number}")
        case.damage(place)
        yield try_case(place, case)
        shutil.rmtree(place.folder)


def all_cases() -> list[Case]:
    from tests.torture import bad_data, bad_folders, bad_run, bad_tables

    return [case for module in (bad_data, bad_tables, bad_run, bad_folders) for case in module.cases()]


@dataclass(frozen=True)
class Outcome:
    """How a stage took its input."""

    code: int  # exit code, or minus the signal
    err: str
    seconds: float  # by the clock
    processor_s: float  # of its own and of the processes that it waited for
    grown_mb: float  # at most, beyond what it began with


def try_case(place: Place, case: Case) -> Row:
    before = listing(place.folder)
    outcome = call(place.folder, [case.arguments[0], "--config", "tiny.yaml", *case.arguments[1:]])
    wrong = []
    if case.kind == "good_inputs":
        if outcome.code != 0:
            wrong.append(f"exit code {outcome.code}: {outcome.err[-900:]}")
        elif case.right is not None and not case.right(place):
            wrong.append("it was not read right")
        return Row(case.kind, case.what, "; ".join(wrong), "", outcome.seconds)
    if outcome.code != 1:
        wrong.append(f"exit code {outcome.code}")
    one_line = len(outcome.err.splitlines()) == 1 and outcome.err.startswith(f"{case.arguments[0]}: ")
    if not one_line or "Traceback" in outcome.err:
        wrong.append(f"no single sentence: {outcome.err[-900:]}")
    if len(outcome.err) > LONGEST_SENTENCE + 100:
        wrong.append(f"a sentence of {len(outcome.err)} letters")
    wrong += [f"does not say {pattern}" for pattern in case.says if not re.search(pattern, outcome.err)]
    if outcome.processor_s > LONGEST_S:
        wrong.append(f"took {outcome.processor_s:.1f} s of a processor")
    if outcome.seconds > min(HANGS_S, LONGEST_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))):
        wrong.append(f"took {outcome.seconds:.1f} s")
    if outcome.grown_mb > MOST_MEMORY_MB:
        wrong.append(f"took {outcome.grown_mb:.0f} MB")
    changed = {name for name, _ in before ^ listing(place.folder)}
    if changed := sorted(name for name in changed if not LEFT_BEHIND.fullmatch(name)):
        wrong.append(f"changed {', '.join(changed)[:200]}")
    return Row(case.kind, case.what, "; ".join(wrong), " ".join(outcome.err.split())[:400], outcome.seconds)


def call(folder: pathlib.Path, arguments: list[str]) -> Outcome:
    """A stage in a child, and all that was said on stderr, by Python or by a library below it; killed when it hangs."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as first:
        began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            end_with_parent()
            os.pwrite(first.fileno(), str(memory_mb()).encode(), 0)  # less than what it was forked from has
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            child(folder, arguments)
        ended, status, used = os.wait4(pid, os.WNOHANG)
        while not ended:
            if time.monotonic() - began > HANGS_S:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.002)
            ended, status, used = os.wait4(pid, os.WNOHANG)
        seconds = time.monotonic() - began
        with contextlib.suppress(ProcessLookupError):  # workers that it left
            os.killpg(pid, signal.SIGKILL)
        text = os.pread(err.fileno(), 2**20, 0).decode("utf-8", "replace")
        grown_mb = used.ru_maxrss / 1024 - float(first.read())
    return Outcome(os.waitstatus_to_exitcode(status), text, seconds, used.ru_utime + used.ru_stime, grown_mb)


def child(folder: pathlib.Path, arguments: list[str]) -> None:
    """As the interpreter would do it with `python -m pipeline WORDS`; to the end of the process."""
    code, inherited = 70, set(multiprocessing.active_children())  # those are the parent's: neither to kill nor to join
    try:
        os.chdir(folder)
        stay_on_the_cpu()
        code = main(arguments)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:  # a bug
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):  # whatever it is, a fork of the tests must not go on with them
            for worker in set(multiprocessing.active_children()) - inherited:
                worker.terminate()
                worker.join()  # so that its time is counted
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def listing(folder: pathlib.Path) -> set[tuple[str, tuple[int, ...]]]:
    """Name, kind, size, time and number of all below a folder; times of folders aside."""
    entries = set()
    for path in folder.rglob("*"):
        about = path.lstat()
        same = (about.st_mode,) if path.is_dir() else (about.st_mode, about.st_size, about.st_mtime_ns, about.st_ino)
        entries.add((str(path.relative_to(folder)), same))
    return entries


def memory_mb() -> float:
    """What of this process is in memory now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def some(cases: list[Case], seed: int, count: int) -> list[Case]:
    """A few of them, for a quick look."""
    return random.Random(seed).sample(cases, min(count, len(cases)))
