"""Stage `download`: download the competition's files from Kaggle, and verify each.

A file arrives in the folder's `.download/`, where an interrupted download resumes, and moves to its place once it is
verified. `download.json` lists the verified files, so that a second download fetches nothing.
"""
import contextlib
import datetime
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from pipeline.data.competition import Competition
from pipeline.data.dataset import COMPETITIONS, competition_of
from pipeline.kaggle.client import Client, connect
from pipeline.kaggle.verify import Damaged, StreamVerifier, verify
from pipeline.runtime.files import length_bytes, locked, write_json
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress

MANIFEST = "download.json"
DRAFTS = ".download"
GENERATED_MARKS = ("demo.json", "shrink.json")  # they mark folders made here, which Kaggle's files must not enter
Manifest = dict[str, dict[str, Any]]  # file name -> bytes, mtime_ns, verified (time)


def main(folder: pathlib.Path, hq: bool, only: list[str], kind: str = "carvana") -> None:
    """Download what a run needs and does not have yet.

    hq: the image sets with less JPEG compression. only: download these files and no others. kind: as `data.kind`; data
    that are no competition are not downloaded: describe what is there, or raise Problem that says where to get it.
    """
    if kind not in COMPETITIONS:
        describe_local_data(folder, kind)
        return
    for mark in GENERATED_MARKS:
        if (folder / mark).exists():
            raise Problem(f"{folder} holds {mark}, so it was made here; name another folder with DATA=.")
    competition = competition_of(kind)
    wanted, optional = only or names_to_fetch(competition, hq), [] if only else [competition.repaired]
    manifest = read_manifest(folder)
    missing = [name for name in wanted if not any(is_verified(folder, one, manifest) for one in spellings(name))]
    # A drawn competition has no repaired image; where it exists, it is downloaded before the archives.
    if all(name in optional and name not in manifest for name in missing):
        print(f"{folder}: all files are there and verified; delete a file to download it again.")
        return
    client = connect(competition)
    sizes = select_sizes(client.files(), missing, optional)
    with exclusive(folder):
        to_fetch = [name for name in sizes if not verify_existing(folder, name, sizes[name], manifest, competition)]
        if to_fetch:
            fetch_all(client, folder, {name: sizes[name] for name in to_fetch}, manifest)
    print(f"{folder}: all files are there and verified.")


def describe_local_data(folder: pathlib.Path, kind: str) -> None:
    if kind != "nyuv2":
        raise Problem(f"The images of data.kind {kind} are your own: there is nothing to download into {folder}.")
    from pipeline.data import nyuv2

    if not (folder / nyuv2.FILE).is_file():
        raise Problem(nyuv2.where_to_get(folder))
    dataset = nyuv2.NyuV2(folder, classes=40, inputs="rgbd")
    split = "the official split" if (folder / nyuv2.SPLITS).is_file() else "no splits.mat, so folds are split by room"
    print(f"{dataset.where}: {len(dataset.names)} images of {len(set(dataset.room_of.values()))} rooms, {split}.")


def names_to_fetch(competition: Competition, hq: bool) -> list[str]:
    """Return the files that a run needs: first the tables, which list the images that each archive must hold."""
    suffix = competition.hq_suffix if hq else ""
    sets = (competition.mask_set, competition.train_set + suffix, competition.test_set + suffix)
    tables, archives = ([f"{name}.zip" for name in names if name] for names in (competition.tables, sets))
    return [*tables, *filter(None, [competition.repaired]), *archives]


def spellings(name: str) -> tuple[str, ...]:
    """`"a.csv.zip"` -> `("a.csv.zip", "a.csv")`: Kaggle serves a table packed or not."""
    return (name, name.removesuffix(".zip")) if name.endswith(".csv.zip") else (name,)


def select_sizes(served: dict[str, int], names: list[str], optional: list[str]) -> dict[str, int]:
    """Return the size in bytes of each name, tables first, without optional files that Kaggle does not have."""
    matches = {name: next((one for one in spellings(name) if one in served), None) for name in names}
    for name, match in matches.items():
        if match is None and name not in optional:
            raise Problem(f"Kaggle has no {name}; choose among {', '.join(sorted(served))} with ONLY=.")
    return {match: served[match] for match in sorted(filter(None, matches.values()), key=lambda one: ".csv" not in one)}


