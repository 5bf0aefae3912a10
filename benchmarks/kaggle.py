"""`make bench-kaggle`: download and verify an archive, against a plain copy and zipfile's own test of it.

A loopback server in its own process serves a drawn archive of 1 GB; the real client and the stage `download` fetch it.
Both ways read the same file, in alternation and several times. The last line is one JSON object of figures.
"""
import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator

from pipeline import carvana
from pipeline.data import zip_reader

IMAGE_BYTES = 102_000  # mean of the training images
NAME = "train.zip"
# The fake Kaggle, which serves until its input is closed.
SERVER = """
import json, pathlib, sys
from pipeline.synthetic.fake_kaggle import FakeKaggle
with FakeKaggle(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])) as server:
    print(json.dumps(server.environment()), flush=True)
    sys.stdin.read()
"""
# The stage, timed without the start of Python and of the client, with the peak memory of its process.
DOWNLOAD = """
import pathlib, resource, sys, time
from pipeline.kaggle import client, download
client.connect()
began = time.perf_counter()
download.main(pathlib.Path(sys.argv[1]), hq=False, only=[sys.argv[2]])
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        served, inbox, out = (folder / part for part in ("served", "inbox", "out"))
        served.mkdir()
        inbox.mkdir()
        draw_archive(served / NAME, args.gigabytes)
        size_mb = (served / NAME).stat().st_size / 1e6
        print(f"an archive of {size_mb:.0f} MB, {args.rounds} alternating rounds; MB/s")
        ours, plain, peaks_mb = [], [], []
        with serving(served, inbox) as environment:
            for _ in range(args.rounds):
                plain.append(timed(lambda: copy_and_test(served / NAME, folder / "copy.zip")))
                (folder / "copy.zip").unlink()
                seconds, peak_mb = download(out, environment)
                ours.append(seconds)
                peaks_mb.append(peak_mb)
                shutil.rmtree(out)
                print(f"copy and test {size_mb / plain[-1]:6.0f}   download and verify {size_mb / ours[-1]:6.0f}")
    ratios = sorted(a / b for a, b in zip(plain, ours))
    figures = {"verify_speed_ratio": ratios[len(ratios) // 2], "peak_mb": max(peaks_mb)}
    print(f"median speed ratio {figures['verify_speed_ratio']:.2f}, best {ratios[-1]:.2f}, worst {ratios[0]:.2f}; "
          f"peak memory {figures['peak_mb']:.0f} MB")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def draw_archive(path: pathlib.Path, gigabytes: float) -> None:
    """Write an archive of complete cars with incompressible images, stored as in Kaggle's archives."""
    rng = random.Random(0)
    cars = max(1, round(gigabytes * 1e9 / IMAGE_BYTES / carvana.ANGLES))
    with zipfile.ZipFile(path, "w") as archive:
        for car in range(cars):
            for angle in carvana.ANGLE_CODES:
                name = carvana.image_name(f"{car:012x}", angle)
                info = zipfile.ZipInfo(f"train/{name}", zip_reader.ARCHIVE_DATE)
                archive.writestr(info, rng.randbytes(IMAGE_BYTES))


@contextlib.contextmanager
def serving(folder: pathlib.Path, inbox: pathlib.Path) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-c", SERVER, str(folder), str(inbox)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        yield json.loads(server.stdout.readline())
        server.stdin.close()


def download(out: pathlib.Path, environment: dict[str, str]) -> tuple[float, float]:
    """Return seconds and peak memory in MB of the stage."""
    command = [sys.executable, "-c", DOWNLOAD, str(out), NAME]
    process = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    seconds, peak_mb = process.stdout.splitlines()[-1].split()
    return float(seconds), float(peak_mb)


def copy_and_test(source: pathlib.Path, copy: pathlib.Path) -> None:
    shutil.copyfile(source, copy)
    with zipfile.ZipFile(copy) as archive:
        assert archive.testzip() is None


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
