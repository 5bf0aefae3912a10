"""Find and read images that belong to no dataset: files and folders as a user names them, of any size and format."""
import contextlib
import glob
import os
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.images import upright_rgb
from pipeline.runtime.problem import Problem

# What is taken from a folder. Pillow cannot read HEIC, but better a message than a gap.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".heif", ".jp2")
LONGEST_NAME = 16  # words of a path with blanks that is named together with others
BYTES_PER_PX = 12  # of memory at most: 7 for an RGB image and its cut-out, measured, and more to rotate it and for RGBA


# --- find ------------------------------------------------------------------------------------------------------------


@dataclass
class ImageFiles:
    """Images that a user named, and what his folders hold besides."""

    names: dict[pathlib.Path, pathlib.Path] = field(default_factory=dict)  # image -> its path below the named folder
    skipped: list[pathlib.Path] = field(default_factory=list)  # other files of these folders


def find_images(given: Sequence[str], leave_out: pathlib.Path) -> ImageFiles:
    """Find the images that files, folders and wildcards name. Folders are searched with all their sub-folders.

    given: each is a path, which may have blanks, or several with blanks between them. leave_out: a folder that is not
    searched. Raises Problem if one of them does not exist, or if there is no image.
    """
    files = ImageFiles()
    for path in (path for text in given for path in split_paths(text)):
        if path.is_dir():
            add_folder(files, path, leave_out)
        else:
            files.names.setdefault(path, pathlib.Path(path.name))
    if not files.names:
        raise Problem(f"{' '.join(given)} holds no image, which is a file that ends in {', '.join(SUFFIXES)}.")
    return files


def split_paths(text: str) -> list[pathlib.Path]:
    """Split a text at the blanks that belong to no path: of what exists, the longest is taken."""
    if whole := expand(text):
        return whole
    paths, pieces = list[pathlib.Path](), text.split()
    while pieces:
        for count in range(min(len(pieces), LONGEST_NAME), 0, -1):
            if matches := expand(" ".join(pieces[:count])):
                break
        else:
            missing = pieces[0] if paths or any(map(expand, pieces)) else text  # a text without a path is probably one
            raise Problem(f"There is no {missing}; IMAGE= takes images, folders and wildcards, separated by blanks.")
        paths += matches
        pieces = pieces[count:]
    return paths


def expand(text: str) -> list[pathlib.Path]:
    """Return the path if it exists, else the images and folders that match it as a wildcard, such as `images/*.jpg`."""
    if os.path.lexists(text):
        return [pathlib.Path(text)]
    matches = [pathlib.Path(match) for match in sorted(glob.glob(text, recursive=True))]
    return [match for match in matches if match.is_dir() or match.suffix.lower() in SUFFIXES]


def add_folder(files: ImageFiles, folder: pathlib.Path, leave_out: pathlib.Path) -> None:
    """Add what a folder and its sub-folders hold; hidden files and folders, and links to folders, are ignored."""

    def stop(error: OSError) -> None:
        raise error

    for root, subfolders, names in os.walk(folder, onerror=stop):
        below = [name for name in sorted(subfolders) if not name.startswith(".")]
        subfolders[:] = [name for name in below if pathlib.Path(root, name).resolve() != leave_out.resolve()]
        for path in (pathlib.Path(root, name) for name in sorted(names) if not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES:
                files.names.setdefault(path, path.relative_to(folder))
            else:
                files.skipped.append(path)


# --- read ------------------------------------------------------------------------------------------------------------


def read_image(path: pathlib.Path, max_megapixels: int) -> NDArray[np.uint8]:
    """Return an image as RGB array (height, width, 3), upright as its EXIF says; as RGBA if it has transparency.

    Raises Problem if it cannot be read or has more than `max_megapixels` million pixels.
    """
    if path.exists() and not path.is_file():
        raise Problem(f"{path} is no file.")  # a pipe would be waited for
    try:
        with without_pillows_limit(), Image.open(path) as image:
            check_megapixels(image, path, max_megapixels)
            return upright_rgb(image, str(path), with_alpha=True)
    except (Problem, MemoryError):
        raise
    except FileNotFoundError:
        raise Problem(f"There is no {path}.") from None
    except PermissionError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"{path} is not an image that can be read ({reason}); save it as JPEG or PNG again.") from None


@contextlib.contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Let Pillow open images of any size for a block: by default it takes more than 179 megapixels for an attack."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def check_megapixels(image: Image.Image, path: pathlib.Path, max_megapixels: int) -> None:
    """Raise Problem for an image of more than `max_megapixels`; only its header has been read."""
    pixels = image.width * image.height
    if pixels > max_megapixels * 1e6:
        size = f"{image.width}x{image.height}, {pixels / 1e6:.1f} megapixels"
        needs = f"{BYTES_PER_PX * pixels / 1e9:.1f} GB of memory"
        raise Problem(f"{path} has {size}, but MAX_MEGAPIXELS is {max_megapixels}; raise it, if there are {needs}.")
