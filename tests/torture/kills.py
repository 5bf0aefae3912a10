"""kill -9, at every step towards the disk, in the middle of writes, and at random moments; then the same command again.

What it must end with is what the undisturbed stage ended with, to the byte (see place.py for the times left aside).
"""
import dataclasses
import os
import pathlib
import random
import signal
import time
from collections.abc import Iterator

from tests.torture import warm
from tests.torture.place import STAGE, Places, Stage, evenly, longest_write, prepare, arguments_of
from tests.torture.table import Row
from tests.torture.warm import Ended, Plan

PREDICTING, ON_KAGGLE = STAGE["submit, predicting first"], STAGE["train on Kaggle"]
ROOT = pathlib.Path(__file__).parent.parent.parent
IN_A_ROW = 3  # kills at random moments, before a start is left alone


def rows(places: Places, rng: random.Random, most: int, at_random: int) -> Iterator[Row]:
    """most: steps of a stage before which to die, evenly among all of them; at_random: other deaths of each stage.

    At most 2, and 3 at random moments and 1 in a write, of the stages that stand aside; but twice as many other deaths
    of one that follows a session on Kaggle, which is most of its time.
    """
    for stage in places.stages:
        if stage.name == ON_KAGGLE.name:
            yield from kills_of(stage, places, rng, most + at_random, 2 * at_random)
        elif stage.aside:
            yield from kills_of(stage, places, rng, min(most, 2), min(at_random, 1))
        else:
            yield from kills_of(stage, places, rng, most, at_random)
        if stage.name == PREDICTING.name and at_random:
            yield killed_alone(places)


def kills_of(stage: Stage, places: Places, rng: random.Random, most: int, at_random: int) -> Iterator[Row]:
    count = len(places.steps[stage.name])
    for number in evenly(count, most):
        yield from killed(places, stage, [(f"before step {number + 1} of {count}", Plan(die_at=number))])
    for _ in range(-(-at_random // IN_A_ROW)):
        moments = sorted(rng.uniform(0, places.seconds[stage.name]) for _ in range(IN_A_ROW))
        plans = [(f"after {moment:.2f} s", Plan(die_after_s=moment)) for moment in moments]
        yield from killed(places, stage, plans)
    for _ in range(-(-at_random // 3)):
        size = int(longest_write(places, stage) * rng.random())
        plan = Plan(file_bytes=size, die_of_it=True)
        yield from killed(places, stage, [(f"in a write, after {size} bytes of the file", plan)])


def killed(places: Places, stage: Stage, plans: list[tuple[str, Plan]]) -> Iterator[Row]:
    """One place, killed by these plans one after another, and then left alone: a row for each that came to pass.

    A start that ends by itself before its moment is no kill, and not counted as one. When it fails, or ends where a
    plan must have met it, that is the problem of all rows.
    """
    began = time.monotonic()
    with places.copy(stage) as place, places.kaggle() as kaggle:
        came_to_pass, problem = [], ""
        for what, plan in plans:
            ended = places.run(place, stage, plan, kaggle)
            if ended.died:
                came_to_pass.append(f"{what}, {ended.steps[-1]}" if ended.steps else what)
            problem = problem or not_as_planned(what, plan, ended)
        last = places.run(place, stage, kaggle=kaggle)
        problem = problem or (f"{last.summary()}: {last.err[-600:]}" if last.code else places.difference(place, stage))
        if stage.at_kaggle and kaggle.submissions() != 1:
            problem += f" Kaggle has it {kaggle.submissions()} times."
    seconds = (time.monotonic() - began) / max(1, len(came_to_pass))
    for what in came_to_pass:
        yield Row("kills", f"{stage.name}: killed {what}", problem, seconds=seconds)
    if not came_to_pass:
        missed = ", ".join(what for what, _ in plans)
        yield Row("not_killed", f"{stage.name}: it had ended before it was killed {missed}", problem, seconds=seconds)


def killed_alone(places: Places) -> Row:
    """The prediction that it started, a process of its own, gets a SIGTERM then (runtime/launch.py).

    Until that process has ended, a start may be refused; it continues the shards of that one.
    """
    with places.copy(PREDICTING) as place, places.kaggle() as kaggle:

        def prepared() -> None:
            prepare(dataclasses.replace(PREDICTING, before=None), kaggle)
            # As warm.py has it of all others: no commit, one thread, and the CPU.
            os.environ.update(PYTHONPATH=str(ROOT), GIT_DIR="/nowhere", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")

        first = warm.start(place, arguments_of(PREDICTING), Plan(), prepared)
        began = time.monotonic()
        while not (place / "submissions/.tiny.shards/00000.csv.gz").exists() and waits(began):
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        problem = "" if os.waitpid(first.pid, 0)[1] == signal.SIGKILL else "it was not killed"
        last = warm.run(place, arguments_of(PREDICTING), before=prepared)
        while "is being predicted by another process" in last.err and waits(began):
            time.sleep(0.1)
            last = warm.run(place, arguments_of(PREDICTING), before=prepared)
        for pipe in first.pipes:
            os.close(pipe)
        problem = problem or (f"{last.summary()}: {last.err[-600:]}" if last.code else "")
        problem = problem or places.difference(place, PREDICTING)
        if kaggle.submissions() != 1:
            problem += f" Kaggle has it {kaggle.submissions()} times."
    what = f"{PREDICTING.name}: killed while its prediction, a process of its own, runs"
    return Row("kills", what, problem, seconds=time.monotonic() - began)


def waits(began: float) -> bool:
    return time.monotonic() - began < warm.LONGEST_S


def not_as_planned(what: str, plan: Plan, ended: Ended) -> str:
    if ended.died:
        return ""
    if ended.code:
        return f"{what}: not killed, but {ended.summary()}: {ended.err[-600:] or 'no message'}"
    return "" if plan.die_after_s is not None else f"{what}: it was not killed, and ended well"
