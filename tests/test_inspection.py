"""All images and masks are looked at before the first step, once; what decides is their pixels, not their files."""
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from plain_folder import draw

from pipeline.__main__ import main
from pipeline.carvana import CARVANA
from pipeline.data import inspection
from pipeline.data.competition import CompetitionDataset
from pipeline.data.image_folder import ImageFolder
from pipeline.data.inspection import inspect_images
from pipeline.model import checkpoint
from pipeline.runtime.files import locked
from pipeline.runtime.problem import Problem

MEMORY = "runs/mine/inspected.json"
CONFIG = """
data: {kind: folder, folder: mine, height: 64, width: 96, scale: 4, folds: 2, workers: 0}
model: {width: 4, depth: 1}
train: {epochs: 2, batch_size: 2}
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder() -> pathlib.Path:
    return draw(pathlib.Path("mine"), images=6, binary=True)


def opened(folder: pathlib.Path, size: tuple[int, int] = (64, 96)) -> ImageFolder:
    return ImageFolder(folder, (), 255, *size)


def inspect(dataset: ImageFolder | CompetitionDataset, capsys: pytest.CaptureFixture) -> tuple[dict[str, str], str]:
    """Return the hashes, and how many images were read for them, as the line on stdout says."""
    capsys.readouterr()
    digest_of = inspect_images(dataset, dataset.names, pathlib.Path(MEMORY))
    out = capsys.readouterr().out
    return digest_of, out.split()[1] if out else "0"


def change_mask(folder: pathlib.Path, name: str, change=lambda values: values, **options) -> None:
    """Save a mask again, with `change` applied to its values uint8 (height, width)."""
    path = folder / "masks" / f"{name}.png"
    with Image.open(path) as mask:
        values = np.asarray(mask)
    Image.fromarray(change(values)).save(path, **options)


def cut_short(path: pathlib.Path) -> bytes:
    """Leave half of a file; return what it held."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


# --- bad files ----------------------------------------------------------------------------------------


