"""Cases of `inputs`: plain folders, the file of NYU Depth v2, and what the stage `report` reads of a run."""
import contextlib
import functools
import io
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import h5py
import numpy as np
from PIL import Image

from pipeline.data.image_folder import ImageFolder
from pipeline.data.nyuv2 import FILE, SPLITS
from pipeline.synthetic import write_rooms
from tests.plain_folder import CLASSES, draw
from tests.torture.bad_data import Damage, put
from tests.torture.inputs import FOLDS, SETTINGS, TRAIN, Case, Place, bad

REPORT = ("report",)
FOLDER_DATA = "{kind: folder, folder: mine, height: 64, width: 96, scale: 1,"
OF_FOLDER = SETTINGS.replace("{folder: demo, scale: 8,", FOLDER_DATA).replace("batch_size: 4", "batch_size: 2")
OF_FOLDER += f"task: {{kind: multiclass, classes: [{', '.join(CLASSES)}]}}\n"
OF_ROOMS = SETTINGS.replace("{folder: demo, scale: 8,", "{kind: nyuv2, folder: rooms, scale: 1,")
OF_ROOMS += "task: {kind: multiclass, classes: 13}\n"
LOG_ROW = {
    "epoch": 1, "train_loss": 0.1, "val_dice": 0.9, "val_dice_threshold": 0.5, "images_per_s": 40.0, "lr": 0.001,
    "seconds": 1.0,
}  # fmt: skip


def cases() -> list[Case]:
    return [*plain_folders(), *rooms(), *reports()]


# --- plain folders --------------------------------------------------------------------------------


