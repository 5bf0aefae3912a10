"""Outputs of a session on Kaggle -> the files of its run here: verified, each in one step, never over work done here.

A file here is replaced only if it came from a session itself: `runs/RUN/remote.json` lists the sha256 of each file
that ever did.
"""
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.kaggle.kernels import Kernels
from pipeline.kaggle.session import MANIFEST, OutputFile, Outputs
from pipeline.paths import Run
from pipeline.runtime.files import sha256, write_text
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress

# What only trains a refiner: large, and made again in minutes; and when the files there were last read.
LEFT_THERE = ("coarse.zip", "inspected.json")


class Record(BaseModel):
    """The contents of `remote.json`."""

    started: str = ""  # the last session that was asked for here, whether Kaggle heard of it or not
    reported: str = ""  # the last session whose failure the user has seen
    brought: list[str] = []  # sha256 of the files that came from sessions


def bring_home(kernels: Kernels, run: Run, slug: str) -> Outputs:
    """Download the outputs of a session that are not here yet, and move them to their places; return the list.

    Raise Problem if one is missing, arrives damaged, or would replace a file that no session wrote.
    """
    links = kernels.outputs(slug)
    outputs = read_outputs(kernels, run, slug, links)
    wanted = {name: file for name, file in outputs.files.items() if comes_home(name)}
    if missing := [name for name in wanted if name not in links]:
        raise Problem(f"Kaggle does not have {missing[0]}, which {slug} wrote; see {kernels.page(slug)}/output.")
    record = read_record(run)
    if conflicts := find_conflicts(wanted, record):
        what = f"{conflicts[0]} here is not what an earlier session wrote, and {slug} has another"
        raise Problem(f"{what}; move it away, and run the same command again.")
    new = {name: file for name, file in wanted.items() if not is_here(name, file)}
    drafts = run.folder / ".remote"
    download_all(kernels, slug, drafts, new, links)
    brought = sorted({*record.brought, *(file.sha256 for file in wanted.values())})
    note(run, brought=brought)  # before the files: a kill between is harmless
    for name in new:
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(drafts / name, name)
    shutil.rmtree(drafts, ignore_errors=True)
    print(f"{run.folder}: {len(new)} new files of {slug} are here, verified.")
    return outputs


def read_outputs(kernels: Kernels, run: Run, slug: str, links: dict[str, str]) -> Outputs:
    """Return the list of its outputs that a session wrote. Raise Problem if it lists what is not of the run."""
    if MANIFEST not in links:
        raise Problem(f"The session {slug} left no {MANIFEST}, so it did not end well; see {kernels.page(slug)}.")
    try:
        outputs = Outputs.model_validate_json(kernels.read_manifest(links[MANIFEST]))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise Problem(f"{MANIFEST} of {slug} is not usable: {reason}; see {kernels.page(slug)}/output.") from None
    own = (f"runs/{run.name}/", f"submissions/{run.name}.", f"submissions/.{run.name}.")
    if foreign := [name for name in outputs.files if not name.startswith(own)]:
        raise Problem(f"{MANIFEST} of {slug} lists {foreign[0]}, which is not of {run.name}; nothing is taken from it.")
    return outputs


def is_here(name: str, file: OutputFile) -> bool:
    return pathlib.Path(name).is_file() and sha256(pathlib.Path(name)) == file.sha256


def comes_home(name: str) -> bool:
    """Return whether an output is worth its download; hidden files are drafts for the next session."""
    folders_and_file = name.split("/")
    return folders_and_file[-1] not in LEFT_THERE and not any(each.startswith(".") for each in folders_and_file)


def download_all(
    kernels: Kernels, slug: str, drafts: pathlib.Path, files: dict[str, OutputFile], links: dict[str, str]
) -> None:
    """Download files into `drafts`; what an earlier start has left there is verified instead."""
    with progress(total=sum(file.bytes for file in files.values()), unit="B", unit_scale=True) as bar:
        for name, file in files.items():
            draft = drafts / name
            if draft.is_file() and sha256(draft) == file.sha256:
                bar.update(file.bytes)
                continue
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            bar.set_description(name)
            kernels.download(slug, name, links[name], draft, file, bar.update)


def read_record(run: Run) -> Record:
    """Read `remote.json`; an empty record if it is missing or damaged, which replaces no file."""
    try:
        return Record.model_validate_json(run.remote.read_bytes())
    except (OSError, ValidationError):
        return Record()


def check_nothing_made_here(run: Run, stage: str, left: dict[str, OutputFile]) -> None:
    """Raise Problem, before hours at Kaggle, if a session would miss files made here, or could not replace them.

    stage: train, refine, validate or predict. left: what the last session has left, and the next one hands on.
    """
    record = read_record(run)
    for path in sorted(run.folder.glob("fold*/*")):
        is_of_fold = path.parent.name.removeprefix("fold").isdecimal() and path.is_file() and comes_home(str(path))
        if is_of_fold and sha256(path) not in record.brought:
            what = f"{path} was made here, and no session on Kaggle would go on from it: files of a run are not sent"
            raise Problem(f"{what}; {stage} it here, choose another RUN=, or move {path.parent} away.")
    written = {"validate": [*run.folder.glob("oof/fold*"), run.threshold], "predict": [run.threshold, run.submission]}
    own = {str(path) for path in written.get(stage, []) if path.is_file() and sha256(path) not in record.brought}
    if conflicts := sorted(own) or find_conflicts(left, record):
        what = f"{conflicts[0]} was made here, and a session on Kaggle would bring another"
        raise Problem(f"{what}; {stage} it here, choose another RUN=, or move {conflicts[0]} away.")


def find_conflicts(files: dict[str, OutputFile], record: Record) -> list[str]:
    """Return the outputs that would replace a file which no session wrote."""
    digests = {name: sha256(pathlib.Path(name)) for name in files if comes_home(name) and pathlib.Path(name).is_file()}
    return [name for name, digest in digests.items() if digest not in (files[name].sha256, *record.brought)]


def came_from_kaggle(runs: Iterable[str], digests: Iterable[str]) -> bool:
    """Return whether a session on Kaggle made one of the files with these sha256, which belong to these runs."""
    brought = {digest for name in runs for digest in read_record(Run(name)).brought}
    return not brought.isdisjoint(digests)


def note(run: Run, **values: Any) -> None:
    """Change these values of the record."""
    write_text(run.remote, read_record(run).model_copy(update=values).model_dump_json(indent=1) + "\n")
