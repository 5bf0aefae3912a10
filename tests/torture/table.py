"""A row for each case, a table of them for people, and the counts as one JSON object."""
import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was done to the pipeline, and whether it reacted well."""

    kind: str  # counted as: "kills", "faults", "bad_inputs", "good_inputs", "asked", or "not_here", not tried
    what: str  # the case, as in "train: killed at step 3" or "test.zip: truncated after 3/10"
    problem: str = ""  # what was wrong with the reaction; "" if nothing
    message: str = ""  # the one sentence of the pipeline
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problem


GOOD_NAME = {"kills": "survived"}  # kills_survived; of any other kind bad_inputs_ok
NOT_HERE = "not_here"  # not possible on this machine: neither ok nor bad


def text_of(rows: Iterable[Row]) -> str:
    """The table: a line a row, and below a row that is not well what was wrong."""
    lines = []
    for row in rows:
        mark = "BAD" if not row.ok else "-- " if row.kind == NOT_HERE else "ok "
        lines.append(f"{mark} {row.kind:<12} {row.seconds:6.2f} s  {row.what}")
        if row.message:
            lines.append(f"{'':28}{row.message}")
        if row.problem:
            lines.append(f"{'':28}WRONG: {row.problem}")
    return "\n".join(lines)


def figures_of(rows: Iterable[Row]) -> dict[str, int]:
    """`{"kills": 100, "kills_survived": 100, "bad_inputs": 60, "bad_inputs_ok": 60, ...}`."""
    figures: dict[str, int] = {}
    for row in rows:
        figures[row.kind] = figures.get(row.kind, 0) + 1
        if row.kind != NOT_HERE:
            good = f"{row.kind}_{GOOD_NAME.get(row.kind, 'ok')}"
            figures[good] = figures.get(good, 0) + row.ok
    return figures


def print_table(rows: list[Row]) -> None:
    """For people, and as its last line for programs."""
    print(text_of(rows))
    print(json.dumps(figures_of(rows)))
