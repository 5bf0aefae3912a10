"""Disks that are full or may not be written, workers that die, second starts, clocks and configs that change.

A stage must then say so in one sentence and leave with 1, or not be harmed at all; and when the trouble is over, the
same command must end as if there had been none.
"""
import ctypes
import dataclasses
import errno
import os
import pathlib
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.data import image_stream, loader, tiles
from pipeline.model.ema import Ema
from tests.torture import clocks, warm
from tests.torture.place import STAGE, Places, Stage, contents, evenly, longest_write, prepare, arguments_of
from tests.torture.table import NOT_HERE, Row
from tests.torture.warm import Ended, Plan

FULL, READ_ONLY = errno.ENOSPC, errno.EROFS
PAGE_BYTES = 4096
ONE_WORKER = ("--set", "data.workers=1")
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC_PRIVATE = 0x20000, 1, 32, 4096, 16384 | 1 << 18


def rows(places: Places, most: int, each: bool) -> Iterator[Row]:
    """most: steps towards the disk of a stage at which to refuse, evenly among all of them.

    each: all steps of the stages that are not long, in the place of `most` of them.
    """
    for stage in places.stages:
        if stage.aside:
            continue
        yield from refused(places, stage, None if each and not stage.is_long else most)
        for fault in (full_within_a_write, second_start, on_a_read_only_disk):
            yield attempted(fault, places, stage)
        for quarters in (0, 2):
            yield attempted(on_a_small_disk, places, stage, quarters)
    for stage in places.stages:
        if stage.name in ("train", "refine", "validate", "predict"):
            for trouble in (worker_dies, worker_without_memory, little_shared_memory):
                yield attempted(trouble, places, stage)
    if STAGE["train"] in places.stages:
        for surprise in (config_is_edited, killed_with_a_worker):
            yield attempted(surprise, places)
    if STAGE["predict"] in places.stages:
        yield attempted(shards_that_stay, places)
    for surprise in clocks.of(places):
        yield attempted(surprise, places)


def attempted(fault: Callable[..., Row], places: Places, *given: Any) -> Row:
    """The row of a fault; also when the harness itself fails at it, so that all others are tried."""
    try:
        return fault(places, *given)
    except Exception:
        what = ": ".join([stage.name for stage in given[:1]] + [fault.__name__, *map(str, given[1:2])])
        return Row("faults", what, f"the harness failed: {traceback.format_exc()[-1500:]}")


# --- the disk -------------------------------------------------------------------------------------


def refused(places: Places, stage: Stage, most: int | None) -> Iterator[Row]:
    """A step towards the disk is refused, as by a disk that is full, and that and all later ones, as by one that may
    not be written; and a file that is opened is refused what is written to it. For `most` steps, None for each."""
    steps = places.steps[stage.name]
    numbers = different(steps)
    if most is not None:
        numbers = [numbers[i] for i in evenly(len(numbers), most)]
    for number in numbers:
        where = f"step {number + 1} of {len(steps)}"
        for error, and_later in ((FULL, ""), (READ_ONLY, " and all later")):
            plan = Plan(fail_at=number, errno=error, for_good=bool(and_later))
            yield attempted(tried, places, stage, f"{errno.errorcode[error]} at {where}{and_later}", plan)
        if steps[number].startswith("open ") and not steps[number].endswith("lock"):
            plan = Plan(file_bytes=0, limit_at=number)
            yield attempted(tried, places, stage, f"a full disk at the first write after {where}", plan)


def different(steps: list[str]) -> list[int]:
    """Numbers of the steps that are not as one before: a folder that is there, the second part of many and so on."""
    seen, numbers = set[str](), []
    for number, step in enumerate(steps):
        kind = re.sub(r"\d+", "#", step)
        if kind in seen and ("#" in kind or kind.startswith("os.mkdir")):
            continue
        seen.add(kind)
        numbers.append(number)
    return numbers


def full_within_a_write(places: Places, stage: Stage) -> Row:
    size = min(40, longest_write(places, stage) - 1)
    return tried(places, stage, f"files end in the middle of a write, at {size} bytes", Plan(file_bytes=size))


