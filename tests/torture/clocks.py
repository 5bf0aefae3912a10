"""A clock that jumps back by a day: while a stage works, and between a start that was killed and the next one.

Only Python's own clocks are set back, and only in the child: `time.time`, `time.time_ns`, `datetime.now`. That they
were read is seen in what the stage wrote.
"""
import datetime
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pipeline.kaggle import ledger
from tests.torture import warm
from tests.torture.place import MINE, STAGE, Kaggle, Places, prepare, arguments_of
from tests.torture.table import Row
from tests.torture.warm import Ended, Plan

DAY_S = 86_400
LEDGER = pathlib.Path("submissions/ledger.csv")


def of(places: Places) -> Iterator[Callable[[Places], Row]]:
    """Those of the stages that are tried; no other reads the time of day."""
    names = [stage.name for stage in places.stages]
    if "train" in names:
        yield back_in_training
    if "submit" in names:
        yield from of_submit
    if "folds" in names:
        yield back_in_download


def set_back() -> None:
    """In a child, from now on: who asks for the time of day hears that of a day ago."""
    real_s, real_ns, real = time.time, time.time_ns, datetime.datetime

    class Kind(type):
        def __instancecheck__(cls, thing: Any) -> bool:
            return isinstance(thing, real)

    class Late(real, metaclass=Kind):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return real.now(tz) - datetime.timedelta(days=1)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    time.time = lambda: real_s() - DAY_S
    time.time_ns = lambda: real_ns() - DAY_S * 10**9
    for module in list(sys.modules.values()):  # also where it was imported by its name
        if getattr(module, "__dict__", {}).get("datetime") is real:
            module.datetime = Late  # type: ignore[attr-defined]


def is_late(moment: datetime.datetime) -> bool:
    """Return whether it took the time from the clock that was set back."""
    behind = datetime.datetime.now(datetime.UTC) - moment
    return abs(behind.total_seconds() - DAY_S) < DAY_S / 4


# --- training, downloads --------------------------------------------------------------------------


def back_in_training(places: Places) -> Row:
    stage, steps = STAGE["train"], places.steps["train"]
    after_an_epoch = steps.index("os.rename runs/tiny/fold0/log.jsonl")
    with places.copy(stage) as place:
        ended = places.run(place, stage, Plan(do_at=after_an_epoch, do=set_back))
        problem = failed(ended) or places.difference(place, stage)
        (curves,) = (place / "runs/tiny/fold0/tb").iterdir()
        times = [event.wall_time for event in EventFileLoader(str(curves)).Load()]
        if not any(later < earlier - DAY_S / 2 for earlier, later in zip(times, times[1:])):
            problem = problem or "no curve shows that the clock jumped"
    return Row("faults", "train: the clock jumps back by a day after an epoch", problem, seconds=ended.seconds)


def back_in_download(places: Places) -> Row:
    """And a second download, by the right clock, has nothing to fetch."""
    stage = STAGE["folds"]
    with places.copy(stage) as place, places.kaggle() as kaggle:
        arguments = ["download", "--config", "tiny.yaml", "--data", "fetched"]
        manifest = place / "fetched/download.json"

        def at_second_file() -> None:
            prepare(stage, kaggle)
            from pipeline.kaggle import download

            remember = download.remember

            def remember_and_jump(*given: Any) -> None:
                remember(*given)
                if len(json.loads(manifest.read_text())) == 1:
                    set_back()

            download.remember = remember_and_jump

        ended = warm.run(place, arguments, before=at_second_file)
        again = warm.run(place, arguments, before=lambda: prepare(stage, kaggle))
        problem = failed(ended) or failed(again)
        if not problem:
            known = json.loads(manifest.read_text())
            late = [is_late(datetime.datetime.fromisoformat(about["verified"])) for about in known.values()]
            served = place / "demo"
            other = [name for name in known if (served / name).read_bytes() != (place / "fetched" / name).read_bytes()]
            problem = f"other bytes: {', '.join(other)}" if other else ""
            problem = problem or ("" if any(late) and not all(late) else "no file was verified by the other clock")
            problem = problem or ("" if "all files are there" in again.out else f"then it said: {again.out[-300:]}")
    return Row("faults", "download: the clock jumps back by a day after a file", problem, seconds=ended.seconds)


# --- submissions ----------------------------------------------------------------------------------


def back_in_submit(places: Places) -> Row:
    stage = STAGE["submit"]
    with places.copy(stage) as place, places.kaggle() as kaggle:
        ended = places.run(place, stage, Plan(do_at=0, do=set_back), kaggle)
        problem = failed(ended) or places.difference(place, stage) or handed_in(place, kaggle, late=[True])
    return Row("faults", "submit: the clock jumps back by a day", problem, seconds=ended.seconds)


def back_after_a_kill(places: Places) -> Row:
    """Kaggle has the file, and the ledger does not know it yet: it must be found, and not sent again."""
    stage = STAGE["submit"]
    with places.copy(stage) as place, places.kaggle() as kaggle:
        first = places.run(place, stage, dying_after_the_upload(places), kaggle)
        ended = places.run(place, stage, Plan(do_at=0, do=set_back), kaggle)
        problem = "" if first.died else "it was not killed"
        problem = problem or failed(ended) or places.difference(place, stage) or handed_in(place, kaggle, late=[False])
    return Row("faults", "submit: killed, and the clock jumps back by a day", problem, seconds=ended.seconds)


def back_with_force(places: Places) -> Row:
    """Submit the same content three times, distinguished by the time in the message; kill the third one midway."""
    stage = STAGE["submit"]
    arguments = [*arguments_of(stage), "--force"]
    with places.copy(stage) as place, places.kaggle() as kaggle:

        def forced(plan: Plan) -> Ended:
            return warm.run(place, arguments, plan, lambda: prepare(stage, kaggle))

        first = places.run(place, stage, kaggle=kaggle)
        second = forced(Plan(do_at=0, do=set_back))
        third = forced(dying_after_the_upload(places))
        last = forced(Plan(do_at=0, do=set_back))
        problem = failed(first) or failed(second) or ("" if third.died else "it was not killed") or failed(last)
        problem = problem or handed_in(place, kaggle, late=[False, True, False])
    return Row("faults", "submit: by force, killed, and the clock jumps back by a day", problem, seconds=last.seconds)


def dying_after_the_upload(places: Places) -> Plan:
    """Before the second time that the ledger is written."""
    writes = [number for number, step in enumerate(places.steps["submit"]) if step.endswith(".ledger.csv.draft")]
    return Plan(die_at=[number for number in writes if places.steps["submit"][number].startswith("open ")][1])


def handed_in(place: pathlib.Path, kaggle: Kaggle, late: list[bool]) -> str:
    """What is wrong with the ledger, which must have a row for each of `late`: whether the late clock made it."""
    rows = ledger.read(place / LEDGER)
    if kaggle.submissions() != len(late):
        return f"Kaggle has {MINE} {kaggle.submissions()} times, not {len(late)}"
    if [is_late(row.time) for row in rows] != late:
        return f"the ledger has the times {[str(row.time) for row in rows]}"
    if len({row.message for row in rows}) != len(rows) or len({row.ref for row in rows}) != len(rows):
        return "two rows of the ledger are of one submission"
    return "" if all(row.status == "complete" for row in rows) else "a row of the ledger is not complete"


def failed(ended: Ended) -> str:
    return f"{ended.summary()}: {ended.err[-600:] or 'no message'}" if ended.code else ""


of_submit = (back_in_submit, back_after_a_kill, back_with_force)
