"""Look at all images and masks of a training before its first step: one bad mask must not end it an hour later.

What is good is remembered in the run's folder by the size and time of its files, so that the next start and the other
folds read only what has changed since. The hashes tell pixels, not files: an image or a mask that is saved again with
the same pixels has the same.
"""
import contextlib
import json
import pathlib
from typing import Protocol

from pipeline.runtime.files import locked, read_json, write_text
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import Timer, in_order, progress

SHOWN = 3  # bad images whose problems are spelt out
REMEMBER_S = 10.0  # how much work a kill may lose

Memory = dict[str, list[str]]  # name -> the stamp of its files when they were good, and the hash of their pixels


class InspectedImages(Protocol):
    """What is needed of a `dataset.SegmentationDataset`, or of one with pseudo-labels."""

    fingerprint: str

    def inspect(self, name: str) -> str: ...

    def stamp(self, name: str) -> str: ...


def inspect_images(dataset: InspectedImages, names: list[str], path: pathlib.Path) -> dict[str, str]:
    """Return name -> hash of the pixels of the image and its mask.

    path: a JSON file that remembers what was good. Raises one Problem for all bad images and masks: it counts them and
    says of the first ones what is wrong.
    """
    memory = read_memory(path, dataset.fingerprint)
    stamp_of = {name: dataset.stamp(name) for name in names}  # before they are read: they may change meanwhile
    unknown = [name for name in names if memory.get(name, [""])[0] != stamp_of[name]]
    problem_of: dict[str, str] = {}
    if unknown:
        print(f"Checking {len(unknown)} images and their masks, once; {path} remembers which are good.")
        inspect_unknown(dataset, unknown, stamp_of, memory, problem_of, path)
    if problem_of:
        raise Problem(describe_bad(list(problem_of.values()), len(names)))
    return {name: memory[name][1] for name in names}


def inspect_unknown(
    dataset: InspectedImages, names: list[str], stamp_of: dict[str, str], memory: Memory,
    problem_of: dict[str, str], path: pathlib.Path,
) -> None:  # fmt: skip
    """Inspect these images; add the good ones to `memory`, and to `path` now and then, the others to `problem_of`."""
    def inspect(name: str) -> tuple[str, str, str]:
        try:
            return name, dataset.inspect(name), ""
        except Problem as problem:
            return name, "", str(problem)

    timer = Timer(REMEMBER_S)
    try:
        inspected = progress(in_order(inspect, names), "checking", total=len(names), unit="image")
        for count, (name, pixels, problem) in enumerate(inspected):
            if problem:
                problem_of[name] = problem
            else:
                memory[name] = [stamp_of[name], pixels]
            if timer.is_due(count):
                remember(path, dataset.fingerprint, memory)
                timer.restart()
    finally:
        if len(problem_of) < len(names):
            remember(path, dataset.fingerprint, memory)


def describe_bad(problems: list[str], images: int) -> str:
    """Return one sentence on all problems."""
    if len(problems) == 1:
        return problems[0]
    reasons = [f"({number}) {problem.removesuffix('.')}" for number, problem in enumerate(problems[:SHOWN], start=1)]
    if len(problems) > SHOWN:
        reasons.append(f"and {len(problems) - SHOWN} more")
    return f"{len(problems)} of {images} images, or their masks, are bad: {'; '.join(reasons)}."


def read_memory(path: pathlib.Path, fingerprint: str) -> Memory:
    """Read what was good in a dataset with this fingerprint; nothing if the file is missing or makes no sense."""
    try:
        stored = read_json(path)
        if stored["dataset"] == fingerprint:
            return {name: [stamp, pixels] for name, (stamp, pixels) in stored["images"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def remember(path: pathlib.Path, fingerprint: str, memory: Memory) -> None:
    """Write the memory, unless another fold is doing so; what is not written costs the next start some time."""
    text = json.dumps({"dataset": fingerprint, "images": memory}, indent=0) + "\n"
    with contextlib.suppress(Problem), locked(path.with_name(f".{path.stem}.lock"), f"{path} is being written."):
        write_text(path, text)
