"""Find the images and masks of a plain folder, and which belong together.

    images/NAME.jpg, masks/NAME.png                   or masks/NAME_mask.png, NAME_segmentation.png and so on
    images/train/NAME.jpg, masks/train/NAME.png       an official split: train, val (or valid, validation), test
    train/images/NAME.jpg, train/masks/NAME.png       the same

Suffixes of an image and its mask may differ. Names are compared in Unicode's composed form (NFC): macOS may write
“é” as two characters where other systems write one. Of an official split, fold 0 holds out val, and
test is left out; without val, fold 0 holds out test. Any other sub-folder with images is a Problem.
"""
import pathlib
import unicodedata
from typing import NamedTuple

from pipeline.runtime.problem import Problem, counted

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
# Of image files that are not read; none is left out in silence.
OTHER_SUFFIXES = (
    ".avif", ".bmp", ".dcm", ".dng", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".npy", ".pgm", ".ppm", ".webp",
)  # fmt: skip
MASK_ENDINGS = ("_mask", "_segmentation", "_seg", "_gt", "_label")  # of a mask's name, behind that of its image
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
HELD_OUT_FOLD, TRAINING_FOLD = 0, 1  # of an official split: FOLD=0 trains on its training images


class FolderFiles(NamedTuple):
    """The files of each image by its name: that of its file without suffix, in an official split `train/NAME`."""

    image_of: dict[str, pathlib.Path]
    mask_of: dict[str, pathlib.Path]
    fold_of: dict[str, int]  # of an official split, else {}
    left_out: str  # a sentence on images that are not read, or ""


class Place(NamedTuple):
    """Two folders, of images and of their masks."""

    split: str  # train, val or test; "" if the folder is not split
    prefix: str  # of the names
    images: pathlib.Path
    masks: pathlib.Path


def find_files(folder: pathlib.Path) -> FolderFiles:
    """Find images and masks. Raise Problem if one lacks the other, or where it is not clear what belongs together."""
    places = find_places(folder)
    splits = {place.split for place in places}
    files, left_out = FolderFiles({}, {}, {}, ""), ""
    for place in places:
        if place.split == "test" and ("val" in splits or not place.masks.is_dir()):
            left_out = f"{place.images} is left out: it is neither trained on nor held out."
            continue
        images, masks = files_of(place.images), files_of(place.masks)
        mask_of_stem = match_masks(place, images, masks)
        files.image_of.update({place.prefix + path.stem: path for path in images.values()})
        files.mask_of.update({place.prefix + images[stem].stem: path for stem, path in mask_of_stem.items()})
        fold = TRAINING_FOLD if place.split == "train" else HELD_OUT_FOLD
        files.fold_of.update({place.prefix + path.stem: fold for path in images.values()})
    is_split = len(set(files.fold_of.values())) > 1
    return files._replace(fold_of=files.fold_of if is_split else {}, left_out=left_out)


def find_places(folder: pathlib.Path) -> list[Place]:
    """Find the folders that hold images and masks."""
    images, masks = folder / "images", folder / "masks"
    inside = [path.name for path in subfolders(folder) if path.name.lower() in SPLITS and (path / "images").is_dir()]
    if inside and images.is_dir():
        raise Problem(f"{folder} has both images/ and {inside[0]}/images/; put all images into one of them.")
    if inside:
        if others := [path for path in subfolders(folder) if path.name not in inside and holds_images(path)]:
            what = f"{others[0]} has images, but is no split with images/ and masks/"
            raise Problem(f"{what}; rename its folders, or move it away.")
        return name_splits(folder, {name: (folder / name / "images", folder / name / "masks") for name in inside})
    for path in (images, masks):
        if not path.is_dir():
            raise Problem(f"There is no folder {path}; a plain folder has images/ and masks/, name it with DATA=.")
    names = sorted({path.name for of in (images, masks) for path in subfolders(of) if holds_images(path)})
    if not names:
        return [Place("", "", images, masks)]
    listed = ", ".join(names)
    if not all(name.lower() in SPLITS for name in names):
        advice = "move their files up, and name images of one sub-folder in groups.csv to hold them out together"
        raise Problem(f"{images} and {masks} have sub-folders ({listed}), which are not read; {advice}.")
    if loose := [path for of in (images, masks) for path in sorted(of.iterdir()) if is_image(path)]:
        raise Problem(f"{loose[0]} lies beside the sub-folders {listed}; put all images and masks into these.")
    return name_splits(folder, {name: (images / name, masks / name) for name in names})