def tried(places: Places, stage: Stage, what: str, plan: Plan) -> Row:
    """A fault that the process meets from within."""
    with places.copy(stage) as place, places.kaggle() as kaggle:
        ended = places.run(place, stage, plan, kaggle)
        at = max((at for at in (plan.fail_at, plan.limit_at) if at is not None), default=-1)
        met = f"{what}, {ended.steps[at]}" if 0 <= at < len(ended.steps) else what
        row = row_of(places, stage, met, ended, place, kaggle if stage.at_kaggle else None)
        if at >= len(ended.steps):
            return but(row, f"it did not come to pass: the stage ended after {len(ended.steps)} steps")
        if plan.file_bytes is not None and ended.code != 1:
            return but(row, "no write was refused")
        return row


def but(row: Row, problem: str) -> Row:
    """The row, with what speaks against believing it; what was wrong with it already comes first."""
    return dataclasses.replace(row, problem="; ".join(filter(None, (row.problem, problem))))


def row_of(places: Places, stage: Stage, what: str, ended: Ended, place: pathlib.Path, kaggle=None) -> Row:
    """The row of a disturbed start; the place is then left alone and compared."""
    problem = ended.complaint(stage.name) if ended.code else ""
    if not ended.code and "could not be removed; it is no longer needed" not in ended.out:  # a good end
        problem = places.difference(place, stage)
    last = places.run(place, stage, kaggle=kaggle)
    problem = problem or (f"then {last.summary()}: {last.err[-600:]}" if last.code else "")
    problem = problem or places.difference(place, stage)
    if kaggle and kaggle.submissions() != 1:
        problem += f" Kaggle has it {kaggle.submissions()} times."
    return Row("faults", f"{stage.name}: {what}", problem, ended.err.strip() if ended.code == 1 else "", ended.seconds)


def in_a_mount(place: pathlib.Path, options: str, flags: int = 0) -> None:
    """In a child: a file system of its own in the place of a folder. OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None))
    where = bytes(place)
    if options:
        check(libc.mount(b"tmpfs", where, b"tmpfs", flags, options.encode()))
    else:
        check(libc.mount(where, where, None, MS_BIND, None))
        check(libc.mount(b"none", where, None, MS_BIND | MS_REMOUNT | MS_RDONLY, None))


def may_mount(folder: pathlib.Path) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            in_a_mount(folder, "size=1m")
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def on_a_small_disk(places: Places, stage: Stage, quarters: int) -> Row:
    """Run on a real disk with space for so many quarters of what the stage writes; then enlarge it and run again."""
    what = f"a real disk with space for {quarters}/4" if quarters else "a real disk without space"
    if not may_mount(places.folder):
        return not_here(stage, what)
    with places.copy(stage) as place, places.kaggle() as kaggle:
        before, after = pages_bytes(place), pages_bytes(places.after(stage))
        limit_bytes = before + (after - before) * quarters // 4 // PAGE_BYTES * PAGE_BYTES

        def mounted() -> None:
            original = place.with_name(f"{place.name}.original")
            os.rename(place, original)
            place.mkdir()
            in_a_mount(place, f"size={limit_bytes}")
            shutil.copytree(original, place, dirs_exist_ok=True)
            os.chdir(place)
            prepare(stage, kaggle if stage.at_kaggle else None)

        def saved() -> None:
            """What was left there, for the start after it."""
            shutil.copytree(place, place.with_name(f"{place.name}.left"))

        ended = warm.run(place, arguments_of(stage), Plan(), mounted, saved)
        shutil.rmtree(place.with_name(f"{place.name}.original"))
        left = place.with_name(f"{place.name}.left")
        if not left.exists():
            return Row("faults", f"{stage.name}: {what}", f"{ended.summary()}: {ended.err[-600:]}")
        shutil.rmtree(place)
        left.rename(place)
        row = row_of(places, stage, what, ended, place, kaggle if stage.at_kaggle else None)
        sizes = f"it wrote {after - before} bytes into a disk of {limit_bytes - before}"
        return row if ended.code == 1 else but(row, sizes)


def pages_bytes(folder: pathlib.Path) -> int:
    """What the files of a folder take of a tmpfs, which counts in pages."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in sizes)