def test_all_bad_files_are_counted_and_the_first_are_described(folder: pathlib.Path) -> None:
    cut_short(folder / "images" / "p01.jpg")
    for name in ("p02", "p03", "p05"):
        change_mask(folder, name, lambda values: values // 2)
    with pytest.raises(Problem) as caught:
        inspect_images(opened(folder), opened(folder).names, pathlib.Path(MEMORY))
    message = str(caught.value)
    assert message.startswith("4 of 6 images, or their masks, are bad: (1) mine/images/p01.jpg is not a whole")
    assert "(2) mine/masks/p02.png: the mask has the values 0, 127" in message and "(3) mine/masks/p03.png" in message
    assert message.endswith("; and 1 more.") and "\n" not in message and "p05" not in message


@pytest.mark.parametrize("fraction", [0.5, 0.9])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_that_is_cut_short_is_bad_though_its_header_is_good(
    folder: pathlib.Path, suffix: str, fraction: float
) -> None:
    path = folder / "images" / "p01.jpg"
    with Image.open(path) as image:
        image.load()
    path.unlink()
    image.save(path := path.with_suffix(suffix))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(Problem, match=rf"p01\{suffix} is not a whole JPEG, PNG or TIFF image"):
        opened(folder).inspect("p01")


def test_an_image_of_another_size_is_bad_where_images_are_not_resized(folder: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"^5 of 6 .*p01\.jpg is \d+x\d+, but the first image"):
        inspect_images(dataset := opened(folder, (None, None)), dataset.names, pathlib.Path(MEMORY))


def test_a_link_to_nothing_is_bad(folder: pathlib.Path) -> None:
    (folder / "masks" / "p01.png").unlink()
    (folder / "masks" / "p01.png").symlink_to("nowhere.png")
    with pytest.raises(Problem, match=r"masks/p01\.png is not a whole"):
        inspect_images(dataset := opened(folder), dataset.names, pathlib.Path(MEMORY))


def test_a_competitions_damaged_member_is_bad(demo_copy: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    archive, name = demo_copy / "train.zip", CARVANA.open_dataset(demo_copy).names[5]
    data = bytearray(archive.read_bytes())
    data[data.index(f"train/{name}".encode()) + 1000] ^= 255
    archive.write_bytes(data)
    with pytest.raises(Problem, match=rf"train\.zip, member train/{name} cannot be read \(Bad CRC-32"):
        inspect(CARVANA.open_dataset(demo_copy), capsys)


def test_a_competitions_row_that_holds_no_mask_is_bad(demo_copy: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    text_of = CARVANA.open_dataset(demo_copy).masks.text_of
    bad = list(text_of)[3:5]
    rows = [f"{image},{'1 x' if image in bad else text}" for image, text in text_of.items()]
    (demo_copy / "train_masks.csv").write_text("\n".join(["img,rle_mask", *rows]))
    with pytest.raises(Problem, match=rf"^2 of 64 .*\(1\) .*train_masks\.csv, row {bad[0]}: 'x' is not .*row {bad[1]}"):
        inspect(CARVANA.open_dataset(demo_copy), capsys)


# --- what is remembered ------------------------------------------------------------------------------


def test_only_what_has_changed_is_read_again(folder: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    first, count = inspect(opened(folder), capsys)
    assert count == "6" and inspect(opened(folder), capsys) == (first, "0")
    change_mask(folder, "p03", compress_level=0)
    assert inspect(opened(folder), capsys) == (first, "1")
    assert inspect(opened(folder, (32, 48)), capsys)[1] == "6"  # what is read at another size, is other


def test_what_is_good_is_remembered_though_another_file_is_bad(
    folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    whole = cut_short(folder / "masks" / "p03.png")
    for _ in range(2):
        with pytest.raises(Problem, match=r"masks/p03\.png"):
            inspect(opened(folder), capsys)
    (folder / "masks" / "p03.png").write_bytes(whole)
    assert inspect(opened(folder), capsys)[1] == "1"


def test_a_kill_loses_only_what_was_not_written_yet(
    folder: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "REMEMBER_S", 0.0)
    remember, calls = inspection.remember, []

    def remember_twice(*arguments) -> None:
        calls.append(arguments)
        if len(calls) > 2:
            raise KeyboardInterrupt  # and nothing is written on the way out
        remember(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(inspection, "remember", remember_twice)
        inspect(opened(folder), capsys)
    assert inspect(opened(folder), capsys)[1] == "4"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"dataset": 1}', '{"images": {"p00": 3}}', '{"images": {"p00": []}}'])
def test_a_memory_that_makes_no_sense_is_replaced(
    folder: pathlib.Path, capsys: pytest.CaptureFixture, text: str
) -> None:
    first, _ = inspect(opened(folder), capsys)
    stored = pathlib.Path(MEMORY).read_text()
    try:
        damaged = json.dumps(json.loads(stored) | json.loads(text))
    except (ValueError, TypeError):
        damaged = text
    pathlib.Path(MEMORY).write_text(damaged)
    assert inspect(opened(folder), capsys) == (first, "6") and pathlib.Path(MEMORY).read_text() == stored


def test_a_memory_that_cannot_be_written_costs_time_and_nothing_else(
    folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    with locked(pathlib.Path("runs/mine/.inspected.lock"), "never raised"):
        assert inspect(opened(folder), capsys)[1] == inspect(opened(folder), capsys)[1] == "6"
    assert not pathlib.Path(MEMORY).exists()


# --- pixels, not files -------------------------------------------------------------------------------


def test_the_same_pixels_in_other_files_have_the_same_hash(folder: pathlib.Path) -> None:
    before = {name: opened(folder).inspect(name) for name in opened(folder).names}
    change_mask(folder, "p00", compress_level=0)
    change_mask(folder, "p01", lambda values: values // 255)  # 0 and 1 are the same mask as 0 and 255
    image = folder / "images" / "p02.jpg"
    image.write_bytes(image.read_bytes().replace(b"\xff\xdb", b"\xff\xfe\0\4hi\xff\xdb", 1))  # a comment
    assert {name: opened(folder).inspect(name) for name in opened(folder).names} == before


def test_other_pixels_of_a_mask_or_an_image_have_another_hash(folder: pathlib.Path) -> None:
    before = {name: opened(folder).inspect(name) for name in opened(folder).names}
    change_mask(folder, "p00", lambda values: 255 - values)
    with Image.open(folder / "images" / "p01.jpg") as image:
        image.point(lambda value: 255 - value).save(folder / "images" / "p01.jpg")
    changed = [name for name, digest in before.items() if opened(folder).inspect(name) != digest]
    assert changed == ["p00", "p01"]


def test_a_competition_has_the_same_hashes_from_files_and_from_run_lengths_packed_and_unpacked(
    demo_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    first, count = inspect(CARVANA.open_dataset(demo_copy), capsys)
    assert count == str(len(first)) == "64"
    for table in demo_copy.glob("train_masks.csv*"):
        table.unlink()
    shutil.unpack_archive(demo_copy / "train.zip", demo_copy)
    (demo_copy / "train.zip").unlink()
    assert inspect(CARVANA.open_dataset(demo_copy), capsys) == (first, count)
    assert inspect(CARVANA.open_dataset(demo_copy), capsys) == (first, "0")


# --- a training ---------------------------------------------------------------------------------------


def run(stage: str, *arguments: str) -> int:
    pathlib.Path("mine.yaml").write_text(CONFIG)
    return main([stage, "--config", "mine.yaml", *arguments])


def test_a_bad_mask_ends_a_training_before_its_first_step_and_mended_it_goes_on(
    folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("folds") == 0
    rows = pathlib.Path("runs/mine/folds.csv").read_text().splitlines()
    held_out = next(row.partition(",")[0] for row in rows if row.endswith(",0"))
    whole = cut_short(folder / "masks" / f"{held_out}.png")
    assert run("train", "--fold", "0") == 1
    assert f"masks/{held_out}.png is not a whole" in capsys.readouterr().err
    assert [path.name for path in pathlib.Path("runs/mine/fold0").iterdir()] == [".lock"]
    (folder / "masks" / f"{held_out}.png").write_bytes(whole)
    assert run("train", "--fold", "0", "--set", "train.checkpoint_steps=1") == 0
    assert "Checking 1 images and their masks, once" in capsys.readouterr().out

    # the other fold and the validation read nothing again
    assert run("train", "--fold", "1") == 0 and run("validate", "--fold", "0") == 0
    assert "Checking" not in capsys.readouterr().out

    # a run that an earlier version began, and so without hashes, goes on; then the same pixels do, others do not
    last = checkpoint.load(pathlib.Path("runs/mine/fold0/last.previous.pt"), ("digests",))
    del last["digests"]
    checkpoint.save(pathlib.Path("runs/mine/fold0/last.pt"), last)
    change_mask(folder, "p00", compress_level=0)
    assert run("train", "--fold", "0") == 0
    change_mask(folder, "p00", compress_level=9)
    assert run("train", "--fold", "0") == 0
    assert "trained already" in capsys.readouterr().out
    change_mask(folder, "p00", np.zeros_like)
    assert run("train", "--fold", "0") == 1
    assert "begun with other pixels in 1 images or masks of mine (p00); put them back" in capsys.readouterr().err
    assert run("validate", "--fold", "0") == 0  # a score is of the masks that are there
