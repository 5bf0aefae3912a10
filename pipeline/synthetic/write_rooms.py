"""Stage `demo-rooms`: write a small `nyu_depth_v2_labeled.mat` of drawn rooms.

It has the structure of the real file: MATLAB 7.3, which is HDF5 behind a 512-byte MATLAB header, with every array's
axes in MATLAB's order and strings as 16-bit codes behind references. So `data/nyuv2.py` reads it like the real one.
What that reader does not use is left out: rawDepths, accelData, and the names of the raw files.

The same arguments give the same bytes.
"""
import io
import pathlib

import h5py
import numpy as np
from scipy.io import savemat

from pipeline.data.nyuv2 import FILE, SPLITS
from pipeline.runtime.files import replacing
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress
from pipeline.synthetic import rooms
from pipeline.synthetic.drawn import drawing, is_drawn

ANGLES = 4  # images of a scene
WORD_COUNT = 894  # names of things, as in the real file; most never occur
ID_STRIDE = 311  # shares no factor with 894, so its multiples spread over all ids
USER_BLOCK_BYTES = 512
HEADER_TEXT = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Thu Jan  1 00:00:00 1970 HDF5 schema 1.00 ."
ABOUT = "rooms.json"  # marks a folder as drawn, and holds the settings that it was drawn with


def main(folder: pathlib.Path, scenes: int, height: int, width: int, seed: int, splits: bool) -> None:
    """Draw `scenes` rooms, four images each, of height x width pixels.

    splits: write a `splits.mat` beside them; otherwise remove it. A folder that holds these rooms is left alone. Raise
    Problem if one of the two files exists but was not drawn.
    """
    if scenes < 2 or min(height, width) < 32 or width < height:
        what = f"{scenes} scenes of {width}x{height} pixels cannot be drawn"
        raise Problem(f"{what}; give at least 2 scenes of 32x32 pixels, not higher than wide.")
    settings = {"scenes": scenes, "height": height, "width": width, "seed": seed, "splits": splits}
    path, splits_path = folder / FILE, folder / SPLITS
    if is_drawn(folder / ABOUT, settings, [path], [splits_path]) and splits_path.is_file() == splits:
        print(f"{folder} is there already ({scenes} scenes, seed {seed})")
        return

    with drawing(folder / ABOUT, settings):
        with replacing(path) as draft:
            write_rooms(draft, scenes, height, width, seed)
        if splits:
            write_splits(splits_path, scenes)
        else:
            splits_path.unlink(missing_ok=True)
    print(f"wrote {path} ({scenes} scenes, seed {seed}): {scenes * ANGLES} images, {path.stat().st_size / 1e6:.0f} MB")


def write_rooms(path: pathlib.Path, scenes: int, height: int, width: int, seed: int) -> None:
    image_count = scenes * ANGLES
    kinds = [list(rooms.KINDS)[scene % len(rooms.KINDS)] for scene in range(scenes)]
    ids = np.arange(len(rooms.WORDS)) * ID_STRIDE % WORD_COUNT + 1  # the labels of rooms.WORDS, 1 to WORD_COUNT
    with h5py.File(path, "w", userblock_size=USER_BLOCK_BYTES) as file:
        images = add_array(file, "images", (image_count, 3, width, height), "uint8")
        labels = add_array(file, "labels", (image_count, width, height), "uint16")
        instances = add_array(file, "instances", (image_count, width, height), "uint8")
        depths = add_array(file, "depths", (image_count, width, height), "float32")
        for index in progress(range(image_count), "demo-rooms"):
            scene, number = divmod(index, ANGLES)
            room_m, boxes = rooms.make_room(kinds[scene], seed * scenes + scene)
            drawn = rooms.draw_image(room_m, boxes, height, width, seed * scenes + scene, number)
            images[index], labels[index] = drawn.image.T, np.where(drawn.words >= 0, ids[drawn.words], 0).T
            instances[index], depths[index] = drawn.instances.T, drawn.depth_m.T
        words = [f"thing {number}" for number in range(1, WORD_COUNT + 1)]
        for word, number in zip(rooms.WORDS, ids):
            words[number - 1] = word
        add_texts(file, "names", words)
        add_texts(file, "sceneTypes", [kind for kind in kinds for _ in range(ANGLES)])
        add_texts(file, "scenes", [f"{kind}_{i + 1:04d}" for i, kind in enumerate(kinds) for _ in range(ANGLES)])
    with open(path, "r+b") as raw:
        raw.write(HEADER_TEXT.ljust(124) + b"\x00\x02IM")  # version 2.0, and the mark of little-endian


def add_array(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """Add an array that is compressed image by image."""
    array = file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip", compression_opts=3)
    array.attrs["MATLAB_class"] = np.bytes_({"float32": "single"}.get(dtype, dtype))
    return array


def add_texts(file: h5py.File, name: str, texts: list[str]) -> None:
    """Add a MATLAB cell array of strings: references to arrays of UTF-16 codes."""
    cell = file.create_dataset(name, (1, len(texts)), h5py.ref_dtype)
    cell.attrs["MATLAB_class"] = np.bytes_("cell")
    for index, text in enumerate(texts):
        codes = np.frombuffer(text.encode("utf-16-le"), np.uint16).reshape(-1, 1)
        array = file.create_dataset(f"#refs#/{name}{index}", data=codes)
        array.attrs["MATLAB_class"] = np.bytes_("char")
        array.attrs["MATLAB_int_decode"] = np.int32(2)
        cell[0, index] = array.ref


def write_splits(path: pathlib.Path, scenes: int) -> None:
    """Write a `splits.mat` (MATLAB 5) with the first half of the scenes to train on; images count from 1."""
    first_test = scenes // 2 * ANGLES + 1
    file = io.BytesIO()
    savemat(file, {
        "trainNdxs": np.arange(1, first_test, dtype=np.uint16)[:, None],
        "testNdxs": np.arange(first_test, scenes * ANGLES + 1, dtype=np.uint16)[:, None],
    })
    with replacing(path) as draft:  # without the date on which it was written
        draft.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + file.getvalue()[116:])
