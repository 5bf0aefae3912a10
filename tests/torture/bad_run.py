"""Cases of `inputs`: settings, checkpoints, what stages leave for one another, and submissions."""
import gzip
import io
import json
import pathlib
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pipeline.kaggle.ledger import COLUMNS
from tests.torture.bad_data import Damage, truncated, put, zip_of
from tests.torture.inputs import (
    CHECK, FOLDS, PREDICT, SETTINGS, THRESHOLD, TRAIN, VALIDATE, Case, Place, bad, good, write_oof,
)  # fmt: skip

HASH = "0" * 64


def cases() -> list[Case]:
    return [*settings(), *checkpoints(), *results(), *submissions(), *ledgers()]


# --- settings -------------------------------------------------------------------------------------


def settings() -> Iterator[Case]:
    here = r"tiny\.yaml"
    yield bad("no config", (*FOLDS, "--config", "none.yaml"), nothing, r"There is no config none\.yaml")
    yield bad("the config is a folder", (*FOLDS, "--config", "demo"), nothing, "The config demo cannot be read")
    for what, text, says in (
        ("a zip", zip_of({"a": b"b"}), "cannot be read|not YAML"),
        ("UTF-16", SETTINGS.encode("utf-16"), "cannot be read"),
        ("of 10 MB", "a: " + "x" * 10**7, "10,000,003 bytes"),
        ("a list", "- 1\n", "holds list"),
        ("a string", "hello\n", "holds str"),
        ("indented by a tab", "train:\n\tepochs: 3\n", "not YAML.*line 2"),
        ("open at its end", "train: {epochs: 3", "not YAML.*line 1"),
        ("2,000 brackets deep", "train: " + "[" * 2000, "not YAML"),
        ("code", "train: !!python/object/apply:os.system ['touch executed']\n", "not YAML"),
        ("a 13th month", "data: {folder: 2017-13-45}\n", "not YAML.*month"),
        ("a number of 5,000 digits", f"train: {{epochs: {'9' * 5000}}}\n", "not YAML"),
        ("an empty !!int", 'train: {epochs: !!int ""}\n', "not YAML"),
        ("a !!bool that is none", "data: {hq: !!bool perhaps}\n", "not YAML"),
        ("itself inside itself", "train: &a {epochs: *a}\n", "train.epochs is "),
        ("a billion times the same", billion(), "a is no setting|train.epochs is "),
        ("a section twice", "train: {epochs: 1}\ntrain: {epochs: 2}\n", "'train' .* line 2"),
        ("a key twice", "train:\n  epochs: 1\n  epochs: 2\n", "'epochs' .* line 3"),
        ("an unknown section", "trian: {epochs: 1}\n", "trian is no setting; the nearest is train"),
        ("an unknown key", "train: {epoch: 1}\n", "train.epoch is no setting; the nearest is train.epochs"),
        ("a number for a key", "1: 2\n", "1"),
        ("a string for a number", "train: {epochs: three}\n", "train.epochs is 'three'"),
        ("a number for a string", "model: {arch: 7}\n", "model.arch is 7"),
        ("not a number", "train: {learning_rate: .nan}\n", "train.learning_rate is nan"),
        ("0 epochs", "train: {epochs: 0}\n", "train.epochs is 0"),
        ("half an epoch", "train: {epochs: 0.5}\n", "train.epochs is 0.5"),
        ("a seed beyond 64 bits", f"train: {{seed: {10**30}}}\n", "train.seed is 1000"),
        ("a section that is a number", "train: 3\n", "train is 3"),
        ("a folder that is not there", "data: {folder: nowhere}\n", "nowhere holds neither"),
        ("a folder of 5,000 letters", f"data: {{folder: {'a' * 5000}}}\n", "name too long|holds neither"),
        ("a folder with a zero in it", 'data: {folder: "a\\0b"}\n', r"a\\x00b"),
        ("a folder over two lines", 'data: {folder: "a\\nb"}\n', r"a\\nb"),
        ("more folds than makes", "data: {folder: demo, folds: 99}\n", "data.folds is 99"),
    ):
        about_data = "folder " in what or "folds" in what  # and not about the config that names it
        yield bad(f"the config is or has {what}", FOLDS, put("tiny.yaml", text), "" if about_data else here, says)
    for arch in ("unet2", "smp.os", "smp.create_model", "smp.Unet.__class__"):
        arguments = (*TRAIN, "--set", f"model.arch={arch}")
        yield bad(f"the network is {arch}", arguments, nothing, rf"model\.arch is '?{arch}")
    for text in ("train.epochs", "train=3", "train.epochs=[", "train.epochs=" + "[" * 10**4, "a.b=1", "train.x.y=1"):
        yield bad(f"the override {text[:20]}", (*FOLDS, "--set", text), nothing, text[:5].split(".")[0])
    yield bad(
        "an override in a section that is a number", (*FOLDS, "--set", "train.epochs=1"), put("tiny.yaml", "train: 3"),
        "train is 3",
    )
    yield bad(
        "a batch larger than the data", (*TRAIN, "--set", "train.batch_size=1000"), nothing, "train.batch_size is 1000"
    )
    yield bad("a fold that is not there", (*TRAIN, "--fold", "9"), nothing, "There is no fold 9")

    marked = b"\xef\xbb\xbf" + SETTINGS.replace("\n", "\r\n").encode()
    yield good("the config has a byte-order mark and CRLF", FOLDS, put("tiny.yaml", marked), lambda place: True)


