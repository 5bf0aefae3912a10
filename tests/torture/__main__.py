"""`make torture`: kills, faults and bad inputs on a tiny competition; a table, and its figures as one JSON object.

    python -m tests.torture                  all of it: 9 minutes on two cores
    python -m tests.torture --short          a few of each
    python -m tests.torture --seed 7         other moments for the kills; without it 0
    python -m tests.torture kills faults     only these
"""
import argparse
import functools
import pathlib
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator

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
    with tempfile.TemporaryDirectory(prefix="torture.") as name:
        folder = pathlib.Path(name)
        places = functools.cache(lambda: Places(folder / "places"))  # of both rooms, made when the first asks for it
        all_rooms: dict[str, Callable[[], Iterator[Row]]] = {
            "kills": lambda: kills.rows(places(), random.Random(args.seed), steps, others),
            "faults": lambda: faults.rows(places(), refusals),
            "inputs": lambda: inputs_of(folder, args.seed, args.short),
        }
        for room in ROOMS:
            if room in rooms:
                rows += shown(room, all_rooms[room])
    print(f"\n{time.monotonic() - began:.0f} s, seed {args.seed}.\n")
    print_table(rows)
    return 0 if all(row.ok for row in rows) else 1


def shown(room: str, rows_of: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a room, each told as it comes: a dot, or what is wrong."""
    for row in rows_or_failure(room, rows_of):
        print("." if row.ok else f"\nBAD {row.what}: {row.problem}\n", end="", flush=True)
        yield row


def rows_or_failure(room: str, rows_of: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """An exception ends a room, as a row that is not well, but neither the other rooms nor the table."""
    try:
        yield from rows_of()
    except Exception:
        yield Row(room, f"the whole room of {room}", f"the harness failed: {traceback.format_exc()[-1500:]}")


def inputs_of(folder: pathlib.Path, seed: int, short: bool) -> Iterator[Row]:
    demo = folder / "competition"
    demo_data.run(demo, cars=4, test_cars=1)
    cases = inputs.some(inputs.all_cases(), seed, 20) if short else None
    return inputs.try_inputs(demo, folder / "inputs", cases)


if __name__ == "__main__":
    sys.exit(main())
