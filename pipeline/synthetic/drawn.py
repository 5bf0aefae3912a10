"""A folder that was drawn: the file that marks it as such, and protects all others from being overwritten."""
import contextlib
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.runtime.files import locked, read_json, write_json
from pipeline.runtime.problem import Problem


def is_drawn(
    marker: pathlib.Path, settings: dict[str, Any], files: list[pathlib.Path], optional: Iterable[pathlib.Path]
) -> bool:
    """Return whether `files` were drawn with these settings, all of them.

    Raise Problem if one of `files` or `optional` exists but nothing was drawn here, since it must not be overwritten.
    """
    if not marker.is_file():
        if foreign := [path for path in (*files, *optional) if path.exists()]:
            what = f"{foreign[0]} was not drawn, since there is no {marker.name} beside it, and must not be overwritten"
            raise Problem(f"{what}; choose another folder with DATA=.")
        return False
    try:
        saved = read_json(marker)
    except ValueError:
        return False  # damaged: draw again
    return all(path.is_file() for path in files) and saved == {**settings, "complete": True}


@contextlib.contextmanager
def drawing(marker: pathlib.Path, settings: dict[str, Any]) -> Iterator[None]:
    """Lock the marker's folder for a block that draws into it; mark it as incomplete until the block ends."""
    folder = marker.parent
    with locked(folder / ".lock", f"{folder} is being drawn by another process; wait until it is done."):
        write_json(marker, {**settings, "complete": False})
        yield
        write_json(marker, {**settings, "complete": True})
