"""What several tests share: a tiny demo competition, drawn once, and how random tests are run."""
import pathlib
import shutil
import signal
import zipfile
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from tiny_run import CONFIG, RUN, Pipeline

from pipeline.synthetic import write_competition

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four training cars of four makes and one test car; tests only read it."""
    folder = tmp_path_factory.mktemp("competition") / "demo"
    write_competition.main(folder, cars=4, test_cars=1)
    return folder


@pytest.fixture
def demo_copy(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy that a test may damage."""
    return pathlib.Path(shutil.copytree(demo_folder, tmp_path / "demo_copy"))


@pytest.fixture(scope="session")
def jpeg(demo_folder: pathlib.Path) -> bytes:
    """One training image, as it is packed."""
    with zipfile.ZipFile(demo_folder / "train.zip") as archive:
        return archive.read(archive.namelist()[1])


@pytest.fixture(scope="session")
def gif(demo_folder: pathlib.Path) -> bytes:
    """The mask of that image."""
    with zipfile.ZipFile(demo_folder / "train_masks.zip") as archive:
        return archive.read(archive.namelist()[1])


# --- the tiny run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folder in which all tests of a module work. One thread: a network this small is no work for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("workplace"))
        pathlib.Path("tiny.yaml").write_text(CONFIG)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipeline(tiny_place: None, demo_folder: pathlib.Path) -> Pipeline:
    return Pipeline(demo_folder)


@pytest.fixture(scope="module")
def trained(pipeline: Pipeline) -> None:
    """Fold 0 of the tiny run."""
    assert pipeline("folds") == 0 and pipeline("train") == 0


@pytest.fixture
def run_copy(trained: None) -> Iterator[pathlib.Path]:
    """The trained run under another name, `--run copy`, for a test to damage."""
    copy = pathlib.Path(shutil.copytree(RUN, "runs/copy"))
    yield copy
    shutil.rmtree(copy)


@pytest.fixture
def new_run(trained: None) -> Iterator[pathlib.Path]:
    """`--run new`, with folds and nothing else."""
    new = pathlib.Path("runs/new")
    new.mkdir()
    shutil.copy(RUN / "folds.csv", new)
    yield new
    shutil.rmtree(new)


@pytest.fixture
def signals() -> Iterator[None]:
    """A test that cuts a run off leaves no handler behind."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
