"""Random bytes, grown by atheris (libFuzzer) towards code that no earlier ones reached.

    python -m tests.torture.fuzz 600               each target below for so many seconds, one after another
    python -m tests.torture.fuzz 600 archive       one of them

A target takes any bytes and may raise nothing but what its door promises; an exception, more than 10 seconds for one
input, or more than 1 GB of memory ends the run with exit code 1 and leaves the input in the current folder. The seeds
below are the whole corpus: what a run adds to it is gone with the run.
"""
import io
import pathlib
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable

import atheris

for name in ("csv", "gzip", "zipfile"):  # to be read again with the marks that tell atheris which lines were reached
    sys.modules.pop(name, None)
with atheris.instrument_imports(include=["pipeline", "zipfile", "csv", "gzip", "PIL"]):
    import csv
    import gzip
    import zipfile

    from pipeline import carvana, config
    from pipeline.data import competition, grouping, images, zip_reader
    from pipeline.data.zip_reader import FileSet
    from pipeline.kaggle import ledger
    from pipeline.submission import provenance
    from pipeline.submission.checks import check
    from pipeline.masks import rle
    from pipeline.runtime.problem import Problem

MEMORY_MB = 1024
SECONDS_FOR_ONE = 10
LONGEST_INPUT_BYTES = 4096
# atheris itself keeps some 50 bytes of each run that compares texts: 18 million runs of `decoder`, five minutes, fill
# the 1 GB, though the same inputs without atheris take none. So each process fuzzes for a while only.
SECONDS_OF_PROCESS = 100
NAMES = [carvana.image_name(car, angle) for car in ("0123456789ab", "331659860e11") for angle in ("01", "02")]
RUNS = ("1 500000", "9 400000 600000 3", "1918 600000", "5 700000")
ROWS = "".join(f"{name},{runs}\n" for name, runs in zip(NAMES, RUNS))
HEIGHT, WIDTH = 24, 40  # of the images here


# --- targets --------------------------------------------------------------------------------------


def decoder(data: bytes, folder: pathlib.Path) -> None:
    """Run lengths: the same as by hand, or a ValueError where they are none."""
    pixels, text = 1 + (data[0] if data else 0), data[1:].decode("latin-1")
    if pixels % 2:  # random bytes are seldom numbers: here most are
        text = "".join("0123456789      -\n\xb2"[byte % 19] for byte in data[1:])
    expected = runs_by_hand(text, pixels)
    try:
        actual = rle.parse(text, pixels).tolist()
    except ValueError:
        actual = None
    assert actual == expected, (text, pixels, actual, expected)
    if actual:
        mask = rle.decode(text, 1, pixels)
        assert mask.sum() == sum(end - begin for begin, end in actual)
        assert (rle.decode(rle.encode(mask), 1, pixels) == mask).all()


def runs_by_hand(text: str, pixels: int) -> list[list[int]] | None:
    """Bounds of the runs, number by number; None where the text is no mask."""
    tokens = [part for part in text.split(" ") if part]
    if len(tokens) % 2 or not all(part.isascii() and part.isdigit() for part in tokens):
        return None
    runs, last_end = [], 0
    for start, length in zip(map(int, tokens[::2]), map(int, tokens[1::2])):
        begin, end = start - 1, start - 1 + length
        if start < 1 or length < 1 or begin < last_end or end > pixels:
            return None
        runs.append([begin, end])
        last_end = end
    return runs


def checker(data: bytes, folder: pathlib.Path) -> None:
    """A submission in any of its three forms: accepted with the coverage that a plain reader computes, or a Problem."""
    form, content = data[:1], data[1:]
    if form in (b"g", b"z"):  # packed here, so that what changes lies behind the packing
        path = folder / ("s.csv.gz" if form == b"g" else "s.csv.zip")
        path.write_bytes(gzip.compress(content) if form == b"g" else zip_of({"s.csv": content}))
    else:
        path = folder / {b"G": "s.csv.gz", b"Z": "s.csv.zip"}.get(form, "s.csv")
        path.write_bytes(content)
    try:
        mean_coverage = check(path, NAMES, carvana.CARVANA).mean_coverage
    except Problem:
        return
    if form not in (b"G", b"Z"):
        rows = list(csv.reader(io.StringIO(content.decode("ascii"), newline="")))
        assert [row[0] for row in rows[1:]] == NAMES
        lengths = [int(number) for row in rows[1:] for number in row[1].split()[1::2]]
        assert mean_coverage == sum(lengths) / (carvana.CARVANA.pixels * len(NAMES))


def archive(data: bytes, folder: pathlib.Path) -> None:
    """An archive of images: each member whole by its checksum, or a Problem."""
    (folder / "test.zip").write_bytes(data)
    try:
        files = FileSet(folder, "test", carvana.CARVANA.pattern(".jpg"))
    except Problem:
        return
    for name in files.names:
        try:
            read = files.read(name)
        except Problem:
            continue
        assert zlib.crc32(read) == files.open_archive().getinfo(files.members[name]).CRC
    files.open_archive().close()


def image_files(data: bytes, folder: pathlib.Path) -> None:
    """A JPEG or a mask: an array of the size that was asked for, or a Problem."""
    scale = (1, 2, 4, 8)[data[0] % 4] if data else 1
    try:
        image = images.decode_jpeg(data[1:], scale, HEIGHT, WIDTH, "here")
        assert image.shape == (*images.grid_shape(HEIGHT, WIDTH, scale), 3)
    except Problem:
        pass
    try:
        assert images.decode_mask(data[1:], ".gif", HEIGHT, WIDTH, "here").shape == (HEIGHT, WIDTH)
    except Problem:
        pass


