"""Cases of `inputs`: archives and images of a competition folder."""
import io
import struct
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from pipeline import carvana
from pipeline.data import zip_reader
from tests.torture.inputs import FOLDS, PREDICT, TRAIN, Case, Place, bad, good

Damage = Callable[[Place], None]


def cases() -> list[Case]:
    return [*archives(), *images()]


# --- archives -------------------------------------------------------------------------------------


def archives() -> Iterator[Case]:
    for tenth in range(10):
        damage = truncated("demo/test.zip", tenth)
        yield bad(f"test.zip, {tenth}/10 of it", PREDICT, damage, r"test\.zip is not a whole zip")
    stages = {"train.zip": FOLDS, "metadata.csv.zip": FOLDS, "sample_submission.csv.zip": PREDICT}
    for name, arguments in stages.items():
        yield bad(f"{name}, half of it", arguments, truncated(f"demo/{name}", 5), rf"{name}")
    yield bad(
        "test.zip is a web page", PREDICT, put("demo/test.zip", "<html>Accept the rules</html>"), r"test\.zip is not"
    )
    yield bad("test.zip is a folder", PREDICT, folder_in_its_place, r"neither test\.zip nor a folder test/")
    yield bad("test.zip has no image", PREDICT, put("demo/test.zip", zip_of({"a.txt": b""})), r"test\.zip.* no file")
    for place in ("../", "/", "test/../../"):
        what = f"a member of test.zip lies at {place}"
        yield bad(what, PREDICT, renamed(lambda name, place=place: place + name), r"test\.zip: the member '")
    yield bad("a member has a backslash for a slash", PREDICT, renamed(lambda n: f"..\\{n}"), "outside of its folder")
    yield bad("a member's name is no UTF-8", PREDICT, name_is_no_utf8, r"test\.zip is not a whole zip")
    yield bad("a member is there twice", PREDICT, twice, r"test\.zip holds \w+_01\.jpg twice")
    yield bad("a member is encrypted", PREDICT, flags(1), r"test\.zip, member test/\w+_01\.jpg.*encrypted")
    yield bad("a member is packed by bzip2", PREDICT, packed(zipfile.ZIP_BZIP2), r"test\.zip, member .*method 12")
    yield bad("a member is packed by LZMA", PREDICT, packed(zipfile.ZIP_LZMA), r"test\.zip, member .*method 14")
    yield bad(
        "a member unpacks to 70 MB", PREDICT, first_is(bytes(70 * 10**6)), r"test\.zip, member .*unpack to 70,000,000"
    )
    yield bad(
        "a member says that it has 4 GB", PREDICT, size_in_directory(2**32 - 2), r"member .*unpack to 4,294,967,294"
    )
    yield bad("a member is empty", PREDICT, first_is(b""), r"test\.zip, member .* not a JPEG")
    yield bad("a bit of a member is wrong", PREDICT, flipped_bit, r"test\.zip, member test/\w+_01\.jpg.*CRC")
    yield bad("an angle is missing", FOLDS, without_an_angle, r"train\.zip: car \w+ has no \w+ 01")
    yield bad("no test.zip", PREDICT, lambda place: place.demo("test.zip").unlink(), r"neither test\.zip")
    yield bad("shrink.json is truncated", PREDICT, put("demo/shrink.json", '{"scale": '), r"shrink\.json is damaged")
    yield bad(
        "shrink.json is a scale of 3", PREDICT, put("demo/shrink.json", '{"scale": 3}'), r"shrink\.json is damaged"
    )
    yield bad("shrink.json is deep", PREDICT, put("demo/shrink.json", "[" * 10**5), r"shrink\.json is damaged")

    yield good("test.zip is zip64", PREDICT, zip64, same_pixels)
    yield good("test.zip says that it is one of several disks", PREDICT, several_disks, same_pixels)
    yield good("test.zip is deflated", PREDICT, packed(zipfile.ZIP_DEFLATED), same_pixels)
    yield good("test.zip has a comment, and bytes in front", PREDICT, comment_and_front, same_pixels)
    yield good("test.zip has members of strange names", PREDICT, strange_names, same_pixels)
    yield good("members have backslashes for slashes", PREDICT, renamed(lambda n: f"test\\{n}"), same_pixels)
    yield good("images lie loose", PREDICT, unpacked, same_pixels)


