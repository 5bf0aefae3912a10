"""Checkpoints: nested dicts of tensors and plain values, whole or not there, never code.

`best.pt` holds what a later stage needs: the weights, the settings and a few facts. `last.pt` holds all
that a resume needs. Both are read with `weights_only=True`, so that a file from a stranger can carry
wrong numbers but runs nothing.
"""
import contextlib
import errno
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from pipeline.runtime.files import replacing, sha256
from pipeline.runtime.problem import Problem

# What `train` then does: it goes on from the checkpoint before, makes best.pt again, or says what is lost.
ADVICE = "delete it and run `make train` again"


def save(path: pathlib.Path, state: dict[str, Any], keep_as: pathlib.Path | None = None) -> None:
    """Replace the checkpoint in one step; the one that was there stays as `keep_as`."""
    with replacing(path) as draft:
        with open(draft, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # on a full disk torch says "unexpected pos 53120 vs 53016"
                raise error.__context__ if isinstance(error.__context__, OSError) else error
        if keep_as is not None and path.exists():
            with replacing(keep_as) as second_name:
                second_name.unlink(missing_ok=True)  # of a save that was killed
                try:
                    os.link(path, second_name)  # a second name for the same bytes: nothing is copied
                except OSError:  # a file system without such names
                    shutil.copyfile(path, second_name)


def load(path: pathlib.Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The state that `save` wrote, on the CPU. Raises Problem unless it is whole and has all `keys`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of files that it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Problem(f"There is no checkpoint {path}; train this fold first.") from None
    except Exception as error:  # the bytes of a damaged file may raise anything, one that is cut short EINVAL
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of the disk: no word about what the file holds
            raise Problem(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from None
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"The checkpoint {path} is damaged or not one of ours ({reason}); {ADVICE}.") from None
    if not isinstance(state, dict) or (missing := [key for key in keys if key not in state]):
        lacks = missing[0] if isinstance(state, dict) else "state"
        raise Problem(f"The checkpoint {path} has no {lacks}; {ADVICE}.")
    return state


@contextlib.contextmanager
def unchanged(paths: Iterable[pathlib.Path]) -> Iterator[dict[str, str]]:
    """Hand out path -> sha256 of the checkpoints that are loaded in this block; "" where there is none.

    Problem in the end when one is another file by then, of a training that goes on: which was loaded, nobody knows.
    """
    digest_of = {str(path): sha256(path) if path.is_file() else "" for path in paths}
    yield digest_of
    for path, digest in digest_of.items():
        if sha256(pathlib.Path(path)) != digest:
            raise Problem(f"{path} was replaced while it was loaded, perhaps by its training; start this again.")
