"""Stage `download`: Kaggle in; the competition folder out, each file whole and verified.

A file arrives in `.download/` of that folder, where an interrupted download goes on, and moves to its place when it
has proven itself. `download.json` remembers what did, so that a second download fetches nothing.
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

from pipeline import carvana
from pipeline.kaggle.verify import Damaged, StreamVerifier, verify
from pipeline.runtime.files import length_bytes, locked, write_json
from pipeline.kaggle.client import Client, connect
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress

MANIFEST = "download.json"
DRAFTS = ".download"
MADE_HERE = ("demo.json", "shrink.json")  # marks of folders that Kaggle's files do not belong in
# The tables come first: they say which pictures an archive must hold.
TABLES = ("metadata.csv.zip", "sample_submission.csv.zip", "train_masks.csv.zip")
Manifest = dict[str, dict[str, Any]]  # file name -> bytes, mtime_ns, verified (when)


def main(folder: pathlib.Path, hq: bool, only: list[str], kind: str = "carvana") -> None:
    """hq: the sets with less JPEG compression; only: these files alone, when any are named.

    kind: as `data.kind`. What is not Kaggle's is not fetched: it is looked at, or Problem says where it comes from.
    """
    if kind != "carvana":
        look_at(folder, kind)
        return
    for mark in MADE_HERE:
        if (folder / mark).exists():
            raise Problem(f"{folder} holds {mark}, so it is not Kaggle's; name another folder with DATA=.")
    wanted = only or names_of(hq)
    manifest = read_manifest(folder)
    missing = [name for name in wanted if not is_verified(folder, name, manifest)]
    # The repaired picture is not part of every competition, and it is the first to be fetched where it is.
    if not missing or (missing == [carvana.REPAIRED] and not only and carvana.REPAIRED not in manifest):
        print(f"{folder}: all is there, and was verified; a file that is removed is fetched again.")
        return
    client = connect()
    sizes = sizes_of(client.files(), missing, optional=[] if only else [carvana.REPAIRED])
    with alone_in(folder):
        to_fetch = [name for name in sizes if not is_whole_already(folder, name, sizes[name], manifest)]
        if to_fetch:
            fetch_all(client, folder, {name: sizes[name] for name in to_fetch}, manifest)
    print(f"{folder}: all is there and verified.")


def look_at(folder: pathlib.Path, kind: str) -> None:
    if kind != "nyuv2":
        raise Problem(f"The pictures of data.kind {kind} are your own: there is nothing to fetch into {folder}.")
    from pipeline.data import nyuv2

    if not (folder / nyuv2.FILE).is_file():
        raise Problem(nyuv2.where_to_get(folder))
    collection = nyuv2.NyuV2(folder, classes=40, inputs="rgbd")
    split = "the official split" if (folder / nyuv2.SPLITS).is_file() else "no splits.mat, so that folds go by rooms"
    rooms = len(set(collection.room_of.values()))
    print(f"{collection.where}: {len(collection.names)} pictures of {rooms} rooms, {split}.")


def names_of(hq: bool) -> list[str]:
    """What a run needs, in the order of fetching."""
    suffix = "_hq" if hq else ""
    return [*TABLES, carvana.REPAIRED, "train_masks.zip", f"train{suffix}.zip", f"test{suffix}.zip"]


def sizes_of(served: dict[str, int], names: list[str], optional: list[str]) -> dict[str, int]:
    """The size in bytes of each name, tables first; without those optional ones that Kaggle does not serve."""
    for name in names:
        if name not in served and name not in optional:
            raise Problem(f"Kaggle serves no {name}, but {', '.join(sorted(served))}; name one of these with ONLY=.")
    in_order = sorted(dict.fromkeys(names), key=lambda name: name not in TABLES)
    return {name: served[name] for name in in_order if name in served}


def is_whole_already(folder: pathlib.Path, name: str, size_bytes: int, manifest: Manifest) -> bool:
    """Whether a file that came some other way, or was touched since, is whole; the manifest then has it too."""
    path = folder / name
    if not path.is_file():
        return False
    try:
        about = verify(path, name, size_bytes, folder)
    except Damaged as damage:
        print(f"{path} is there, but {damage}; it will be replaced.")
        return False
    remember(folder, name, manifest)
    print(f"{path} is there already, with {about}.")
    return True


def fetch_all(client: Client, folder: pathlib.Path, sizes: dict[str, int], manifest: Manifest) -> None:
    needed_bytes = sum(size - length_bytes(draft_of(folder, name)) for name, size in sizes.items())
    free_bytes = shutil.disk_usage(folder).free
    print(f"To fetch into {folder}, where {in_words(free_bytes)} are free:")
    for name, size_bytes in sizes.items():
        begun_bytes = length_bytes(draft_of(folder, name))
        here = f", {in_words(begun_bytes)} are here" if begun_bytes else ""
        print(f"  {name:26}{in_words(size_bytes):>10}{here}")
    if needed_bytes > free_bytes:
        raise Problem(
            f"The files need {in_words(needed_bytes)} more, but only {in_words(free_bytes)} are free in {folder}; "
            "make room, name another folder with DATA=, or fetch some of the files with ONLY=."
        )
    with progress(total=sum(sizes.values()), unit="B", unit_scale=True) as bar:
        for name, size_bytes in sizes.items():
            bar.set_description(name)
            began = time.monotonic()
            about = fetch(client, folder, name, size_bytes, bar)
            remember(folder, name, manifest)
            seconds = time.monotonic() - began
            bar.write(f"{folder / name}: {in_words(size_bytes)} in {seconds:.0f} s, {about}, verified.")


def fetch(client: Client, folder: pathlib.Path, name: str, size_bytes: int, bar: tqdm) -> str:
    """Bring a file to its place and tell what it holds. One that comes damaged is fetched once more."""
    draft = draft_of(folder, name)
    try:
        return fetch_once(client, folder, name, size_bytes, bar)
    except Damaged as damage:
        bar.write(f"{name} came damaged, {damage}; it is fetched once more.")
    bar.update(-size_bytes)
    draft.unlink()
    try:
        return fetch_once(client, folder, name, size_bytes, bar)
    except Damaged as damage:
        draft.unlink()
        raise Problem(f"{name} came damaged twice, {damage}; Kaggle may serve it whole later.") from None


def fetch_once(client: Client, folder: pathlib.Path, name: str, size_bytes: int, bar: tqdm) -> str:
    draft = draft_of(folder, name)
    with StreamVerifier(draft) as verifier:

        def on_bytes(count: int) -> None:
            bar.update(count)
            verifier.on_bytes(count)

        client.download(name, draft, size_bytes, on_bytes)
        about = verify(draft, name, size_bytes, folder, verifier.finish())
    # It is not forced onto the disk, which would take longer than all the rest on a fast line: what a power cut
    # loses shows as another size, or when the file is read, as every reader checks what it reads.
    os.replace(draft, folder / name)
    draft.with_name(f"{name}.tag").unlink(missing_ok=True)
    return about


def draft_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / DRAFTS / name


@contextlib.contextmanager
def alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Problem when another download works there: two would mix up their drafts. Nothing is left when all is done."""
    lock = folder / DRAFTS / "lock"
    with locked(lock, f"Another download into {folder} is under way; wait until it is done."):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # drafts of other files may be there still
                lock.unlink()
                lock.parent.rmdir()


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Empty when there is none, or it is damaged: then the files prove themselves again."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def is_verified(folder: pathlib.Path, name: str, manifest: Manifest) -> bool:
    """Whether the file is the one that was verified, as far as its size and time tell."""
    path, known = folder / name, manifest.get(name)
    if known is None or not path.is_file():
        return False
    found = path.stat()
    return (known.get("bytes"), known.get("mtime_ns")) == (found.st_size, found.st_mtime_ns)


def remember(folder: pathlib.Path, name: str, manifest: Manifest) -> None:
    found = (folder / name).stat()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest[name] = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "verified": now}
    write_json(folder / MANIFEST, manifest)


def in_words(count_bytes: int) -> str:
    """1234567 -> "1.2 MB"."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count_bytes >= unit), (1e3, "kB"))
    return f"{count_bytes / unit:.1f} {name}"