def truncated(name: str, tenth: int) -> Damage:
    return lambda place: place.transform(name, lambda data: data[: len(data) * tenth // 10])


def put(name: str, data: bytes | str) -> Damage:
    return lambda place: place.put(name, data)


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, zip_reader.ARCHIVE_DATE), data, method)
    return packed.getvalue()


def folder_in_its_place(place: Place) -> None:
    place.demo("test.zip").unlink()
    place.demo("test.zip").mkdir()


def renamed(name_of: Callable[[str], str]) -> Damage:
    """Every member, by its file name."""
    return lambda place: place.put(
        "demo/test.zip", zip_of({name_of(name.rpartition("/")[2]): d for name, d in place.members("test.zip").items()})
    )


def name_is_no_utf8(place: Place) -> None:
    data = zip_of(place.members("test.zip") | {"\u00e9.txt": b""})
    place.put("demo/test.zip", data.replace(b"\xc3\xa9", b"\xff\xff"))


def twice(place: Place) -> None:
    members = place.members("test.zip")
    first = min(members)
    place.put("demo/test.zip", zip_of(members | {f"again/{first}": members[first]}))


def in_directory(transform: Callable[[bytearray, int], None]) -> Damage:
    """Change the entry of the first member in the archive's directory, which begins at a place in its bytes."""

    def damage(place: Place) -> None:
        data = bytearray(zip_of(dict(sorted(place.members("test.zip").items()))))
        transform(data, data.index(b"PK\1\2"))
        place.put("demo/test.zip", bytes(data))

    return damage


def flags(bits: int) -> Damage:
    def transform(data: bytearray, entry: int) -> None:
        data[6] |= bits
        data[entry + 8] |= bits

    return in_directory(transform)


def size_in_directory(size: int) -> Damage:
    return in_directory(lambda data, entry: struct.pack_into("<I", data, entry + 24, size))


def several_disks(place: Place) -> None:
    place.transform("demo/test.zip", lambda data: data[:-18] + struct.pack("<HH", 1, 1) + data[-14:])


def packed(method: int) -> Damage:
    return lambda place: place.put("demo/test.zip", zip_of(place.members("test.zip"), method))


def first_is(data: bytes) -> Damage:
    def damage(place: Place) -> None:
        members = place.members("test.zip")
        place.put("demo/test.zip", zip_of(members | {min(members): data}, zipfile.ZIP_DEFLATED))

    return damage


def flipped_bit(place: Place) -> None:
    _, image = place.first_image()
    there = image[5000:5050]
    place.transform("demo/test.zip", lambda data: data.replace(there, bytes([there[0] ^ 1]) + there[1:]))


def without_an_angle(place: Place) -> None:
    members = place.members("train.zip")
    place.put("demo/train.zip", zip_of({name: data for name, data in members.items() if name != min(members)}))


def zip64(place: Place) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, image in place.members("test.zip").items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(image)
    place.put("demo/test.zip", data.getvalue())


def comment_and_front(place: Place) -> None:
    data = zip_of(place.members("test.zip"))
    place.put("demo/test.zip", b"#!/bin/sh\n" + data[:-2] + struct.pack("<H", 3) + b"abc")


def strange_names(place: Place) -> None:
    more = {"\u0007.jpg": b"", "__MACOSX/._a.jpg": b"", "a\nb.jpg": b"", "Thumbs.db": b"", "folder/": b""}
    place.put("demo/test.zip", zip_of(place.members("test.zip") | more))


def unpacked(place: Place) -> None:
    for name, data in place.members("test.zip").items():
        place.put(f"demo/{name}", data)
    place.demo("test.zip").unlink()


def same_pixels(place: Place) -> bool:
    """All test images are those of the competition that was drawn."""
    drawn = carvana.CARVANA.open_images(place.demo("train_masks.zip").resolve().parent, "test")
    here = carvana.CARVANA.open_images(place.demo(""), "test")
    return here.names == drawn.names and all(
        np.array_equal(here.read(name, 8), drawn.read(name, 8)) for name in drawn.names
    )


# --- images -------------------------------------------------------------------------------------


