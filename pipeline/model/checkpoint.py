"""Checkpoints: nested dicts of tensors and plain values, complete or absent, never code.

`best.pt` holds what a later stage needs: the weights, the settings and a few facts. `last.pt` holds all that a resume
needs. Both are read with `weights_only=True`, so that an untrusted file can contain wrong numbers but cannot run code.
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

# `train` then continues from the previous checkpoint, makes best.pt again, or says what is lost.
ADVICE = "delete it and run the stage that writes it again, `make train` or `make refine`"


def save(path: pathlib.Path, state: dict[str, Any], keep_as: pathlib.Path | None = None) -> None:
    """Replace the checkpoint atomically; the previous one stays as `keep_as`."""
    with replacing(path) as draft:
        with open(draft, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # on a full disk torch says "unexpected pos 53120 vs 53016"
                raise error.__context__ if isinstance(error.__context__, OSError) else error
        if keep_as is not None and path.exists():
            with replacing(keep_as) as second_name:
                second_name.unlink(missing_ok=True)  # left by a save that was killed
                try:
                    os.link(path, second_name)  # a second name for the same bytes: nothing is copied
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, second_name)


def load(path: pathlib.Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the state that `save` wrote, on the CPU. Raises Problem unless it is complete and has all `keys`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about files that it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Problem(f"There is no checkpoint {path}; train this fold first.") from None
    except Exception as error:  # a damaged file may raise anything, a truncated one EINVAL
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of the disk, not of the content
            raise Problem(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from None
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"The checkpoint {path} is damaged or not one of ours ({reason}); {ADVICE}.") from None
    if not isinstance(state, dict) or (missing := [key for key in keys if key not in state]):
        lacks = missing[0] if isinstance(state, dict) else "state"
        advice = f"continue with it or choose another RUN=, else {ADVICE}"
        raise Problem(f"The checkpoint {path} has no {lacks}; if another version of this code wrote it, {advice}.")
    return state


@contextlib.contextmanager
def unchanged(paths: Iterable[pathlib.Path]) -> Iterator[dict[str, str]]:
    """Yield path -> sha256 of the checkpoints that are loaded in this block; "" where a file is missing.

    Raises Problem at the end if one was replaced meanwhile, by a training that is still running: it is then unknown
    which one was loaded.
    """
    def digest(path: pathlib.Path) -> str:
        return sha256(path) if path.is_file() else ""

    digest_of = {str(path): digest(path) for path in paths}
    yield digest_of
    for path, before in digest_of.items():
        if digest(pathlib.Path(path)) != before:
            raise Problem(f"{path} was replaced while it was loaded, perhaps by its training; start this again.")
