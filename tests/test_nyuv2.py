"""NYU Depth v2: the reader on drawn rooms in the real file's format, the class tables, and damaged files."""
import os
import pathlib
import re
import shutil
from collections.abc import Callable

import h5py
import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from pipeline.__main__ import main
from pipeline.data import nyuv2, nyuv2_classes
from pipeline.data.nyuv2 import FILE, SPLITS, NyuV2, depth_to_u8, room_of_scene
from pipeline.kaggle import download
from pipeline.runtime.files import locked, read_json
from pipeline.runtime.problem import Problem
from pipeline.synthetic import rooms, write_rooms

SCENES, HEIGHT_PX, WIDTH_PX = 4, 48, 64
IMAGES = SCENES * write_rooms.ANGLES


@pytest.fixture(scope="session")
def rooms_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Sixteen tiny images of four rooms; tests only read it."""
    folder = tmp_path_factory.mktemp("nyuv2") / "rooms"
    write_rooms.main(folder, SCENES, HEIGHT_PX, WIDTH_PX, seed=0, splits=True)
    return folder


@pytest.fixture
def rooms_copy(rooms_folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy that a test may damage."""
    return pathlib.Path(shutil.copytree(rooms_folder, tmp_path / "rooms_copy"))


def drawing(image: int) -> rooms.RoomImage:
    """The drawing that the image, counted from 0, was made from."""
    scene, number = divmod(image, write_rooms.ANGLES)
    room_m, boxes = rooms.make_room(list(rooms.KINDS)[scene], scene)
    return rooms.draw_image(room_m, boxes, HEIGHT_PX, WIDTH_PX, scene, number)


def test_a_fingerprint_depends_on_inputs_and_classes_and_not_on_the_file(
    rooms_folder: pathlib.Path, rooms_copy: pathlib.Path
) -> None:
    original = NyuV2(rooms_folder, 13, "rgb").fingerprint
    with open(rooms_copy / FILE, "ab") as file:
        file.write(b"!")
    assert NyuV2(rooms_copy, 13, "rgb").fingerprint == original
    others = [(rooms_folder, 40, "rgb"), (rooms_folder, 13, "rgbd")]
    assert len({original, *(NyuV2(*arguments).fingerprint for arguments in others)}) == 3


def test_images_depths_and_labels_have_a_hash_and_the_file_a_stamp(
    rooms_folder: pathlib.Path, rooms_copy: pathlib.Path
) -> None:
    original = NyuV2(rooms_folder, 13, "rgbd")
    with h5py.File(rooms_copy / FILE, "r+") as file:
        for number, key in enumerate(("images", "depths", "labels")):
            file[key][number] = file[key][number + 8]
    changed = NyuV2(rooms_copy, 13, "rgbd")
    names = [name for name in original.names if changed.inspect(name) != original.inspect(name)]
    assert names == ["0001", "0002", "0003"] and changed.stamp("0001") != original.stamp("0001")


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [0, 7, IMAGES - 1])
def test_images_depth_and_classes_come_back_as_they_were_drawn(rooms_folder: pathlib.Path, image: int) -> None:
    drawn, name = drawing(image), f"{image + 1:04d}"
    dataset = NyuV2(rooms_folder, classes=13, inputs="rgbd")
    image = dataset.read(name, scale=1)
    np.testing.assert_array_equal(image[..., :3], drawn.image)
    np.testing.assert_array_equal(image[..., 3], depth_to_u8(drawn.depth_m))
    truth = dataset.truth(name)
    classes = [nyuv2_classes.CLASSES_13.index(nyuv2_classes.class_of_13(word)) for word in rooms.WORDS]
    np.testing.assert_array_equal(truth, np.where(drawn.words >= 0, np.array(classes)[drawn.words], 255))
    assert truth.dtype == np.uint8 and truth.shape == (dataset.height, dataset.width)