def nothing(place: Place) -> None:
    pass


def billion() -> str:
    lines = ["a: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join([*lines, "train: {epochs: *l9}"])


# --- checkpoints ----------------------------------------------------------------------------------


class Code:
    """Touches a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.Path.touch, (pathlib.Path("executed"),)


def checkpoints() -> Iterator[Case]:
    here = r"runs/tiny/fold0/best\.pt"
    for tenth in range(10):
        damage = truncated("runs/tiny/fold0/best.pt", tenth)
        yield bad(f"best.pt, {tenth}/10 of it", VALIDATE, damage, here + " is damaged")
    for what, data in (
        ("text", b"hello"),
        ("pickled code", pickle.dumps(Code())),
        ("pickled code for old torch", torch_bytes({"network": Code(), "settings": {}}, False)),
        ("pickled code in torch's zip", torch_bytes({"network": Code(), "settings": {}}, True)),
        ("a zip of something else", zip_of({"a.txt": b"b"})),
        ("a tar", tar()),
        ("TorchScript", scripted()),
        ("zeros", bytes(10**6)),
    ):
        yield bad(f"best.pt is {what}", PREDICT, put("runs/tiny/fold0/best.pt", data), here + " is damaged or not one")
    for what, state, says in (
        ("a list", [1], "has no state"),
        ("empty", {}, "has no settings"),
        ("without weights", {"settings": {}}, "has no network"),
        ("with other settings", {"settings": {"model": {"breadth": 3}}, "network": {}}, "model.breadth is no setting"),
        ("with settings that are a number", {"settings": 3, "network": {}}, "the whole is 3"),
        ("with weights of nothing", {"settings": {}, "network": {}}, "does not fit its own settings"),
        ("with weights that are a number", {"settings": {}, "network": 5}, "does not fit its own settings"),
        ("with weights that are strings", {"settings": {}, "network": {"mean": "x"}}, "does not fit its own settings"),
        ("with weights by numbers", {"settings": {}, "network": {1: 2}}, "does not fit its own settings"),
        ("with weights of no end", {"settings": small(), "network": endless()}, "does not fit its own settings"),
    ):
        yield bad(f"best.pt is {what}", PREDICT, put("runs/tiny/fold0/best.pt", torch_bytes(state, True)), here, says)
    last = "runs/tiny/fold0/last.pt"
    yield bad("last.pt is truncated", TRAIN, lambda p: p.put(last, p.best.read_bytes()[:999]), r"last\.pt is damaged")
    yield bad("last.pt is pickled code", TRAIN, put(last, torch_bytes({"step": Code()}, True)), r"last\.pt is damaged")
    yield bad("last.pt is a best.pt", TRAIN, lambda p: p.put(last, p.best.read_bytes()), r"last\.pt has no fingerprint")
    yield bad(
        "a fold's folder has a best.pt and no number", ("threshold",), stray_folder, r"runs/tiny has no out-of-fold"
    )


def torch_bytes(state: Any, as_zip: bool) -> bytes:
    torch.save(state, file := io.BytesIO(), _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


def tar() -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as packed:
        packed.addfile(tarfile.TarInfo("sys_info"))
    return file.getvalue()


def scripted() -> bytes:
    with warnings.catch_warnings(action="ignore"):  # it is out of fashion
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file := io.BytesIO())
    return file.getvalue()


def small() -> dict[str, Any]:
    return {"model": {"width": 2, "depth": 1, "patch": 4}}


def endless() -> dict[str, torch.Tensor]:
    """One number, seen as 10^15."""
    return {"network.head.weight": torch.zeros(1).expand(10**15)}


def stray_folder(place: Place) -> None:
    (place.run / "fold0").rename(place.run / "fold0.bak")


# --- what stages leave for one another ------------------------------------------------------------


def results() -> Iterator[Case]:
    here = r"runs/tiny/threshold\.json"
    for what, text in {
        "empty": "", "threshold": '{"threshold": 0.', "a list": "[1]", "without a threshold": "{}",
        "a string": '{"threshold": "half"}',
        "beyond 1": '{"threshold": 1.5}', "below 0": '{"threshold": -0.1}',
        "not a number": '{"threshold": NaN}', "true": '{"threshold": true}',
        "10^5 brackets deep": "[" * 10**5, "a zip": zip_of({"a": b"b"}), "endless": '{"threshold": 1e999}',
        "of 5,000 digits": '{"threshold": ' + "9" * 5000 + "}",
    }.items():  # fmt: skip
        yield bad(f"threshold.json is {what}", PREDICT, put("runs/tiny/threshold.json", text), here)
    yield bad("no threshold.json", PREDICT, lambda p: (p.run / "threshold.json").unlink(), rf"There is no {here}")
    for what, text, says in (
        ("empty", "", "damaged"),
        ("a header alone", "car_id,make,fold\n", "folds from 0 up"),
        ("of other columns", "car,make,part\nx,y,0\n", "the last of them fold"),
        ("of strings for folds", "car_id,make,fold\nx,y,first\n", "damaged"),
        ("of folds beyond 64 bits", f"car_id,make,fold\nx,y,{10**30}\n", "damaged"),
        ("of folds below 0", "car_id,make,fold\nx,y,-1\n", "folds from 0 up"),
        ("without a fold", "car_id,make,fold\nx,y,0\nz,y,2\n", "folds from 0 up"),
        ("of one car twice", "car_id,make,fold\nx,y,0\nx,y,1\n", "car_id x twice"),
        ("of long rows", "car_id,make,fold\nx,y,0,1\n", "more or fewer fields"),
        ("of short rows", "car_id,make,fold\nx,y\n", "damaged"),
        ("of other cars", "car_id,make,fold\nx,y,0\nz,y,1\n", r"(pictures|images) that"),
    ):
        yield bad(f"folds.csv is {what}", TRAIN, put("runs/tiny/folds.csv", text), r"runs/tiny/folds\.csv", says)
    here = r"runs/tiny/oof/fold0\.npz"
    for tenth in range(0, 10, 3):
        yield bad(f"the oof, {tenth}/10 of it", THRESHOLD, truncated("runs/tiny/oof/fold0.npz", tenth), here)
    pickled = io.BytesIO()
    np.save(pickled, np.array([Code()], object), allow_pickle=True)
    for what, data in {
        "text": b"hello", "pickled code": pickle.dumps(Code()), "pickled in numpy's way": pickled.getvalue(),
        "one array": npy(np.zeros(3)),
    }.items():  # fmt: skip
        yield bad(f"the oof is {what}", THRESHOLD, put("runs/tiny/oof/fold0.npz", data), here)
    for what, other in {
        "has objects": {"names": np.array([Code()], object)}, "lacks its names": {"names": None},
        "has too few names": {"names": np.array(["a"])}, "has flat histograms": {"histograms": np.zeros(256, np.int32)},
        "has histograms of text": {"histograms": np.array(["x"])}, "has no image": {
            "names": np.array([], str), "histograms": np.zeros((0, 2, 256), np.int32)},
        "is of another checkpoint": {"checkpoint_sha256": "0"},
    }.items():  # fmt: skip
        yield bad(f"the oof {what}", THRESHOLD, lambda place, other=other: write_oof(place, **other), here)


def npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


# --- submissions ----------------------------------------------------------------------------------


def submissions() -> Iterator[Case]:
    here = r"submissions/tiny\.csv\.gz"
    for tenth in range(10):
        yield bad(f"the submission, {tenth}/10 of it", CHECK, truncated("submissions/tiny.csv.gz", tenth), here)
    yield bad("no submission", ("check", "--file", "none.csv"), nothing, r"There is no none\.csv")
    yield bad("the submission is a folder", ("check", "--file", "demo"), nothing, "demo cannot be read")
    yield bad("the submission is text that is named .gz", CHECK, put("submissions/tiny.csv.gz", "img,rle_mask\n"), here)
    first = r", line 2, image \w+_01\.jpg: "
    for what, transform, says in (
        ("has another header", lambda rows: [b"image,mask", *rows[1:]], "line 1: the header must be"),
        ("has semicolons", lambda rows: [row.replace(b",", b";") for row in rows], "line 1: the header must be"),
        ("has a byte-order mark", lambda rows: [b"\xef\xbb\xbf" + rows[0], *rows[1:]], "line 1: the byte 0xef"),
        ("has a column more", lambda rows: [rows[0], *(row + b",1" for row in rows[1:])], "line 2: 3 fields"),
        ("has an unknown image", lambda rows: [*rows, b"a.jpg,1 1"], "line 18: the image 'a.jpg' is"),
        ("has an image twice", lambda rows: [*rows, rows[-1]], "line 18: the image .* is in line 17"),
        ("lacks an image", lambda rows: rows[:-1], "has 15 of 16 images"),
        ("has an odd count", masked(b"1 2 3"), first + "3 numbers"),
        ("counts from 0", masked(b"0 5"), first + "the number 0"),
        ("has fractions", masked(b"1.5 5"), first + "'1.5' is not"),
        ("goes beyond the image", masked(b"2455040 2"), first + "a run that ends"),
        ("has runs over one another", masked(b"1 5 3 1"), first + "the run '3 1'"),
        ("has an empty mask", masked(b""), first + "the mask is empty"),
        ("has a number of 10^7 digits", masked(b"9" * 10**7 + b" 1"), first + "the number 99999"),
        ("has 10^7 letters", masked(b"x" * 10**7), first + "'xxxx"),
        ("has 10^7 numbers", masked(b"1 1 " * 25 * 10**5), first),
        ("has a field of 40 MB", masked(b"1 " * 2 * 10**7), "field larger than"),
        ("has full masks", lambda rows: [rows[0], *(row.split(b",")[0] + b",1 2455040" for row in rows[1:])], "100.0%"),
        ("has a zero", masked(b"1 \0 1"), "line 2|NUL"),
        ("has a letter of Latin-1", masked(b"1 \xe9"), "near line .: the byte 0xe9"),
        ("has a quote that is not closed", masked(b'"1 1'), here),
    ):
        yield bad(f"the submission {what}", CHECK, submission(transform), here, says)
    zeros = gzip.compress(bytes(3 * 10**8), 1)
    yield bad("the submission is 300 MB of zeros, packed", CHECK, put("submissions/tiny.csv.gz", zeros), here)
    zipped = ("check", "--file", "s.csv.zip")
    yield bad(
        "the submission's zip holds two files", zipped, put("s.csv.zip", zip_of({"a": b"", "b": b""})), "holds 2 files"
    )
    yield bad(
        "the submission's zip is packed by LZMA", zipped, put("s.csv.zip", zip_of({"a": b"x"}, zipfile.ZIP_LZMA)),
        "method 14",
    )
    scored = ("score", "--file", "submissions/tiny.csv.gz", "--solution", "s.csv")
    name = "331659860e11_01.jpg"
    for what, text, says in (
        ("is a submission", "img,rle_mask\n", "line 1: the header"),
        ("has another usage", f"img,rle_mask,Usage\n{name},1 1,Test\n", "line 2: the Usage 'Test'"),
        ("has an image twice", "img,rle_mask,Usage\n" + f"{name},1 1,Public\n" * 2, "line 3: .* twice"),
        ("has an image that was not predicted", "img,rle_mask,Usage\na.jpg,1 1,Public\n", "lacks 1 images.*a.jpg"),
        ("has nothing", "img,rle_mask,Usage\n", "nothing to score"),
    ):
        yield bad(f"the solution {what}", scored, put("s.csv", text), r"s\.csv", says)

    yield good("the submission has CRLF", CHECK, submission(lambda rows: [row + b"\r" for row in rows]), lambda p: True)
    yield good("the submission has another order", CHECK, submission(turned_over), lambda place: True)
    yield good("the submission is quoted", CHECK, submission(quoted), lambda place: True)
    check_plain = ("check", "--file", "s.csv")
    yield good("the submission is plain", check_plain, plain(lambda data: data, "s.csv"), lambda place: True)
    yield good(
        "the submission is a zip", zipped, plain(lambda data: zip_of({"s.csv": data}, 8), "s.csv.zip"), lambda p: True
    )


def submission(transform: Callable[[list[bytes]], list[bytes]]) -> Damage:
    def damage(place: Place) -> None:
        rows = gzip.decompress(place.submission.read_bytes()).splitlines()
        place.put("submissions/tiny.csv.gz", gzip.compress(b"\n".join(transform(rows)) + b"\n", 1))

    return damage


def masked(runs: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """The first mask replaced."""
    return lambda rows: [rows[0], rows[1].split(b",")[0] + b"," + runs, *rows[2:]]


def turned_over(rows: list[bytes]) -> list[bytes]:
    return [rows[0], *rows[:0:-1]]


def quoted(rows: list[bytes]) -> list[bytes]:
    return [b",".join(b'"' + cell + b'"' for cell in row.split(b",")) for row in rows]


def plain(transform: Callable[[bytes], bytes], name: str) -> Damage:
    return lambda place: place.put(name, transform(gzip.decompress(place.submission.read_bytes())))


# --- the ledger -----------------------------------------------------------------------------------


def ledgers() -> Iterator[Case]:
    show = ("leaderboard", "--ledger", "ledger.csv")
    cells = {"time": "2017-09-27T23:59:58Z", "file": "a.csv.gz", "sha256": HASH, "message": "two #1"}
    for what, other, says in (
        ("a time that is none", {"time": "yesterday"}, "time is 'yesterday'"),
        ("a time of no zone", {"time": "2017-09-27T23:59:58"}, "time is"),
        ("a hash that is none", {"sha256": "x"}, "sha256 is 'x'"),
        ("no message", {"message": ""}, "message"),
        ("a blank message", {"message": " "}, "message"),
        ("another status", {"status": "lost"}, "status is 'lost'"),
        ("a score beyond 1", {"public": "1.5"}, "public is '1.5'"),
        ("a score that is no number", {"public": "nan"}, "public is 'nan'"),
        ("folds that are strings", {"folds": "first"}, "folds"),
        ("a quote that is not closed", {"runs": "'a"}, "runs is"),
        ("checkpoints without hashes", {"checkpoints": "a=b"}, "checkpoints"),
    ):
        row = ",".join((cells | other).get(column, "") for column in COLUMNS)
        text = ",".join(COLUMNS) + "\n" + row + "\n"
        yield bad(f"the ledger has {what}", show, put("ledger.csv", text), r"ledger\.csv, line 2: ", says)
    yield bad("the ledger has another header", show, put("ledger.csv", "a,b\n"), r"ledger\.csv, line 1: the header")
    short = ",".join(COLUMNS) + "\na,b\n"
    yield bad("the ledger has a short row", show, put("ledger.csv", short), r"ledger\.csv, line 2: 2 cells")
    yield bad("the ledger is UTF-16", show, put("ledger.csv", short.encode("utf-16")), r"ledger\.csv cannot be read")
    yield bad("the ledger has a field of 10^7 letters", show, put("ledger.csv", short + "x" * 10**7), r"ledger\.csv")
    yield bad(
        "a row that is not there", ("reproduce", "--row", "7", "--ledger", "ledger.csv"), nothing,
        r"ledger\.csv has .*no row 7",
    )  # fmt: skip
    broken = json.dumps({"sha256": "x"})
    yield bad("the origin of a submission is damaged", ("submit", "--file", "submissions/tiny.csv.gz", "--dry-run"),
              put("submissions/tiny.json", broken), r"submissions/tiny\.json is damaged")  # fmt: skip