def tables(data: bytes, folder: pathlib.Path) -> None:
    """What is read whole: tables, settings, the ledger, the origin of a submission."""
    readers: list[tuple[str, Callable[[pathlib.Path], object]]] = [
        ("metadata.csv", lambda path: carvana.read_makes(path.parent)),
        ("metadata.csv.zip", lambda path: carvana.read_makes(path.parent)),
        ("folds.csv", grouping.read_folds),
        ("x.yaml", config.load),
        ("ledger.csv", ledger.read),
        ("x.json", provenance.read),
        ("shrink.json", lambda path: competition.read_stored_scale(path.parent)),
    ]
    name, read = readers[data[0] % len(readers) if data else 0]
    path = folder / name
    path.write_bytes(data[1:])
    try:
        read(path)
    except Problem as problem:
        assert str(path) in str(problem) or name in str(problem)
    finally:
        path.unlink()


# --- seeds ----------------------------------------------------------------------------------------


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as written:
        for name, data in files.items():
            written.writestr(zipfile.ZipInfo(name, zip_reader.ARCHIVE_DATE), data, method)
    return packed.getvalue()


def jpeg_and_gif() -> list[bytes]:
    import numpy as np
    from PIL import Image

    columns = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    image, mask = Image.fromarray(np.stack([columns] * 3, axis=2)), Image.fromarray((columns > 128).astype(np.uint8))
    made = []
    for image, options in (
        (image, {"format": "JPEG"}),
        (image, {"format": "JPEG", "progressive": True, "subsampling": 2}),
        (image.convert("L"), {"format": "JPEG"}),
        (mask.convert("P"), {"format": "GIF"}),
    ):
        image.save(file := io.BytesIO(), **options)
        made.append(file.getvalue())
    return made


def seeds_of(target: str) -> list[bytes]:
    files = {f"test/{name}": name.encode() * 5 for name in NAMES}
    header = b"img,rle_mask\n"
    rows = ROWS.encode()
    if target == "decoder":
        return [b"\x14", b"\x141 1 3 1 5 9", b"\xff1 256", b"\x14-1 2", b"\x1499999999999999999999 1", b"\x14 1  3 "]
    if target == "checker":
        whole = header + rows
        quoted = header + b"".join(b'"%b","%b"\r\n' % tuple(line.split(b",")) for line in rows.splitlines())
        packed = [b"G" + gzip.compress(whole, mtime=0), b"Z" + zip_of({"s.csv": whole}, zipfile.ZIP_DEFLATED)]
        return [b"p" + whole, b"g" + whole, b"z" + whole, b"p" + quoted, b"p\xef\xbb\xbf" + whole, *packed]
    if target == "archive":
        methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        return [zip_of(files, method) for method in methods]
    if target == "image_files":
        return [bytes([scale]) + made for made in jpeg_and_gif() for scale in range(4)]
    makes = b"id,year,make\n331659860e11,2010,Infiniti\n011330127438,,\n"
    settings = b"data: {scale: 8}\ntrain: {epochs: 3, learning_rate: 1e-3}\n"
    row = b"2017-09-27T23:59:58Z,a.csv.gz," + b"0" * 64 + b",," * 7 + b",,no,7,complete,0.9,0.9,two #1,\n"
    about = b'{"sha256": "' + b"0" * 64 + b'", "folds": [0], "threshold": 0.5}'
    of_readers = [
        makes, zip_of({"metadata.csv": makes}), b"car_id,make,fold\n331659860e11,audi,0\n", settings,
        ",".join(ledger.COLUMNS).encode() + b"\n" + row, about, b'{"scale": 2}',
    ]  # fmt: skip
    return [bytes([number]) + content for number, content in enumerate(of_readers)]


TARGETS = {target.__name__: target for target in (decoder, checker, archive, image_files, tables)}


# --- running them ---------------------------------------------------------------------------------


def fuzz(target: str, seconds: int, folder: pathlib.Path) -> None:
    """Does not return: libFuzzer leaves the process."""
    corpus, work = folder / "corpus", folder / "work"
    corpus.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds_of(target)):
        (corpus / f"seed{number}").write_bytes(seed)
    atheris.Setup(
        [
            target, str(corpus), f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT_BYTES}",
            f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SECONDS_FOR_ONE}", f"-artifact_prefix=fuzz-{target}-",
            "-print_final_stats=1", "-close_fd_mask=2",  # which hides what libjpeg says of damage
        ],
        lambda data: TARGETS[target](data, work),
    )  # fmt: skip
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Each target in a folder of its own, process after process."""
    seconds, *chosen = arguments
    for target in chosen or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            for begun in range(0, int(seconds), SECONDS_OF_PROCESS):
                now = min(SECONDS_OF_PROCESS, int(seconds) - begun)
                code = f"from tests.torture import fuzz; fuzz.fuzz({target!r}, {now}, fuzz.pathlib.Path({folder!r}))"
                if subprocess.run([sys.executable, "-c", code]).returncode:
                    print(f"{target}: an input that it does not bear lies in fuzz-{target}-*", file=sys.stderr)
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
