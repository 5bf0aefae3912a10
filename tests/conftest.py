"""What several tests share: a tiny demo competition, drawn once, and how random tests are run."""
import pathlib
import shutil
import zipfile

import hypothesis
import pytest

from pipeline.stages import demo_data

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four training cars of four makes and one test car; tests only read it."""
    folder = tmp_path_factory.mktemp("competition") / "demo"
    demo_data.run(folder, cars=4, test_cars=1)
    return folder


@pytest.fixture
def demo_copy(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy that a test may damage."""
    return pathlib.Path(shutil.copytree(demo_folder, tmp_path / "demo_copy"))


@pytest.fixture(scope="session")
def jpeg(demo_folder: pathlib.Path) -> bytes:
    """One training picture, as it is packed."""
    with zipfile.ZipFile(demo_folder / "train.zip") as archive:
        return archive.read(archive.namelist()[1])


@pytest.fixture(scope="session")
def gif(demo_folder: pathlib.Path) -> bytes:
    """The mask of that picture."""
    with zipfile.ZipFile(demo_folder / "train_masks.zip") as archive:
        return archive.read(archive.namelist()[1])
