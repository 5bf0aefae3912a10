"""`make torture`: kills, faults and bad inputs on a tiny competition; a table, and its figures as one JSON object.

    python -m tests.torture                  all of it: 15 minutes on two cores
    python -m tests.torture --short          a few of each
    python -m tests.torture --seed 7         other moments for the kills; without it 0
    python -m tests.torture kills faults     only these
"""
import argparse
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator

from pipeline.stages import demo_data
from tests.torture import faults, inputs, kills
from tests.torture.place import Places
from tests.torture.table import Row, print_table

ROOMS = ("kills", "faults", "inputs")
# Steps to die at, other deaths a stage, and steps to refuse: enough for 120 kills in some 8 minutes.
FULL, SHORT = (10, 6, 3), (2, 1, 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; without it all")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rooms, (steps, others, refusals) = args.rooms or ROOMS, SHORT if args.short else FULL
    if unknown := set(rooms) - set(ROOMS):
        parser.error(f"{sorted(unknown)[0]} is none of {', '.join(ROOMS)}")
    print(f"Seed {args.seed}.")
    began, rows = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory(prefix="torture.") as folder:
        if {"kills", "faults"} & set(rooms):
            places = Places(pathlib.Path(folder) / "places")
        if "kills" in rooms:
            rows += shown(kills.rows(places, random.Random(args.seed), steps, others))
        if "faults" in rooms:
            rows += shown(faults.rows(places, refusals))
        if "inputs" in rooms:
            rows += shown(inputs_of(pathlib.Path(folder), args.seed, args.short))
    print(f"\n{time.monotonic() - began:.0f} s, seed {args.seed}.\n")
    print_table(rows)
    return 0 if all(row.ok for row in rows) else 1


def shown(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, each told as it comes: a dot, or what is wrong."""
    for row in rows:
        print("." if row.ok else f"\nBAD {row.what}: {row.problem}\n", end="", flush=True)
        yield row


def inputs_of(folder: pathlib.Path, seed: int, short: bool) -> Iterator[Row]:
    demo = folder / "competition"
    demo_data.run(demo, cars=4, test_cars=1)
    cases = inputs.some(inputs.all_cases(), seed, 20) if short else None
    return inputs.try_inputs(demo, folder / "inputs", cases)


if __name__ == "__main__":
    sys.exit(main())