def name_splits(folder: pathlib.Path, folders_of: dict[str, tuple[pathlib.Path, pathlib.Path]]) -> list[Place]:
    """Return the places of an official split. folders_of: sub-folder -> its images and masks. Problem without train."""
    places = [Place(SPLITS[name.lower()], f"{name}/", *folders) for name, folders in folders_of.items()]
    splits = [place.split for place in places]
    if len(set(splits)) < len(splits) or "train" not in splits:
        what = f"{folder} has the sub-folders {', '.join(folders_of)}, but a split is train/ with val/, test/ or both"
        raise Problem(f"{what}; rename them, or put all files straight into images/ and masks/.")
    return places


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def holds_images(folder: pathlib.Path) -> bool:
    return any(is_image(path) for path in folder.rglob("*"))


def is_image(path: pathlib.Path) -> bool:
    """Whether its name is that of an image, read or not; macOS puts files such as `._a.jpg` into archives."""
    return path.suffix.lower() in SUFFIXES + OTHER_SUFFIXES and not path.name.startswith(".") and path.is_file()


def files_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Map NFC name without suffix -> file, for a folder's images."""
    if not folder.is_dir():
        raise Problem(f"There is no folder {folder}; a plain folder has images/ and masks/, name it with DATA=.")
    path_of: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and holds_images(path):
            raise Problem(f"{path} is a sub-folder with images, which is not read; move its files up.")
        if path.suffix.lower() in OTHER_SUFFIXES:
            raise Problem(f"{path} is not a JPEG, PNG or TIFF; save it as one (a mask as PNG), or remove it.")
        if path.suffix.lower() in SUFFIXES:
            stem = composed(path.stem)
            if stem in path_of:
                raise Problem(f"{path_of[stem]} and {path} have the same name; rename one, and its mask.")
            path_of[stem] = path
    if not path_of:
        raise Problem(f"{folder} holds no file that ends in {', '.join(SUFFIXES)}.")
    return path_of


def match_masks(
    place: Place, images: dict[str, pathlib.Path], masks: dict[str, pathlib.Path]
) -> dict[str, pathlib.Path]:
    """Map the stem of each image -> its mask, in the order of the masks."""
    mask_of: dict[str, pathlib.Path] = {}
    alone = []
    for stem, path in masks.items():
        lower = stem.lower()
        shorter = [stem[: -len(ending)] for ending in MASK_ENDINGS if lower.endswith(ending)]
        of = next((candidate for candidate in (stem, *shorter) if candidate in images), None)
        if of is None:
            alone.append(path.name)
        elif of in mask_of:
            raise Problem(f"{mask_of[of]} and {path} are both masks of {images[of].name}; remove one.")
        else:
            mask_of[of] = path
    if missing := [path.name for stem, path in images.items() if stem not in mask_of]:
        count, stem = counted(len(missing), "mask"), pathlib.PurePath(missing[0]).stem
        first = f"{missing[0]}, such as {stem}.png or {stem}_mask.png"
        raise Problem(f"{place.masks} lacks {count}; the first is that of {first}.")
    if alone:
        raise Problem(f"{place.images} lacks {counted(len(alone), 'image')}; the first is that of the mask {alone[0]}.")
    return mask_of


def composed(name: str) -> str:
    """Return a name in Unicode's composed form, NFC."""
    return unicodedata.normalize("NFC", name)
