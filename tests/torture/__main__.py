"""`make torture`: kills, faults and bad inputs on a tiny competition; a table, and its figures as one JSON object.

    python -m tests.torture                  all of it: some 10 minutes on two cores
    python -m tests.torture --short          a few of each
    python -m tests.torture --seed 7         other moments for the kills; without it 0
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
ROOMS = ("kills", "faults", "inputs")
# Steps to die at, other deaths a stage, and steps to refuse of a long stage (of the others each, if not short).
FULL, SHORT = (10, 6, 12), (2, 1, 1)
ASKED = {"kills": ("kills", 100), "inputs": ("bad_inputs", 60)}  # room -> what is counted, and at least how many


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; without it all")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rooms, (steps, others, refusals) = args.rooms or ROOMS, SHORT if args.short else FULL
    if unknown := set(rooms) - set(ROOMS):
        parser.error(f"{sorted(unknown)[0]} is none of {', '.join(ROOMS)}")
    print(f"Seed {args.seed}.", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture.") as name:
        folder = pathlib.Path(name)
        if {"kills", "faults"} & set(rooms):  # before the rooms part, so that both have it
            places = Places(folder / "places")
        all_rooms: dict[str, Rows] = {
            "kills": lambda: kills.rows(places, random.Random(args.seed), steps, others),
            "faults": lambda: faults.rows(places, refusals, each=not args.short),
            "inputs": lambda: inputs_of(folder, args.seed, args.short),
        }
        rows = shown({room: all_rooms[room] for room in ROOMS if room in rooms})
    if not args.short:
        rows += enough(rooms, figures_of(rows))
    print(f"\n{time.monotonic() - began:.0f} s, seed {args.seed}.\n")
    print_table(rows)
    return 0 if all(row.ok for row in rows) else 1


def shown(rooms: dict[str, Rows]) -> list[Row]:
    """The rows of all rooms, one room after another; each is told as it comes: a dot, or what is wrong.

    The rooms work at once, each in a process of its own that does one thing at a time.
    """
    context = multiprocessing.get_context("fork")
    found: dict[str, list[Row]] = {room: [] for room in rooms}
    room_of: dict[Any, str] = {}  # by its pipe
    for room, rows_of in rooms.items():
        ours, theirs = context.Pipe(duplex=False)
        context.Process(target=send_rows, args=(room, rows_of, theirs)).start()
        theirs.close()
        room_of[ours] = room
    while room_of:
        for pipe in multiprocessing.connection.wait(list(room_of)):
            try:
                row = pipe.recv()
            except EOFError:
                row = failed(room_of[pipe], "its process died")
            if row is not None:
                found[room_of[pipe]].append(row)
                print("." if row.ok else f"\nBAD {row.what}: {row.problem}\n", end="", flush=True)
            if row is None or row.what == whole(room_of[pipe]):
                del room_of[pipe]
    return list(itertools.chain.from_iterable(found.values()))


def send_rows(room: str, rows_of: Rows, pipe: Any) -> None:
    """And None when the room is done. An exception ends a room, as a row that is not well, but no other room."""
    end_with_parent()
    try:
        for row in rows_of():
            pipe.send(row)
        pipe.send(None)
    except Exception:
        pipe.send(failed(room, traceback.format_exc()[-1500:]))


def failed(room: str, why: str) -> Row:
    return Row(room, whole(room), f"the harness failed: {why}")


def whole(room: str) -> str:
    return f"the whole room of {room}"


def enough(rooms: Sequence[str], figures: dict[str, int]) -> Iterator[Row]:
    """Whether each room tried as much as it must: what was left out shows in no other row."""
    for room in rooms:
        if room in ASKED:
            kind, least = ASKED[room]
            made = figures.get(kind, 0)
            yield Row("asked", f"at least {least} {kind}: {made}", "" if made >= least else f"only {made} were made")


def inputs_of(folder: pathlib.Path, seed: int, short: bool) -> Iterator[Row]:
    demo = folder / "competition"
    write_competition.main(demo, cars=4, test_cars=1)
    cases = inputs.some(inputs.all_cases(), seed, 20) if short else None
    return inputs.try_inputs(demo, folder / "inputs", cases)


if __name__ == "__main__":
    sys.exit(main())
