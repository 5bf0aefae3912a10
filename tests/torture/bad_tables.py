"""Cases of `inputs`: masks and tables of a competition folder."""
import io
import struct
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from pipeline import carvana
from tests.torture.bad_data import Damage, put, zip_of
from tests.torture.inputs import FOLDS, PREDICT, TRAIN, Case, Place, bad, good


def cases() -> list[Case]:
    return [*masks(), *tables()]


# --- masks ----------------------------------------------------------------------------------------


def masks() -> Iterator[Case]:
    here = r"train_masks\.zip, member train_masks/\w+_mask\.gif: the mask "
    yield bad("masks are truncated", TRAIN, gifs(lambda data: data[: len(data) // 2]), here + "is not a whole GIF")
    yield bad("masks are text", TRAIN, gifs(lambda data: b"no mask"), here + "is not a whole GIF")
    yield bad("masks are PNGs", TRAIN, gifs(lambda data: as_gif(data, 1, format="PNG")), here + "is not a whole GIF")
    yield bad(
        "masks go up to 255", TRAIN, gifs(lambda data: as_gif(data, 255, format="GIF")), here + "has values up to 255"
    )
    yield bad(
        "masks are small", TRAIN, gifs(lambda data: as_gif(data, 1, (959, 640), format="GIF")), here + "is 959x640"
    )
    arguments = {"a letter": "1 x", "an odd count": "1 2 3", "too far": "2455040 2", "over one another": "1 5 3 1"}
    for what, runs in arguments.items():
        yield bad(f"run lengths: {what}", TRAIN, run_lengths(runs), r"train_masks\.csv, row \w+_\d\d\.jpg: ")
    yield bad(
        "run lengths of 10^7 letters", TRAIN, run_lengths("1 " + "9" * 10**7, rows=1),
        r"train_masks\.csv.* lacks \d+ masks",
    )


def gifs(transform: Callable[[bytes], bytes]) -> Damage:
    def damage(place: Place) -> None:
        members = place.members("train_masks.zip")
        changed = transform(min(members.items())[1])
        place.put("demo/train_masks.zip", zip_of(dict.fromkeys(members, changed)))
        place.demo("train_masks.csv.zip").unlink()

    return damage


def as_gif(data: bytes, value: int, size: tuple[int, int] | None = None, **options: object) -> bytes:
    mask = (np.asarray(Image.open(io.BytesIO(data))) > 0).astype(np.uint8) * value
    image = Image.fromarray(mask)
    (image.resize(size) if size else image).save(file := io.BytesIO(), optimize=False, **options)
    return file.getvalue()


def run_lengths(text: str, rows: int | None = None) -> Damage:
    def damage(place: Place) -> None:
        names = [name.rpartition("/")[2] for name in place.members("train.zip")][:rows]
        place.put("demo/train_masks.csv", "img,rle_mask\n" + "".join(f"{name},{text}\n" for name in names))

    return damage


# --- tables ---------------------------------------------------------------------------------------


def tables() -> Iterator[Case]:
    name = r"metadata\.csv"
    yield bad("metadata is empty", FOLDS, put("demo/metadata.csv", ""), name)
    yield bad("metadata has a header alone", FOLDS, put("demo/metadata.csv", "id,make\n"), name + " has no row")
    yield bad("metadata has semicolons", FOLDS, metadata(lambda t: t.replace(b",", b";")), name + " has no column id")
    yield bad(
        "metadata has no makes", FOLDS, metadata(lambda t: t.replace(b"make", b"brand")), name + " has no column make"
    )
    yield bad(
        "metadata took ids for numbers", FOLDS, metadata(lambda t: t.replace(b"331659860e11", b"3.3165986e+19")),
        "331659860e11",
    )
    yield bad(
        "metadata has a car twice", FOLDS, metadata(lambda t: t + t.splitlines(True)[1]), name + " has two rows for id"
    )
    yield bad(
        "a row of metadata is short", FOLDS, metadata(lambda t: t + b"0123456789ab\n"),
        name + r", line \d: 1 fields",
    )
    yield bad(
        "a row of metadata is long", FOLDS, metadata(lambda t: t + b"x,1,2,3,4,5,6,7\n"), name + r", line \d: 8 fields"
    )
    yield bad("all rows of metadata are long", FOLDS, metadata(longer), name + ", line 2: 7 fields")
    yield bad("a quote of metadata is not closed", FOLDS, metadata(lambda t: t + b'0123,"'), name)
    yield bad("metadata is UTF-16", FOLDS, metadata(lambda t: t.decode().encode("utf-16")), name)
    yield bad("metadata is Latin-1", FOLDS, metadata(lambda t: t + "0,,é\n".encode("latin-1")), name)
    yield bad("metadata is zeros", FOLDS, put("demo/metadata.csv", bytes(10**6)), name)
    other = zip_of({"other.csv": b"id,make\n"})
    yield bad(
        "metadata.csv.zip holds another table", FOLDS, put("demo/metadata.csv.zip", other),
        name + r"\.zip has no member",
    )
    yield bad(
        "metadata.csv.zip unpacks to 2 GB", FOLDS, put("demo/metadata.csv.zip", claims(2**31)),
        name + r"\.zip.*unpack to",
    )
    for header in ("id,id,year", "id,make,make"):
        yield bad(
            f"metadata has the columns {header}", FOLDS, put("demo/metadata.csv", f"{header}\n331659860e11,a,b\n"),
            name + f", line 1: the column {header.split(',')[-2]} stands there twice",
        )
    yield bad("no metadata", FOLDS, lambda place: place.demo("metadata.csv.zip").unlink(), r"neither metadata\.csv nor")
    sample = r"sample_submission\.csv"
    yield bad(
        "the sample submission is a header alone", PREDICT, put("demo/sample_submission.csv", "img,rle_mask\n"), sample
    )
    unknown = "img,rle_mask\n0123456789ab_01.jpg,1 1\n"
    yield bad(
        "the sample submission has others", PREDICT, put("demo/sample_submission.csv", unknown), "0123456789ab_01"
    )

    yield good("metadata has a byte-order mark", FOLDS, metadata(lambda t: b"\xef\xbb\xbf" + t), same_makes)
    yield good("metadata has CRLF", FOLDS, metadata(lambda t: t.replace(b"\n", b"\r\n")), same_makes)
    yield good("metadata is quoted", FOLDS, metadata(quoted), same_makes)
    yield good("metadata has columns more, one of 10^7 letters", FOLDS, metadata(wider), same_makes)


def metadata(transform: Callable[[bytes], bytes]) -> Damage:
    """The table, changed and loose: it wins over the archive."""
    return lambda place: place.put("demo/metadata.csv", transform(place.members("metadata.csv.zip")["metadata.csv"]))


def longer(table: bytes) -> bytes:
    header, *rows = table.splitlines()
    return b"\n".join([header, *(b"x," + row for row in rows)])


def quoted(table: bytes) -> bytes:
    return b"\n".join(b",".join(b'"' + cell + b'"' for cell in row.split(b",")) for row in table.splitlines())


def wider(table: bytes) -> bytes:
    header, *rows = table.splitlines()
    return b"\n".join([header + b",note", *(row + b"," + b"x" * (10**7 if row is rows[0] else 1) for row in rows)])


def claims(size: int) -> bytes:
    data = bytearray(zip_of({"metadata.csv": b"id,make\n"}))
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, size)
    return bytes(data)


def same_makes(place: Place) -> bool:
    drawn = carvana.read_makes(place.demo("train_masks.zip").resolve().parent)
    return carvana.read_makes(place.demo("")) == drawn
