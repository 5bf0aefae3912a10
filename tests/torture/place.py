"""The places where stages are tried: a tiny competition, every stage's own before and after, and what must be alike.

Two ends of a run are alike when every file has the same bytes, but for times: of a clock or of how fast it went.

    log.jsonl                       without images_per_s, tiles_per_s, waited_fraction, seconds
    last.pt last.previous.pt        value by value, without seconds, epoch_watch and the same four of each row of log
    ledger.csv                      without time, and without Kaggle's number, which counts uploads that were cut off
    tb/                             left out: TensorBoard stamps each point with the clock
    .lock                           left out: empty files

The files of a refiner and of a short training, with `refiner.` or `short.` before these names, are treated alike.
"""
import contextlib
import csv
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from pipeline import carvana
from pipeline.synthetic.fake_kaggle import FakeKaggle
from pipeline.submission.reader import read_rows
from tests.torture import warm
from tests.torture.warm import Ended, Plan

TIMES = ("images_per_s", "tiles_per_s", "waited_fraction", "seconds")  # of a row of the log
TIMES_OF_LAST = ("seconds", "epoch_watch")
CONFIG = """\
data: {scale: 8, folds: 2, workers: 0, cache: true}
model: {width: 8, depth: 2, patch: 2}
train: {epochs: 2, batch_size: 4, learning_rate: 1e-2, ema_decay: 0.9, checkpoint_steps: 3}
predict: {tta: none, batch_size: 2, rows_per_shard: 4}
"""
REFINE = (
    "refine.epochs=2", "refine.batch_size=4", "refine.tiles_per_image=2", "refine.tile_px=128", "refine.margin_px=4",
    "refine.scale=2", "refine.width=4", "refine.depth=1", "refine.patch=4", "refine.checkpoint_steps=3",
)  # fmt: skip
CARS, TEST_CARS = 2, 1
MINE = "mine.csv.gz"


@dataclass(frozen=True)
class Stage:
    """A start that is tried. aside: the stages after it do not build on it, and it is killed alone, and seldom."""

    name: str
    arguments: tuple[str, ...] = ()
    before: Callable[[], Any] | None = None
    at_kaggle: bool = False
    is_long: bool = False  # seconds a start: then some of its steps are tried, and of the others each
    aside: str = ""  # the stage's own name, where `name` describes a special case


STAGES = (
    Stage("demo-data, really drawn", ("--cars", "1", "--test-cars", "1"), warm.as_no_module, aside="demo-data"),
    Stage("demo-data", ("--cars", str(CARS), "--test-cars", str(TEST_CARS)), warm.draw_from_memory),
    Stage("train on Kaggle", ("--on", "kaggle", "--gpu", "none"), warm.send_small_checkout, True, aside="train"),
    Stage("shrink", ("--out", "half", "--scale", "8")),
    Stage("folds"),
    Stage("train", is_long=True),
    Stage("refine", tuple(word for setting in REFINE for word in ("--set", setting)), is_long=True),
    Stage("validate"),
    Stage("threshold"),
    Stage("submit, predicting first", (), warm.run_stages_within, at_kaggle=True, aside="submit"),
    Stage("predict"),
    Stage("submit", ("--file", MINE), at_kaggle=True),
    Stage("report", is_long=True),
)
STAGE = {stage.name: stage for stage in STAGES}


class Places:
    """The folder of all places: `before/STAGE` and `after/STAGE`, made by undisturbed stages.

    only: the stages to be disturbed, in their order; what comes after the last of them is not made.
    """

    def __init__(self, folder: pathlib.Path, only: tuple[str, ...] = ()):
        self.folder, self.numbers = folder.resolve(), iter(range(10**9))
        self.steps: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self.stages = [stage for stage in STAGES if not only or stage.name in only]
        warm.be_ready()
        warm.draw_once(CARS, TEST_CARS)
        warm.make_checkout_once(self.folder / "checkout")
        place = self.folder / "first"
        (place / "configs").mkdir(parents=True)
        (place / "home").mkdir()
        (place / "tiny.yaml").write_text(CONFIG)
        for stage in STAGES:
            shutil.copytree(place, self.before(stage))
            if stage.aside and only and stage.name not in only:
                continue
            if stage.aside:
                shutil.copytree(place, here := self.after(stage))
            else:
                here = place
            with self.kaggle() if stage.at_kaggle else contextlib.nullcontext() as kaggle:
                ended = self.run(here, stage, kaggle=kaggle)
            if ended.code:
                raise AssertionError(f"{stage.name} fails undisturbed: {ended.err}")
            self.steps[stage.name], self.seconds[stage.name] = ended.steps, ended.seconds
            if not stage.aside:
                shutil.copytree(place, self.after(stage))
            if stage.name == "demo-data":
                hand_in_the_solution(place)
            if only and stage.name == only[-1]:
                break

    def before(self, stage: Stage) -> pathlib.Path:
        return self.folder / "before" / stage.name

    def after(self, stage: Stage) -> pathlib.Path:
        return self.folder / "after" / stage.name

    @contextlib.contextmanager
    def copy(self, stage: Stage) -> Iterator[pathlib.Path]:
        """A place as it was before the stage, to be disturbed."""
        place = self.folder / f"try{os.getpid()}.{next(self.numbers)}"
        shutil.copytree(self.before(stage), place)
        yield place
        shutil.rmtree(place)

    def run(self, place: pathlib.Path, stage: Stage, plan: Plan = Plan(), kaggle: "Kaggle | None" = None) -> Ended:
        return warm.run(place, arguments_of(stage), plan, lambda: prepare(stage, kaggle))

    @contextlib.contextmanager
    def kaggle(self) -> Iterator["Kaggle"]:
        inbox = self.folder / f"inbox{os.getpid()}.{next(self.numbers)}"
        inbox.mkdir()
        with Kaggle(self.folder / "after" / "demo-data" / "demo", inbox) as server:
            yield server

    def difference(self, place: pathlib.Path, stage: Stage, workers: bool = True) -> str:
        """In what a place differs from the one that was left undisturbed; "" when in nothing but times.

        workers: False where it may also differ in how many of them read.
        """
        return difference(contents(place, workers), contents(self.after(stage), workers))