def test_images_and_classes_share_a_grid_at_every_scale(rooms_folder: pathlib.Path) -> None:
    dataset = NyuV2(rooms_folder, classes=40, inputs="rgb")
    for scale in (1, 2, 4, 8):
        grid = (HEIGHT_PX // scale, WIDTH_PX // scale)
        assert dataset.read("0003", scale).shape == (*grid, dataset.channels)
        assert dataset.target("0003", scale).shape == grid


def test_all_894_words_are_classes_of_their_own(rooms_folder: pathlib.Path) -> None:
    dataset = NyuV2(rooms_folder, classes=894, inputs="rgb")
    truth, words = dataset.truth("0001"), drawing(0).words
    assert truth.dtype == np.uint16 and len(dataset.classes) == 894
    words_read = np.array((*dataset.classes, "")).astype(object)[np.where(truth == 65535, 894, truth)]
    assert (words_read == np.array((*rooms.WORDS, ""), object)[words]).all()
    assert truth[truth < 65535].max() > 255


def test_each_forked_process_opens_the_file_for_itself(rooms_folder: pathlib.Path) -> None:
    dataset = NyuV2(rooms_folder, classes=13, inputs="rgbd")
    expected = [dataset.read(name, 1) for name in dataset.names]  # now it is open here
    children = []
    for _ in range(2):
        if not (child := os.fork()):
            same = all((dataset.read(name, 1) == e).all() for name, e in zip(dataset.names, expected))
            os._exit(0 if same and dataset.handle[0] == os.getpid() else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert all((dataset.read(name, 1) == e).all() for name, e in zip(dataset.names, expected))


def test_depth_is_0_near_and_255_far_or_where_there_is_none() -> None:
    depths_m = np.array([0.3, 0.7, 1.0, 3.0, 10.0, 12.0, 0.0, np.nan, np.inf], np.float32)
    assert depth_to_u8(depths_m).tolist() == [0, 0, 82, 210, 255, 255, 255, 255, 255]


def test_the_file_itself_may_be_named(rooms_folder: pathlib.Path) -> None:
    assert NyuV2(rooms_folder / FILE, classes=13, inputs="rgb").names == [f"{n:04d}" for n in range(1, IMAGES + 1)]


def test_a_file_as_large_as_the_real_one_is_not_loaded(tmp_path: pathlib.Path) -> None:
    """1,449 images of 640x480: 4.9 GB of zeros that take no space on the disk."""
    images = 1449
    with h5py.File(tmp_path / FILE, "w") as file:
        file.create_dataset("images", (images, 3, 640, 480), "u1")
        file.create_dataset("labels", (images, 640, 480), "u2")
        file.create_dataset("depths", (images, 640, 480), "f4")
        write_rooms.add_texts(file, "names", [f"thing {number}" for number in range(894)])
        write_rooms.add_texts(file, "scenes", [f"kitchen_{number // 3:04d}" for number in range(images)])
    before = resident_bytes()
    dataset = NyuV2(tmp_path, classes=40, inputs="rgbd")
    for name in dataset.names[::60]:
        assert dataset.read(name, 1).shape == (480, 640, 4)
        assert (dataset.target(name, 2) == 255).all()  # label 0 everywhere: no valid pixel
    assert resident_bytes() - before < 100e6
    assert (len(dataset.names), len(set(dataset.room_of.values()))) == (1449, 483)


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- splits ---------------------------------------------------------------------------------------


def test_without_an_official_split_no_room_is_in_two_folds(rooms_copy: pathlib.Path) -> None:
    (rooms_copy / SPLITS).unlink()
    table = NyuV2(rooms_copy, classes=13, inputs="rgb").folds(3)
    assert (table.groupby("group")["fold"].nunique() == 1).all() and table["group"].nunique() == SCENES
    assert set(table["fold"]) == {0, 1, 2} and len(table) == IMAGES


def test_fold_0_of_the_official_split_holds_out_its_test_images(rooms_folder: pathlib.Path) -> None:
    table = NyuV2(rooms_folder, classes=13, inputs="rgb").folds(5)
    split = scipy.io.loadmat(rooms_folder / SPLITS)
    assert table["image"][table["fold"] == 0].astype(int).tolist() == split["testNdxs"].ravel().tolist()
    assert table["image"][table["fold"] == 1].astype(int).tolist() == split["trainNdxs"].ravel().tolist()


def test_scenes_of_one_recording_are_one_room() -> None:
    assert room_of_scene("living_room_0047a") == room_of_scene("living_room_0047b") == "living_room_0047"
    assert room_of_scene("cafe") == "cafe"


@pytest.mark.parametrize(
    "replaced_arrays, sentence",
    [
        ({"testNdxs": np.array([[9], [IMAGES + 1]])}, r"testNdxs names image 17, but there are 1 to 16"),
        ({"trainNdxs": np.array([[0], [1]])}, r"trainNdxs names image 0, but there are 1 to 16"),
        ({"testNdxs": np.array([[8], [9]])}, r"names image 8 twice"),
        ({"testNdxs": np.zeros((0, 1))}, r"has no images in testNdxs"),
        ({"trainNdxs": np.array(["1"])}, r"has no images in trainNdxs"),
        ({"testNdxs": np.array([[9.5]])}, r"testNdxs names image 9\.5"),
    ],
)  # fmt: skip
def test_a_split_that_does_not_fit_is_a_problem(
    rooms_copy: pathlib.Path, replaced_arrays: dict[str, NDArray], sentence: str
) -> None:
    split = {"trainNdxs": np.arange(1, 9)[:, None], "testNdxs": np.arange(9, 17)[:, None]} | replaced_arrays
    scipy.io.savemat(rooms_copy / SPLITS, split)
    dataset = NyuV2(rooms_copy, classes=13, inputs="rgb")
    with pytest.raises(Problem, match=sentence):
        dataset.folds(2)


@pytest.mark.parametrize("data", [b"", b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"\xff" * 40, b"<html>" * 50])
def test_a_damaged_split_is_a_problem(rooms_copy: pathlib.Path, data: bytes) -> None:
    (rooms_copy / SPLITS).write_bytes(data)
    with pytest.raises(Problem, match=r"splits\.mat (cannot be read|has no images)"):
        NyuV2(rooms_copy, classes=13, inputs="rgb").folds(2)


def test_a_split_that_is_cut_short_anywhere_is_a_problem(rooms_copy: pathlib.Path) -> None:
    data = (rooms_copy / SPLITS).read_bytes()
    for length in range(0, len(data), 7):
        (rooms_copy / SPLITS).write_bytes(data[:length])
        with pytest.raises(Problem, match=r"splits\.mat (cannot be read|has no images)"):
            nyuv2.read_official_folds(rooms_copy / SPLITS, [])


# --- what may be wrong with the file ---------------------------------------------------------------


def rewritten(edit: Callable[[h5py.File], None]) -> Callable[[pathlib.Path], None]:
    def damage(path: pathlib.Path) -> None:
        with h5py.File(path, "r+") as file:
            edit(file)

    return damage


def replaced(name: str, make: Callable[[NDArray], NDArray]) -> Callable[[pathlib.Path], None]:
    """Another array under the same name."""

    def edit(file: h5py.File) -> None:
        values = make(file[name][()])
        del file[name]
        file[name] = values

    return rewritten(edit)


def removed(name: str) -> Callable[[pathlib.Path], None]:
    def edit(file: h5py.File) -> None:
        del file[name]

    return rewritten(edit)


def points_at(file: h5py.File, name: str) -> None:
    file["names"][0, 5] = file[name].ref


def truncated(fraction: float) -> Callable[[pathlib.Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * fraction))


TROUBLE = {
    "missing": (pathlib.Path.unlink, r"There is no .*make download"),
    "empty": (truncated(0), r"is not a MATLAB 7\.3 file: its 0 bytes"),
    "cut in the user block": (lambda path: os.truncate(path, 300), r"is cut short after 300 bytes"),
    "cut in the middle": (truncated(0.5), r"is cut short after \d+ bytes; download it again"),
    "cut by a byte": (lambda path: os.truncate(path, path.stat().st_size - 1), r"is cut short"),
    "an error page": (lambda path: path.write_bytes(b"<!DOCTYPE html>"), r"begin with b'<!DOCTYPE html>'"),
    "MATLAB 5": (lambda path: scipy.io.savemat(path, {"images": np.zeros(3)}), r"is a MATLAB 5 file.*-v7\.3"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), r"cannot be read: Is a directory"),
    "no images": (removed("images"), r"has no dataset images, only .*labels"),
    "no labels": (removed("labels"), r"has no dataset labels"),
    "no names": (removed("names"), r"has no dataset names"),
    "no scenes": (removed("scenes"), r"has no dataset scenes"),
    "no depths": (removed("depths"), r"has no dataset depths"),
    "MATLAB's own order": (replaced("images", np.transpose), r"images is \(48, 64, 3, 16\).*transposed"),
    "rows before columns": (replaced("images", lambda a: a.swapaxes(2, 3)), r"images is \(16, 3, 48, 64\).*transposed"),
    "colours last": (replaced("images", lambda a: np.moveaxis(a, 1, 3)), r"images is \(16, 64, 48, 3\).*transposed"),
    "labels transposed": (replaced("labels", lambda a: a.swapaxes(1, 2)), r"labels is \(16, 48, 64\).*transposed"),
    "depths of fewer": (replaced("depths", lambda a: a[:-1]), r"depths is \(15, 64, 48\), but with images"),
    "grey images": (replaced("images", lambda a: a[:, 0]), r"images is \(16, 64, 48\)"),
    "images of floats": (replaced("images", lambda a: a / 255), r"images is float64, but it must be uint8"),
    "labels of floats": (replaced("labels", lambda a: a.astype(np.float32)), r"labels is float32.*uint16"),
    "fewer scenes": (replaced("scenes", lambda a: a[:, :-1]), r"has 16 images but 15 scenes"),
    "names of other things": (rewritten(lambda file: points_at(file, "images")), r"names refers to something that"),
    "names of numbers": (replaced("names", lambda a: np.arange(894.0)), r"names is float64.*references"),
}  # fmt: skip


@pytest.mark.parametrize("what", TROUBLE)
def test_a_damaged_file_is_one_sentence_when_it_is_opened(rooms_copy: pathlib.Path, what: str) -> None:
    damage, sentence = TROUBLE[what]
    damage(rooms_copy / FILE)
    with pytest.raises(Problem, match=sentence) as caught:
        NyuV2(rooms_copy, classes=13, inputs="rgbd")
    assert FILE in str(caught.value) and "\n" not in str(caught.value)


def test_rgb_needs_no_depth(rooms_copy: pathlib.Path) -> None:
    removed("depths")(rooms_copy / FILE)
    assert NyuV2(rooms_copy, classes=13, inputs="rgb").read("0001", 1).shape == (HEIGHT_PX, WIDTH_PX, 3)


def test_a_label_beyond_the_names_is_a_problem_that_names_the_image(rooms_copy: pathlib.Path) -> None:
    def edit(file: h5py.File) -> None:
        file["labels"][4, 2, 3] = 895

    rewritten(edit)(rooms_copy / FILE)
    dataset = NyuV2(rooms_copy, classes=13, inputs="rgb")
    assert dataset.truth("0004").shape == (HEIGHT_PX, WIDTH_PX)
    with pytest.raises(Problem, match=r"labels of image 0005 reach 895, but `names` has only 894 words"):
        dataset.target("0005", 2)


def test_an_image_whose_bytes_are_damaged_is_a_problem_that_names_it(rooms_copy: pathlib.Path) -> None:
    with h5py.File(rooms_copy / FILE) as file:
        chunk = file["images"].id.get_chunk_info(2)
    with open(rooms_copy / FILE, "r+b") as file:
        # h5py counts a chunk's offset from the end of MATLAB's own 512 bytes
        file.seek(chunk.byte_offset + write_rooms.USER_BLOCK_BYTES + chunk.size // 2)
        file.write(b"\xff" * 64)
    dataset = NyuV2(rooms_copy, classes=13, inputs="rgb")
    dataset.read("0002", 1)
    with pytest.raises(Problem, match=r"images of 0003 is damaged .*download it again"):
        dataset.read("0003", 1)


def test_another_number_of_classes_is_a_problem(rooms_folder: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"task\.classes is 21, but .* has 13 or 40 classes, or 894 words"):
        NyuV2(rooms_folder, classes=21, inputs="rgb")


def test_download_checks_what_is_there_and_says_where_to_get_it(
    rooms_folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download.main(rooms_folder, hq=False, only=[], kind="nyuv2")
    assert re.search(r"16 \w+ of 4 rooms, the official split\.$", capsys.readouterr().out.strip())
    with pytest.raises(Problem, match=r"There is no .*nyu_depth_v2_labeled\.mat.*https://cs\.nyu\.edu/.*splits\.mat"):
        download.main(tmp_path, hq=False, only=[], kind="nyuv2")
    with pytest.raises(Problem, match="data.kind folder"):
        download.main(tmp_path, hq=False, only=[], kind="folder")


# --- the class tables ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, of_40, of_13",
    [
        ("wall", "wall", "wall"), ("door", "door", "wall"), ("floor mat", "floor mat", "floor"),
        ("refridgerator", "refridgerator", "furniture"), ("night stand", "night stand", "furniture"),
        ("television", "television", "tv"), ("desk", "desk", "table"), ("blinds", "blinds", "window"),
        ("curtain", "curtain", "window"), ("shower curtain", "shower curtain", "objects"),
        ("books", "books", "books"), ("book", "otherprop", "objects"), ("person", "person", "objects"),
        ("chimney", "otherstructure", "objects"), ("door  window  reflection", "otherstructure", "objects"),
        ("garbage bin", "otherfurniture", "furniture"), ("coffee table", "otherfurniture", "furniture"),
        ("bottle", "otherprop", "objects"), ("an unknown word", "otherprop", "objects"),
    ],
)  # fmt: skip
def test_words_map_to_the_classes_of_the_public_tables(word: str, of_40: str, of_13: str) -> None:
    assert (nyuv2_classes.class_of_40(word), nyuv2_classes.class_of_13(word)) == (of_40, of_13)


def test_the_tables_are_complete() -> None:
    structure = nyuv2_classes.split_words(nyuv2_classes.STRUCTURE_WORDS)
    furniture = nyuv2_classes.split_words(nyuv2_classes.FURNITURE_WORDS)
    assert (len(structure), len(furniture)) == (68, 82) and not structure & furniture
    assert not (structure | furniture) & set(nyuv2_classes.CLASSES_40)
    assert len(set(nyuv2_classes.CLASSES_40)) == 40 and len(set(nyuv2_classes.CLASSES_13)) == 13
    assert set(nyuv2_classes.CLASS_13_OF_40.values()) == set(nyuv2_classes.CLASSES_13)
    merged = list(nyuv2_classes.CLASS_13_OF_40.values())
    assert len(merged) - merged.count("objects") == 24  # of the 40; the other 16 are objects


# --- the drawing ------------------------------------------------------------------------------------


def test_the_same_arguments_draw_the_same_bytes(rooms_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_rooms.main(tmp_path, SCENES, HEIGHT_PX, WIDTH_PX, seed=0, splits=True)
    for name in (FILE, SPLITS):
        assert (tmp_path / name).read_bytes() == (rooms_folder / name).read_bytes()
    before = (tmp_path / FILE).stat().st_mtime_ns
    write_rooms.main(tmp_path, SCENES, HEIGHT_PX, WIDTH_PX, seed=0, splits=True)
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    write_rooms.main(tmp_path, SCENES, HEIGHT_PX, WIDTH_PX, seed=1, splits=True)
    assert (tmp_path / FILE).read_bytes() != (rooms_folder / FILE).read_bytes()


@pytest.mark.parametrize("name", [FILE, SPLITS])
def test_a_file_that_was_not_drawn_is_not_overwritten(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"the real one")
    with pytest.raises(Problem, match=str(tmp_path / name)):
        write_rooms.main(tmp_path, SCENES, HEIGHT_PX, WIDTH_PX, seed=0, splits=False)
    assert (tmp_path / name).read_bytes() == b"the real one"


def test_a_split_is_written_only_on_request(
    tmp_path: pathlib.Path, rooms_folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(splits: bool) -> None:
        write_rooms.main(tmp_path, SCENES, HEIGHT_PX, WIDTH_PX, seed=0, splits=splits)

    draw(True)
    (tmp_path / SPLITS).unlink()
    capsys.readouterr()
    draw(True)
    assert "there already" not in capsys.readouterr().out
    assert (tmp_path / SPLITS).read_bytes() == (rooms_folder / SPLITS).read_bytes()
    draw(False)
    assert not (tmp_path / SPLITS).exists()


def test_a_marker_of_nested_brackets_is_overwritten(rooms_copy: pathlib.Path) -> None:
    (rooms_copy / write_rooms.ABOUT).write_text("[" * 10**5)
    write_rooms.main(rooms_copy, SCENES, HEIGHT_PX, WIDTH_PX, seed=0, splits=True)
    assert read_json(rooms_copy / write_rooms.ABOUT)["complete"]


def test_two_processes_do_not_draw_into_one_folder(rooms_copy: pathlib.Path) -> None:
    with locked(rooms_copy / ".lock", "busy"), pytest.raises(Problem, match="is being drawn by another process"):
        write_rooms.main(rooms_copy, SCENES, HEIGHT_PX, WIDTH_PX, seed=1, splits=True)


@pytest.mark.parametrize("stage", ["demo-rooms", "demo-data", "demo"])
@pytest.mark.parametrize("seed", ["-1", "1.5", "x", "9" * 5000])
def test_a_seed_is_a_whole_number_from_0(stage: str, seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([stage, "--seed", seed]) == 2
    assert "SEED (--seed): " in capsys.readouterr().err


def test_a_box_in_front_hides_the_wall_at_its_own_depth() -> None:
    room_m = np.array((4.0, 2.5, 5.0))
    colours = {word: np.array(mean, float) for word, (mean, _) in rooms.COLOURS.items()}
    low_m, high_m = np.array((1.5, 0.0, 3.0)), np.array((2.5, 2.5, 4.0))
    boxes = [*rooms.sides(room_m, colours), rooms.Box("table", low_m, high_m, colours["table"])]
    rays = rooms.rays_of(5, 9, yaw_rad=0.0, pitch_rad=0.0)
    index, axis, depth_m = rooms.nearest(np.array((2.0, 1.25, 1.0)), rays, boxes)
    assert (index[2, 4], axis[2, 4]) == (6, 2) and depth_m[2, 4] == pytest.approx(2.0)
    # at the left edge a ray goes 4 pixels aside for 0.81 * 9 ahead: it meets the side wall, 2 m to the left
    assert (boxes[index[2, 0]].word, axis[2, 0]) == ("wall", 0) and depth_m[2, 0] == pytest.approx(2 * 0.81 * 9 / 4)
    assert np.isfinite(depth_m).all()


def test_every_class_of_the_13_can_be_drawn() -> None:
    assert {nyuv2_classes.class_of_13(word) for word in rooms.WORDS} == set(nyuv2_classes.CLASSES_13)


def test_official_folds_need_only_the_split_and_the_names(rooms_folder: pathlib.Path) -> None:
    names = [f"{number:04d}" for number in range(1, IMAGES + 1)]
    folds = nyuv2.read_official_folds(rooms_folder / SPLITS, names)
    assert list(folds) == names and set(folds.values()) == {nyuv2.TEST_FOLD, nyuv2.TRAINING_FOLD}