def on_a_read_only_disk(places: Places, stage: Stage) -> Row:
    what = "a real disk that may only be read"
    if not may_mount(places.folder):
        return not_here(stage, what)
    with places.copy(stage) as place, places.kaggle() as kaggle:

        def mounted() -> None:
            in_a_mount(place, "")
            os.chdir(place)
            prepare(stage, kaggle if stage.at_kaggle else None)

        ended = warm.run(place, arguments_of(stage), Plan(), mounted)
        row = row_of(places, stage, what, ended, place, kaggle if stage.at_kaggle else None)
        return row if ended.code == 1 else but(row, "it wrote where nothing can be written")


def not_here(stage: Stage, what: str) -> Row:
    message = "this user may not mount; the faults at each step stand for it"
    return Row(NOT_HERE, f"{stage.name}: {what}", message=message)


# --- two at once ----------------------------------------------------------------------------------


def second_start(places: Places, stage: Stage) -> Row:
    """The first one is stopped (SIGSTOP) while it holds the lock; the second must say so and leave the files alone."""
    what = f"{stage.name}: started twice at once"
    with places.copy(stage) as place, places.kaggle() as kaggle:
        first = warm.start(place, arguments_of(stage), Plan(stop_at_lock=True), lambda: prepare(stage, kaggle))
        _, status = os.waitpid(first.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            _, err, _ = map(warm.drained, first.pipes)
            code = os.waitstatus_to_exitcode(status)
            return Row("faults", what, f"it took no lock, and ended with {code}: {err[-300:] or 'no message'}")
        before = contents(place)
        second = places.run(place, stage, kaggle=kaggle)
        problem = second.complaint(stage.name) or ("" if contents(place) == before else "it changed files of the first")
        if "another" not in second.err.lower():
            problem = problem or f"it did not say that another is at work: {second.err}"
        os.kill(first.pid, signal.SIGCONT)
        ended = first.wait()
        problem = problem or (f"the first ended with {ended.code}: {ended.err[-300:]}" if ended.code else "")
        problem = problem or places.difference(place, stage)
        if stage.at_kaggle and kaggle.submissions() != 1:
            problem += f" Kaggle has it {kaggle.submissions()} times."
    return Row("faults", what, problem, second.err.strip(), second.seconds)


# --- workers --------------------------------------------------------------------------------------


def with_workers(places: Places, stage: Stage, what: str, worker: Callable[[], None], *arguments: str) -> Row:
    """A stage with a process that reads images, to which something happens; then without."""
    with places.copy(stage) as place:

        def prepared() -> None:
            prepare(stage, None)
            worker()

        ended = warm.run(place, [*arguments_of(stage), *ONE_WORKER, *arguments], Plan(), prepared)
        row = row_of(places, stage, what, ended, place)
        return row if ended.code else but(row, "it went on as if nothing were missing")


def in_each_read(do: Callable[[], None]) -> Callable[[], None]:
    """To happen in a worker when it is asked for its third batch of images or so."""

    def patch() -> None:
        for kind in (loader.TrainingDataset, loader.ValidationDataset, tiles.TileDataset, image_stream.ImagesAtScales):
            kind.__getitem__ = disturbed(kind.__getitem__)  # type: ignore[method-assign]

    def disturbed(read: Callable) -> Callable:
        asked: list[object] = []

        def read_or_not(self: object, item: object) -> object:
            asked.append(item)
            if len(asked) == 6:
                do()
            return read(self, item)

        return read_or_not

    return patch


def worker_dies(places: Places, stage: Stage) -> Row:
    patch = in_each_read(lambda: os.kill(os.getpid(), signal.SIGKILL))
    return with_workers(places, stage, "the worker that reads is killed", patch)


def worker_without_memory(places: Places, stage: Stage) -> Row:
    """Raise MemoryError as Python does; the row above has what the system does, a kill."""

    def fail() -> None:
        raise MemoryError

    return with_workers(places, stage, "the worker that reads has no more memory", in_each_read(fail))


def little_shared_memory(places: Places, stage: Stage) -> Row:
    """16 MB, and batches that need more."""
    what = "/dev/shm of 16 MB"
    if not may_mount(places.folder):
        return not_here(stage, what)

    with places.copy(stage) as place:

        def prepared() -> None:
            prepare(stage, None)
            in_a_mount(pathlib.Path("/dev/shm"), "size=16m")
            pathlib.Path("/dev/shm/others").write_bytes(bytes(16_700_000))  # what other programs have there

        ended = warm.run(place, [*arguments_of(stage), *ONE_WORKER], Plan(), prepared)
        row = row_of(places, stage, what + ", nearly full", ended, place)
        return row if ended.code else but(row, "it went on as if nothing were missing")


def killed_with_a_worker(places: Places) -> Row:
    """A worker outlives its killed trainer by seconds; the same command must not have to wait for that."""
    stage = STAGE["train"]
    with places.copy(stage) as place:
        after_the_third_step = kill_at_step(3)
        arguments = [*arguments_of(stage), *ONE_WORKER]
        first = warm.run(place, arguments, Plan(), lambda: (prepare(stage, None), after_the_third_step()))
        at_once = warm.run(place, arguments, Plan(), lambda: prepare(stage, None))
        problem = "" if first.died else "it was not killed"
        problem = problem or (f"then exit code {at_once.code}: {at_once.err[-300:]}" if at_once.code else "")
        problem = problem or places.difference(place, stage, workers=False)
    return Row("faults", "train: killed, and started again before its worker has noticed", problem)


def kill_at_step(number: int) -> Callable[[], None]:
    """Patches training so that it is killed in this step, counted from 0."""

    def patch() -> None:
        update = Ema.update

        def update_and_die(self: Ema, step: int) -> None:
            update(self, step)
            if step == number:
                os.kill(os.getpid(), signal.SIGKILL)

        Ema.update = update_and_die  # type: ignore[method-assign]

    return patch


# --- settings, parts ----------------------------------------------------------------------


def config_is_edited(places: Places) -> Row:
    """In the middle of a run that is killed later: refused by name, and with the old config it goes on."""
    stage = STAGE["train"]
    with places.copy(stage) as place:
        yaml = place / "tiny.yaml"
        before = yaml.read_text()

        def edited() -> None:
            prepare(stage, None)
            update = Ema.update

            def update_and_edit(self: Ema, step: int) -> None:
                update(self, step)
                if step == 2:
                    yaml.write_text(before.replace("learning_rate: 1e-2", "learning_rate: 2e-2"))
                if step == 5:
                    os.kill(os.getpid(), signal.SIGKILL)

            Ema.update = update_and_edit  # type: ignore[method-assign]

        first = warm.run(place, arguments_of(stage), Plan(), edited)
        refused_start = places.run(place, stage)
        problem = "" if first.died else "it was not killed"
        problem = problem or refused_start.complaint("train")
        if "train.learning_rate" not in refused_start.err:
            problem = problem or f"it did not name what changed: {refused_start.err}"
        yaml.write_text(before)
        last = places.run(place, stage)
        problem = problem or (f"then exit code {last.code}: {last.err[-300:]}" if last.code else "")
        problem = problem or places.difference(place, stage)
    return Row("faults", "train: its config is edited in the middle", problem, refused_start.err.strip())


def shards_that_stay(places: Places) -> Row:
    """Shards of another threshold that can be neither moved nor removed must not get into a submission; later they are
    set aside, and not lost."""
    stage = STAGE["predict"]
    with places.copy(stage) as place:
        threshold = place / "runs/tiny/threshold.json"
        saved = threshold.read_text()
        threshold.write_text('{"threshold": 0.9}')
        dying = Plan(die_at=places.steps["predict"].index("open submissions/.tiny.shards/.00002.csv.gz.draft"))
        first = places.run(place, stage, dying)
        threshold.write_text(saved)

        def nothing_goes() -> None:
            prepare(stage, None)
            os.unlink = os.remove = os.rename = refuse  # type: ignore[assignment]

        second = warm.run(place, arguments_of(stage), Plan(), nothing_goes)
        last = places.run(place, stage)
        aside = list((place / "submissions").glob(".tiny.shards.*"))
        problem = "" if first.died else "it was not killed"
        problem = problem or second.complaint("predict")
        problem = problem or (f"then {last.summary()}: {last.err[-600:]}" if last.code else "")
        problem = problem or ("" if len(aside) == 1 and len(list(aside[0].glob("0*.gz"))) == 2 else "parts are lost")
        for folder in aside:
            shutil.rmtree(folder)
        problem = problem or places.difference(place, stage)
    return Row("faults", "predict: shards of another threshold stay where they are", problem, second.err.strip())


def refuse(path: object, target: object = None, *, dir_fd: int | None = None) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)
