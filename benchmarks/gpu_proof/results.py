"""The file of results: one JSON object a line, which is on the disk before the next measurement begins.

A row has `key` (which job), `figures` or `error`, and what it was measured on: `card`, versions, `commit`, `command`,
`date`. `rehearsal` is true where nothing of it says anything about a GPU.
"""
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
from typing import Any

import torch

from pipeline.runtime import git
from pipeline.runtime.device import describe_machine, pick_device
from pipeline.runtime.problem import Problem

Row = dict[str, Any]
NEEDED = {"key": str, "card": str, "date": str, "command": str, "rehearsal": bool}


def read(path: pathlib.Path) -> list[Row]:
    """Return the rows of a file, [] if there is none. A last line that a kill has cut off is left out.

    Raises Problem for any other line that is no row.
    """
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                check(row)
                rows.append(row)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no line end behind it: it was being written
                break
            raise Problem(f"Line {number} of {path} is no row of gpu-proof ({error}); remove that line.") from None
    return rows


def check(row: Any) -> None:
    """Raise ValueError unless it has what all rows have."""
    if not isinstance(row, dict):
        raise ValueError("it is not an object")
    for key, kind in NEEDED.items():
        if not isinstance(row.get(key), kind):
            raise ValueError(f"its {key} is missing, or not of type {kind.__name__}")
    if not isinstance(row.get("figures"), dict) and not isinstance(row.get("error"), str):
        raise ValueError("it has neither figures nor an error")


def append(path: pathlib.Path, row: Row) -> None:
    """Write a row behind the others and wait until it is on the disk; a line that was cut off makes room for it."""
    text = path.read_bytes() if path.is_file() else b""
    end_of_lines = text.rfind(b"\n") + 1
    line = json.dumps(row).encode() + b"\n"
    if is_row(text[end_of_lines:]):  # only its line end is missing
        end_of_lines, line = len(text), b"\n" + line
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "r+b" if path.is_file() else "wb") as file:
        file.seek(end_of_lines)
        file.truncate()
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def is_row(line: bytes) -> bool:
    try:
        check(json.loads(line))
    except (ValueError, RecursionError):
        return False
    return True


def measured(rows: list[Row]) -> dict[str, Row]:
    """Return key -> its last row with figures. What failed is not among them, and is measured again."""
    return {row["key"]: row for row in rows if "figures" in row}


def facts(rehearsal: bool) -> Row:
    """Return what each row says of the machine, the versions and the code."""
    device = pick_device()
    on_gpu = device.type == "cuda"
    memory_gb = torch.cuda.get_device_properties(device).total_memory / 1e9 if on_gpu else None
    return {
        "card": torch.cuda.get_device_name(device) if on_gpu else describe_machine(device),
        "card_memory_gb": memory_gb and round(memory_gb, 1), "cores": os.cpu_count(), "driver": driver_version(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
        "commit": git.commit(), "rehearsal": rehearsal,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }  # fmt: skip


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None if nvidia-smi does not say it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    versions = re.findall(r"^[\d.]+$", printed, re.MULTILINE)
    return versions[0] if versions else None