def plain_folders() -> Iterator[Case]:
    for what, arguments, damage, says in (
        ("is not there", FOLDS, lambda place: shutil.rmtree(place.folder / "mine"), "mine/images"),
        ("has no images/", FOLDS, lambda place: shutil.rmtree(place.folder / "mine/images"), "mine/images"),
        ("lacks a mask", FOLDS, lambda place: (place.folder / "mine/masks/p03.png").unlink(), "masks.* p03"),
        ("has a mask too many", FOLDS, put("mine/masks/p99.png", b""), "images.* p99"),
        ("has an image twice", FOLDS, put("mine/images/p03.png", b""), r"p03\.(jpg|png) and .*p03"),
        ("has groups of others", FOLDS, put("mine/groups.csv", "image,group\nq.jpg,a\n"), r"groups\.csv"),
        ("has groups of other columns", FOLDS, put("mine/groups.csv", "a,b\n"), r"groups\.csv"),
        ("has groups in UTF-16", FOLDS, put("mine/groups.csv", "image,group\n".encode("utf-16")), r"groups\.csv"),
        ("has an image that is text", TRAIN, on_each("images/*.jpg", lambda data: b"no image"), r"images/p\d\d\.jpg"),
        ("has a truncated image", TRAIN, on_each("images/*.jpg", lambda d: d[: len(d) // 2]), r"images/p\d\d\.jpg"),
        ("has a truncated mask", TRAIN, on_each("masks/*.png", lambda d: d[: len(d) // 2]), r"masks/p\d\d\.png"),
        ("has a mask in colour", TRAIN, on_each("masks/*.png", lambda d: png(np.zeros((9, 9, 3)))), r"masks/p\d\d"),
        ("has a mask too small", TRAIN, on_each("masks/*.png", lambda d: png(np.zeros((9, 9)))), r"masks/p\d\d\.png"),
        ("has a class too many", TRAIN, on_each("masks/*.png", another_class), r"masks/p\d\d\.png.* the value 7"),
    ):
        yield bad(f"the plain folder {what}", arguments, in_plain_folder(damage), says)


def in_plain_folder(damage: Damage) -> Damage:
    """Make a whole folder with its settings and folds, then damage it."""

    def damage_it(place: Place) -> None:
        folder = draw(place.folder / "mine", images=6)
        place.put("tiny.yaml", OF_FOLDER)
        place.put("runs/tiny/folds.csv", ImageFolder(folder, CLASSES, 255, 64, 96).folds(2).to_csv(index=False))
        damage(place)

    return damage_it


def on_each(pattern: str, transform: Callable[[bytes], bytes]) -> Damage:
    def damage(place: Place) -> None:
        for path in (place.folder / "mine").glob(pattern):
            path.write_bytes(transform(path.read_bytes()))

    return damage


def png(values: np.ndarray) -> bytes:
    Image.fromarray(values.astype(np.uint8)).save(file := io.BytesIO(), format="PNG")
    return file.getvalue()


def another_class(data: bytes) -> bytes:
    mask = np.array(Image.open(io.BytesIO(data)))
    mask[-9:] = 7
    return png(mask)


# --- NYU Depth v2 ---------------------------------------------------------------------------------


def rooms() -> Iterator[Case]:
    for what, damage in {
        "text": put(f"rooms/{FILE}", "no rooms"), "empty": put(f"rooms/{FILE}", ""),
        "MATLAB 5": put(f"rooms/{FILE}", b"MATLAB 5.0 MAT-file" + bytes(500)),
        "a web page": put(f"rooms/{FILE}", "<html>" * 99),
        "a folder": lambda place: (place.folder / "rooms" / FILE).mkdir(parents=True),
    }.items():  # fmt: skip
        yield bad(f"the rooms are {what}", FOLDS, of_rooms(damage), r"nyu_depth_v2_labeled\.mat")
    for what, transform in {
        "threshold": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "without labels": lambda path: in_file(path, lambda file: file.pop("labels")),
        "without names": lambda path: in_file(path, lambda file: file.pop("names")),
        "transposed": lambda path: in_file(path, transpose),
        "of text for images": lambda path: in_file(path, text_for_images),
    }.items():
        yield bad(f"the rooms are {what}", FOLDS, of_rooms(drawn(transform)), r"nyu_depth_v2_labeled\.mat")
    damaged = of_rooms(drawn(lambda path: path.with_name(SPLITS).write_bytes(b"no splits")))
    yield bad("the rooms' official folds are text", FOLDS, damaged, r"splits\.mat")
    yield bad("there are no rooms", FOLDS, of_rooms(lambda place: None), r"There is no rooms/")


def of_rooms(damage: Damage) -> Damage:
    def damage_it(place: Place) -> None:
        place.put("tiny.yaml", OF_ROOMS)
        damage(place)

    return damage_it


def drawn(transform: Callable[[pathlib.Path], object]) -> Damage:
    def damage(place: Place) -> None:
        place.put(f"rooms/{FILE}", whole_file())
        transform(place.folder / "rooms" / FILE)

    return damage


@functools.cache
def whole_file() -> bytes:
    """Of two rooms, four tiny images each."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        write_rooms.main(pathlib.Path(folder), scenes=2, height=32, width=48, seed=0, splits=False)
        return (pathlib.Path(folder) / FILE).read_bytes()


def in_file(path: pathlib.Path, transform: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        transform(file)


def transpose(file: h5py.File) -> None:
    images = file["images"][()]
    del file["images"]
    file["images"] = images.transpose(0, 3, 2, 1)


def text_for_images(file: h5py.File) -> None:
    shape = file["images"].shape
    del file["images"]
    file.create_dataset("images", shape, dtype=h5py.string_dtype())


# --- what a report reads --------------------------------------------------------------------------


def reports() -> Iterator[Case]:
    yield bad("a report of a run that is not there", (*REPORT, "--run", "none"), lambda place: None, "runs/none has no")
    for what, text in {
        "threshold": json.dumps(LOG_ROW)[:30], "a zip": b"PK\3\4\xff\xfe", "a number": "3\n", "a list": "[1]\n",
        "no row": "{}\n",
        "a row of text": json.dumps(dict.fromkeys(LOG_ROW, "x")) + "\n", "10^5 brackets deep": "[" * 10**5,
    }.items():  # fmt: skip
        damage = put("runs/tiny/fold0/log.jsonl", text)
        yield bad(f"a report's log.jsonl is {what}", REPORT, damage, r"fold0/log\.jsonl is damaged")
    for what, text in {
        "threshold": '{"threshold": 0.', "a list": "[1]", "a string": '{"threshold": "0.5"}',
        "beyond 1": '{"threshold": 1.5}',
        "not a number": '{"threshold": NaN}', "with a Dice of text": '{"threshold": 0.5, "oof_dice_cross_fitted": "x"}',
        "with an empty Dice": '{"threshold": 0.5, "oof_dice": ""}',
        "with a list of predictions": '{"threshold": 0.5, "predictions": []}',
        "of predictions that are numbers": '{"threshold": 0.5, "predictions": {"fold0": 1}}',
    }.items():  # fmt: skip
        damage = with_log("runs/tiny/threshold.json", text)
        says = r"threshold\.json(: the .* is .*, but it must lie between 0 and 1| is damaged)"
        yield bad(f"a report's threshold.json is {what}", REPORT, damage, says)
    for name in ("fold0/config.yaml", "folds.csv"):
        yield bad(f"a report's {name} is truncated", REPORT, with_log(f"runs/tiny/{name}", "a: {"), f"runs/tiny/{name}")


def with_log(name: str, text: str) -> Damage:
    def damage(place: Place) -> None:
        place.put("runs/tiny/fold0/log.jsonl", json.dumps(LOG_ROW) + "\n")
        place.put(name, text)

    return damage