def images() -> Iterator[Case]:
    here = r"\w+_01\.jpg: the "
    for tenth in range(10):
        yield bad(
            f"an image, {tenth}/10 of it", PREDICT, loose(lambda d, t=tenth: d[: len(d) * t // 10]), r"\w+_01\.jpg: "
        )
    yield bad("an image is text", PREDICT, loose(lambda data: b"no image"), here + "file is not a JPEG")
    yield bad("an image is a PNG", PREDICT, saved("RGB", format="PNG"), here + "file is not a JPEG")
    yield bad("an image is a PNG of 16 bits", PREDICT, saved("I;16", format="PNG"), here + "file is not a JPEG")
    yield bad("an image is a GIF", PREDICT, saved("P", format="GIF"), here + "file is not a JPEG")
    yield bad("an image is grey", PREDICT, saved("L", format="JPEG"), here + r".*colours are L")
    yield bad("an image is CMYK", PREDICT, saved("CMYK", format="JPEG"), here + r".*colours are CMYK")
    yield bad("a JPEG of 12 bits", PREDICT, loose(in_frame(4, b"\x0c")), r"\w+_01\.jpg: ")
    yield bad("a JPEG of 16 bits", PREDICT, loose(in_frame(4, b"\x10")), r"\w+_01\.jpg: ")
    yield bad(
        "an image is a column too small", PREDICT, saved("RGB", (1917, 1280), format="JPEG"), here + r".*is 1917x"
    )
    yield bad(
        "an image lies on its side", PREDICT, saved("RGB", (1280, 1918), format="JPEG"), here + r".*is 1280x1918"
    )
    yield bad(
        "an image of 65500x65500", PREDICT, loose(in_frame(5, struct.pack(">HH", 65500, 65500))), here + r".*is"
    )
    yield bad(
        "an image of 12000x10000", PREDICT, loose(in_frame(5, struct.pack(">HH", 10000, 12000))),
        here + r".*is 12000",
    )
    yield bad(
        "an image without its tables", PREDICT, loose(lambda data: data[:2] + data[-40000:]), r"\w+_01\.jpg: the "
    )
    yield bad("a training image is truncated", TRAIN, truncate_training_images, r"train\.zip, member ")
    arguments = (*TRAIN, "--set", "data.workers=2")
    yield bad(
        "a training image is truncated, read by a worker", arguments, truncate_training_images,
        r"train\.zip, member ",
    )
    cutout_image = ("cutout", "--image", "any.jpg", "--out", "out")
    yield bad("an image to cut out is text", cutout_image, put("any.jpg", "no image"), r"any\.jpg")
    yield bad("an image to cut out of 65500x65500", cutout_image, lambda p: p.put("any.jpg", bomb(p)), r"any\.jpg")

    yield good("an image is turned by EXIF", PREDICT, loose(turned), same_pixels)
    yield good("a JPEG with a comment and zeros behind", PREDICT, loose(commented), same_pixels)
    yield good(
        "a progressive JPEG", PREDICT, saved("RGB", format="JPEG", progressive=True, quality=95), nearly_the_same
    )


def loose(transform: Callable[[bytes], bytes]) -> Damage:
    """The first test image, changed, beside the archive."""

    def damage(place: Place) -> None:
        name, data = place.first_image()
        place.put(f"demo/{name}", transform(data))

    return damage


def saved(mode: str, size: tuple[int, int] | None = None, **options: object) -> Damage:
    def transform(data: bytes) -> bytes:
        image = Image.open(io.BytesIO(data))
        image = image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
        (image.resize(size) if size else image).save(file := io.BytesIO(), **options)
        return file.getvalue()

    return loose(transform)


def in_frame(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    """Change the frame header of a JPEG: 4 is its bits a sample, 5 its height and width."""

    def transform(data: bytes) -> bytes:
        at = data.index(b"\xff\xc0") + offset
        return data[:at] + new + data[at + len(new) :]

    return transform


def bomb(place: Place) -> bytes:
    return in_frame(5, struct.pack(">HH", 65500, 65500))(place.first_image()[1])


def truncate_training_images(place: Place) -> None:
    members = {name: data[: len(data) // 2] for name, data in place.members("train.zip").items()}
    place.put("demo/train.zip", zip_of(members))


def turned(data: bytes) -> bytes:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, 6, 0, 0)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:]


def commented(data: bytes) -> bytes:
    return data[:2] + b"\xff\xfe\0\x07hello" + data[2:] + bytes(9)


def nearly_the_same(place: Place) -> bool:
    drawn = carvana.CARVANA.open_images(place.demo("train_masks.zip").resolve().parent, "test")
    here, name = carvana.CARVANA.open_images(place.demo(""), "test"), drawn.names[0]
    return bool(np.abs(here.read(name, 8).astype(int) - drawn.read(name, 8)).mean() < 2)