def verify_existing(
    folder: pathlib.Path, name: str, size_bytes: int, manifest: Manifest, competition: Competition
) -> bool:
    """Return whether a file that is there but not in the manifest is complete; if so, record it."""
    path = folder / name
    if not path.is_file():
        return False
    try:
        contents = verify(path, name, size_bytes, folder, competition)
    except Damaged as damage:
        print(f"{path} is damaged ({damage}); it will be replaced.")
        return False
    record(folder, name, manifest)
    print(f"{path} is there already, with {contents}.")
    return True


def fetch_all(client: Client, folder: pathlib.Path, sizes: dict[str, int], manifest: Manifest) -> None:
    needed_bytes = sum(size - length_bytes(draft_of(folder, name)) for name, size in sizes.items())
    free_bytes = shutil.disk_usage(folder).free
    print(f"Downloading into {folder} ({format_bytes(free_bytes)} free):")
    for name, size_bytes in sizes.items():
        draft_bytes = length_bytes(draft_of(folder, name))
        resumed = f", {format_bytes(draft_bytes)} are there" if draft_bytes else ""
        print(f"  {name:26}{format_bytes(size_bytes):>10}{resumed}")
    if needed_bytes > free_bytes:
        free = f"{folder} has only {format_bytes(free_bytes)} free"
        what = f"The files need {format_bytes(needed_bytes)} more, but {free}"
        raise Problem(f"{what}; make room, name another folder with DATA=, or download fewer files with ONLY=.")
    with progress(total=sum(sizes.values()), unit="B", unit_scale=True) as bar:
        for name, size_bytes in sizes.items():
            bar.set_description(name)
            began = time.monotonic()
            contents = fetch(client, folder, name, size_bytes, bar)
            record(folder, name, manifest)
            seconds = time.monotonic() - began
            bar.write(f"{folder / name}: {format_bytes(size_bytes)} in {seconds:.0f} s, {contents}, verified.")


def fetch(client: Client, folder: pathlib.Path, name: str, size_bytes: int, bar: tqdm) -> str:
    """Download a file to its place; return what it holds. A damaged download is tried once more."""
    for retried in (False, True):
        try:
            return fetch_once(client, folder, name, size_bytes, bar)
        except Damaged as damage:
            draft_of(folder, name).unlink()
            bar.update(-size_bytes)
            if not retried:
                bar.write(f"{name} arrived damaged ({damage}); downloading it once more.")
            reason = str(damage)
    raise Problem(f"{name} arrived damaged twice ({reason}); run `make download` again later.")


def fetch_once(client: Client, folder: pathlib.Path, name: str, size_bytes: int, bar: tqdm) -> str:
    draft = draft_of(folder, name)
    with StreamVerifier(draft) as verifier:

        def on_bytes(count: int) -> None:
            bar.update(count)
            verifier.on_bytes(count)

        client.download(name, draft, size_bytes, on_bytes)
        contents = verify(draft, name, size_bytes, folder, client.competition, verifier.finish())
    # No fsync, which would take longer than everything else on a fast line: what a power cut loses shows as a wrong
    # size, or when the file is read, since every reader verifies checksums.
    os.replace(draft, folder / name)
    draft.with_name(f"{name}.tag").unlink(missing_ok=True)
    return contents


def draft_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / DRAFTS / name


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[None]:
    """Lock the folder for a block; raise Problem if another download, which would share the drafts, runs there."""
    lock = folder / DRAFTS / "lock"
    with locked(lock, f"Another download into {folder} is running; wait until it is done."):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder may still hold drafts of other files
                lock.unlink()
                lock.parent.rmdir()


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Return the manifest; an empty one if it is missing or damaged, so that the files are verified again."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def is_verified(folder: pathlib.Path, name: str, manifest: Manifest) -> bool:
    """Return whether the file has the size and modification time of the one that was verified."""
    path, entry = folder / name, manifest.get(name)
    if entry is None or not path.is_file():
        return False
    status = path.stat()
    return (entry.get("bytes"), entry.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)


def record(folder: pathlib.Path, name: str, manifest: Manifest) -> None:
    status = (folder / name).stat()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest[name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "verified": now}
    write_json(folder / MANIFEST, manifest)


def format_bytes(count_bytes: int) -> str:
    """Format 1234567 as "1.2 MB"."""
    size, name = next(((size, name) for size, name in ((1e9, "GB"), (1e6, "MB")) if count_bytes >= size), (1e3, "kB"))
    return f"{count_bytes / size:.1f} {name}"