def arguments_of(stage: Stage) -> list[str]:
    data = [] if "--on" in stage.arguments else ["--data", "demo"]  # Kaggle has its own
    return [stage.aside or stage.name, "--config", "tiny.yaml", *data, *stage.arguments]


def evenly(count: int, most: int) -> list[int]:
    """`most` of the numbers below `count`, with the first and the last."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(min(most, count))})


def longest_write(places: Places, stage: Stage) -> int:
    """Size of the largest file that a stage makes."""
    before, after = places.before(stage), places.after(stage)
    made = (path for path in after.rglob("*") if path.is_file() and not (before / path.relative_to(after)).exists())
    return max((path.stat().st_size for path in made), default=1)


def prepare(stage: Stage, kaggle: "Kaggle | None") -> None:
    os.environ["HOME"] = os.path.abspath("home")
    if kaggle:
        os.environ.update(kaggle.environment)
    if stage.before:
        stage.before()


def hand_in_the_solution(place: pathlib.Path) -> None:
    """A submission that is sure to be scored, as the tiny network's own may not be."""
    rows = [row[:2] for _, row in read_rows(place / "demo/solution.csv", carvana.CARVANA.solution_header)]
    lines = [",".join(row) + "\n" for row in [list(carvana.CARVANA.submission_header), *rows]]
    (place / MINE).write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


# --- what must be alike ---------------------------------------------------------------------------


def contents(place: pathlib.Path, workers: bool = True) -> dict[str, str]:
    """Each file of a place -> a digest of what it says, times aside, and without `workers` the setting data.workers."""
    digests = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        left_out = path.name.endswith("lock") or is_tensorboard(path) or name.startswith("home")
        if path.is_file() and not left_out:
            digests[name] = hashlib.sha256(timeless(path, workers)).hexdigest()
    return digests


def is_tensorboard(path: pathlib.Path) -> bool:
    return path.parent.name in ("tb", "refiner.tb", "short.tb")


def timeless(path: pathlib.Path, workers: bool = True) -> bytes:
    match path.name.removeprefix("refiner.").removeprefix("short."):
        case "config.yaml" if not workers:
            return plain(without_workers(yaml.safe_load(path.read_text())))
        case "best.pt" | "pt" if not workers:
            state = torch.load(path, map_location="cpu", weights_only=True)
            return plain(state | {"settings": without_workers(state["settings"])})
        case "log.jsonl":
            return repr([without_times(json.loads(line)) for line in path.read_text().splitlines()]).encode()
        case "last.pt" | "last.previous.pt" if zipfile.is_zipfile(path):  # not of a session whose stages do nothing
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = {key: value for key, value in state.items() if key not in TIMES_OF_LAST}
            settings = state["settings"] if workers else without_workers(state["settings"])
            return plain(state | {"settings": settings, "log": [without_times(row) for row in state["log"]]})
        case "ledger.csv":
            rows = list(csv.DictReader(io.StringIO(path.read_text())))
            known = [{key: cell for key, cell in row.items() if key != "time"} for row in rows]
            return repr([row | {"ref": bool(row["ref"])} for row in known]).encode()
    return path.read_bytes()


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMES}


def without_workers(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"data": {key: value for key, value in settings["data"].items() if key != "workers"}}


def plain(value: Any) -> bytes:
    """Nested values as bytes that are equal when the values are, to the last bit of each tensor."""
    if isinstance(value, torch.Tensor):
        return repr((value.dtype, value.shape)).encode() + value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return b"{" + b",".join(plain(key) + b":" + plain(item) for key, item in value.items()) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(plain, value)) + b"]"
    return repr(value).encode()


def difference(actual: dict[str, str], expected: dict[str, str]) -> str:
    missing, more = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
    other = sorted(name for name in actual.keys() & expected.keys() if actual[name] != expected[name])
    kinds = {"missing": missing, "too many": more, "other bytes": other}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in kinds.items() if names)


# --- Kaggle ---------------------------------------------------------------------------------------


class Kaggle:
    """The fake Kaggle in a process of its own: threads of a server and forks do not mix."""

    def __init__(self, folder: pathlib.Path, inbox: pathlib.Path):
        self.pipe, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.pipe.close()
            with FakeKaggle(folder, inbox) as server:
                theirs.send(server.environment())
                with contextlib.suppress(EOFError):
                    while True:
                        theirs.recv()
                        theirs.send(len(server.submissions) + sum(map(len, server.kernels.sessions.values())))
            os._exit(0)
        theirs.close()
        self.environment: dict[str, str] = self.pipe.recv()

    def submissions(self) -> int:
        """How many submissions it was handed in, and how many sessions it has started."""
        self.pipe.send("how many?")
        return int(self.pipe.recv())

    def __enter__(self) -> "Kaggle":
        return self

    def __exit__(self, *error: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pipe.close()
