"""Images find their masks under the names that people give them, and no sub-folder is left out in silence."""
import pathlib
import unicodedata

import numpy as np
import pytest
from PIL import Image

from pipeline.data.folder_files import FolderFiles, find_files
from pipeline.data.image_folder import ImageFolder
from pipeline.runtime.problem import Problem

DARK = Image.new("L", (12, 8))
MASK = Image.fromarray(np.eye(8, 12, dtype=np.uint8) * 255)


def write(folder: pathlib.Path, *names: str) -> pathlib.Path:
    """Write files by their paths: with "mask" in one, a mask; else an image."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (MASK if "mask" in name else DARK).convert("L").save(path)
    return folder


def pairs(files: FolderFiles) -> dict[str, tuple[str, str]]:
    assert files.image_of.keys() == files.mask_of.keys()
    return {name: (path.name, files.mask_of[name].name) for name, path in files.image_of.items()}


def open_folder(folder: pathlib.Path) -> ImageFolder:
    return ImageFolder(folder, (), 255, None, None)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".tif", ".TIFF"])
@pytest.mark.parametrize("mask", ["a.png", "a_mask.png", "a_segmentation.png", "a_Mask.jpg", "a.tif", "a_gt.tiff"])
def test_suffixes_and_endings_of_masks_differ(tmp_path: pathlib.Path, suffix: str, mask: str) -> None:
    folder = write(tmp_path, f"images/a{suffix}", f"masks/{mask}")
    assert pairs(find_files(folder)) == {"a": (f"a{suffix}", mask)}
    assert open_folder(folder).truth("a").sum() == 8


def test_an_ending_that_is_of_the_image_itself_stays(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "images/a.png", "images/a_mask.png", "masks/a.png", "masks/a_mask.png", "images/b_gt.png")
    write(tmp_path, "masks/b_gt_mask.png")
    names = {"a": ("a.png",) * 2, "a_mask": ("a_mask.png",) * 2, "b_gt": ("b_gt.png", "b_gt_mask.png")}
    assert pairs(find_files(tmp_path)) == names


@pytest.mark.parametrize("image_form, mask_form", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
@pytest.mark.parametrize("table_form", ["NFD", "NFC"])
def test_names_are_the_same_composed_and_decomposed(
    tmp_path: pathlib.Path, image_form, mask_form, table_form
) -> None:
    name = "Zürich_é"
    image, mask, row = (unicodedata.normalize(form, name) for form in (image_form, mask_form, table_form))
    write(tmp_path, f"images/{image}.png", f"masks/{mask}_mask.png", "images/b.png", "masks/b.png")
    (tmp_path / "groups.csv").write_text(f"image,group\n{row}.png,here\nb,there\n")
    dataset = open_folder(tmp_path)
    assert dataset.names == sorted(["b", image])  # as the files have it: older runs know them so
    assert dataset.group_of == {"b": "there", image: "here"} and dataset.truth(image).sum() == 8


# --- sub-folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["{split}/{kind}", "{kind}/{split}"])
@pytest.mark.parametrize("held_out", ["val", "Valid", "validation", "test"])
def test_an_official_split_is_two_folds(tmp_path: pathlib.Path, inside: str, held_out: str) -> None:
    for split, names in (("train", "abc"), (held_out, "ad")):
        for kind in ("images", "masks"):
            write(tmp_path, *(f"{inside.format(split=split, kind=kind)}/{name}.png" for name in names))
    dataset = open_folder(tmp_path)
    assert dataset.names == sorted(["train/a", "train/b", "train/c", f"{held_out}/a", f"{held_out}/d"])
    fold_of = dataset.folds(5).set_index("image")["fold"].to_dict()
    assert fold_of == {name: int(name.startswith("train")) for name in dataset.names}
    assert dataset.truth("train/a").sum() == 8 and dataset.warning == ""


@pytest.mark.parametrize("inside", ["{split}/{kind}", "{kind}/{split}"])
@pytest.mark.parametrize("splits, with_test_masks", [("train val", True), ("train val", False), ("train", False)])
def test_test_images_that_are_left_out_are_named(
    tmp_path: pathlib.Path, inside: str, splits: str, with_test_masks: bool
) -> None:
    splits_read = splits.split()
    for split in (*splits_read, "test"):
        for kind in ("images", "masks")[: 2 if with_test_masks or split != "test" else 1]:
            write(tmp_path, *(f"{inside.format(split=split, kind=kind)}/{split}{number}.png" for number in range(4)))
    dataset = open_folder(tmp_path)
    assert len(dataset.names) == 4 * len(splits_read) and not any("test" in name for name in dataset.names)
    assert dataset.notes(dataset.names)[-1].endswith("is left out: it is neither trained on nor held out.")
    assert len(set(dataset.folds(3)["fold"])) == (2 if len(splits_read) == 2 else 3)


def test_groups_of_a_split_are_named_with_it_and_not_torn(tmp_path: pathlib.Path) -> None:
    for kind in ("images", "masks"):
        write(tmp_path, *(f"{kind}/{name}.png" for name in ("train/a", "train/b", "val/a")))
    (tmp_path / "groups.csv").write_text("image,group\ntrain/a.png,x\ntrain/b.png,x\nval/a.png,y\n")
    assert open_folder(tmp_path).folds(5)["group"].tolist() == ["x", "x", "y"]
    (tmp_path / "groups.csv").write_text("image,group\ntrain/a.png,x\ntrain/b.png,y\nval/a.png,y\n")
    with pytest.raises(Problem, match="group y of groups.csv has images both in train and held out"):
        open_folder(tmp_path).folds(5)


PLAIN = ("images/a.png", "masks/a.png")
UNCLEAR = {
    "sub-folders of patients": (("images/p1/a.png", "masks/p1/a.png"), r"have sub-folders \(p1\), which are not read"),
    "one sub-folder": ((*PLAIN, "images/more/b.png", "masks/more/b.png"), r"have sub-folders \(more\), which"),
    "deep": ((*PLAIN, "images/x/y/b.png"), r"have sub-folders \(x\)"),
    "files beside a split": ((*PLAIN, "images/train/b.png", "masks/train/b.png"), "lies beside the sub-folders train"),
    "two layouts": ((*PLAIN, "train/images/b.png", "train/masks/b.png"), "has both images/ and train/images/"),
    "no train": (("images/val/a.png", "masks/val/a.png"), "a split is train/ with val/, test/ or both"),
    "val twice": (
        tuple(f"{split}/{kind}/a.png" for split in ("train", "val", "valid") for kind in ("images", "masks")),
        "has the sub-folders train, val, valid, but a split is"),
    "a mask's split alone": (("images/train/a.png", "masks/train/a.png", "masks/val/b.png"), "no folder .*images/val"),
    "an image's split alone": (
        ("images/train/a.png", "masks/train/a.png", "images/val/b.png"), "no folder .*masks/val"),
    "a sub-folder of a split": (
        ("images/train/a.png", "masks/train/a.png", "images/train/p1/b.png"), "train/p1 is a sub-folder with images"),
    "two masks": ((*PLAIN, "masks/a_mask.png"), r"a\.png and .*a_mask\.png are both masks of a\.png"),
    "two suffixes": ((*PLAIN, "images/a.tif"), r"a\.png and .*a\.tif have the same name"),
    "a bitmap": ((*PLAIN, "images/b.bmp", "masks/b.bmp"), r"b\.bmp is not a JPEG, PNG or TIFF"),
    "a GIF": ((*PLAIN, "images/b.png", "masks/b.gif"), r"b\.gif is not a JPEG, PNG or TIFF; save it as one"),
    "no mask": ((*PLAIN, "images/b.png", "images/c.png"), r"lacks 2 masks; the first is that of b\.png"),
    "no image": ((*PLAIN, "masks/b_mask.png"), r"lacks 1 image; the first is that of the mask b_mask\.png"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_unclear_is_one_sentence(tmp_path: pathlib.Path, name: str) -> None:
    files, expected = UNCLEAR[name]
    with pytest.raises(Problem, match=expected) as caught:
        find_files(write(tmp_path, *files))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_what_is_no_image_is_not_looked_at(tmp_path: pathlib.Path) -> None:
    write(tmp_path, *PLAIN, "images/.hidden/b.png", "images/._a.png", "previews/a.png")
    (tmp_path / "images/notes").mkdir()
    for name in ("images/Thumbs.db", "masks/a.json", "images/notes/a.txt"):
        (tmp_path / name).write_text("?")
    (tmp_path / "images/__MACOSX").mkdir()
    (tmp_path / "images/__MACOSX/._a.png").write_text("?")
    assert pairs(find_files(tmp_path)) == {"a": ("a.png", "a.png")}


def test_a_sub_folder_that_is_no_split_is_not_left_out_in_silence(tmp_path: pathlib.Path) -> None:
    folder = write(tmp_path, "train/images/a.png", "train/masks/a.png", "val/imgs/b.png", "val/masks/b.png")
    with pytest.raises(Problem, match="val has images, but is no split with images/ and masks/"):
        find_files(folder)
