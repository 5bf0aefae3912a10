"""`make torture`: kills, faults and bad inputs on a tiny competition; a table, and its figures as one JSON object.

    python -m tests.torture                  all of it: some 10 minutes on two cores
    python -m tests.torture --short          a few of each
    python -m tests.torture --seed 7         other moments for the kills; default: 0
    python -m tests.torture kills faults     only these
"""
import argparse
import itertools
import multiprocessing
import multiprocessing.connection
import pathlib
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.synthetic import write_competition
from tests.torture import faults, inputs, kills
from tests.torture.place import Places
from tests.torture.table import Row, figures_of, print_table
from tests.torture.warm import end_with_parent

Rows = Callable[[], Iterator[Row]]
SUITES = ("kills", "faults", "inputs")
# Steps to die at, other deaths a stage, and steps to refuse of a long stage (of the others each, if not short).
FULL, SHORT = (10, 6, 12), (2, 1, 1)
REQUIRED = {"kills": ("kills", 100), "inputs": ("bad_inputs", 60)}  # suite -> what is counted, and the least number


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"some of {', '.join(SUITES)}; default: all")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    suites, (steps, others, refusals) = args.suites or SUITES, SHORT if args.short else FULL
    if unknown := set(suites) - set(SUITES):
        parser.error(f"{sorted(unknown)[0]} is none of {', '.join(SUITES)}")
    print(f"Seed {args.seed}.", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture.") as name:
        folder = pathlib.Path(name)
        if {"kills", "faults"} & set(suites):  # before the suites fork, so that both have it
            places = Places(folder / "places")
        all_suites: dict[str, Rows] = {
            "kills": lambda: kills.rows(places, random.Random(args.seed), steps, others),
            "faults": lambda: faults.rows(places, refusals, each=not args.short),
            "inputs": lambda: inputs_of(folder, args.seed, args.short),
        }
        rows = collect_rows({suite: all_suites[suite] for suite in SUITES if suite in suites})
    if not args.short:
        rows += check_counts(suites, figures_of(rows))
    print(f"\n{time.monotonic() - began:.0f} s, seed {args.seed}.\n")
    print_table(rows)
    return 0 if all(row.ok for row in rows) else 1


def collect_rows(suites: dict[str, Rows]) -> list[Row]:
    """Return the rows of all suites, one suite after another; print each as it comes: a dot, or what is wrong.

    The suites work at once, each in a process of its own that does one thing at a time.
    """
    context = multiprocessing.get_context("fork")
    rows: dict[str, list[Row]] = {suite: [] for suite in suites}
    suite_of: dict[Any, str] = {}  # by its pipe
    for suite, rows_of in suites.items():
        ours, theirs = context.Pipe(duplex=False)
        context.Process(target=send_rows, args=(suite, rows_of, theirs)).start()
        theirs.close()
        suite_of[ours] = suite
    while suite_of:
        for pipe in multiprocessing.connection.wait(list(suite_of)):
            try:
                row = pipe.recv()
            except EOFError:
                row = failed(suite_of[pipe], "its process died")
            if row is not None:
                rows[suite_of[pipe]].append(row)
                print("." if row.ok else f"\nBAD {row.what}: {row.problem}\n", end="", flush=True)
            if row is None or row.what == whole_suite(suite_of[pipe]):
                del suite_of[pipe]
    return list(itertools.chain.from_iterable(rows.values()))


def send_rows(suite: str, rows_of: Rows, pipe: Any) -> None:
    """Send the rows, and None at the end. An exception ends this suite, as a row that is not ok, but no other suite."""
    end_with_parent()
    try:
        for row in rows_of():
            pipe.send(row)
        pipe.send(None)
    except Exception:
        pipe.send(failed(suite, traceback.format_exc()[-1500:]))


def failed(suite: str, why: str) -> Row:
    return Row(suite, whole_suite(suite), f"the harness failed: {why}")


def whole_suite(suite: str) -> str:
    return f"the whole suite of {suite}"


def check_counts(suites: Sequence[str], figures: dict[str, int]) -> Iterator[Row]:
    """Check that each suite tried enough cases; what was left out shows in no other row."""
    for suite in suites:
        if suite in REQUIRED:
            kind, least = REQUIRED[suite]
            made = figures.get(kind, 0)
            yield Row("asked", f"at least {least} {kind}: {made}", "" if made >= least else f"only {made} were made")


def inputs_of(folder: pathlib.Path, seed: int, short: bool) -> Iterator[Row]:
    demo = folder / "competition"
    write_competition.main(demo, cars=4, test_cars=1)
    cases = inputs.some(inputs.all_cases(), seed, 20) if short else None
    return inputs.try_inputs(demo, folder / "inputs", cases)


if __name__ == "__main__":
    sys.exit(main())
