"""What several tests share: a tiny competition and a tiny run, each made once, and how tests run side by side."""
import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch
from tiny_run import CONFIG, RUN, Pipeline

from pipeline.synthetic import write_competition

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")

# --- side by side -----------------------------------------------------------------------------------------------------

# Processes of pytest-xdist share the cores out: threads that wait for a core spin, and slow down all others.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    thread_count = max(1, len(os.sched_getaffinity(0)) // workers)
    torch.set_num_threads(thread_count)
    os.environ["OMP_NUM_THREADS"] = str(thread_count)  # for the processes that tests start

# Files by their time, longest first: with one file at a time for each process, no long one is left for the end.
# `make test-quick` leaves these out: they train, predict, start processes or a browser, or try very many cases.
SLOW_FILES = (
    "test_torture", "test_torture_inputs", "test_predict", "test_whole_run", "test_reproduce", "test_classes_run",
    "test_lost", "test_resume", "test_parallel", "test_security", "test_browser", "test_submit", "test_nyuv2",
    "test_report", "test_report_classes", "test_properties", "test_download", "test_bench_train", "test_bench_predict",
    "test_bench_report", "test_relabel", "test_inference", "test_comparisons", "test_optim",
    "test_memory", "test_rooms", "test_refine", "test_compete", "test_pseudo", "test_init_from", "test_least_batch",
    "test_remote", "test_fake_gpu", "test_gpu",
)  # fmt: skip


# `make gpu-proof REHEARSE=1` sets it: the tests of test_gpu.py then run on the CPU, which shows that they can be run.
REHEARSE_GPU_TESTS = bool(os.environ.get("REHEARSE_GPU_TESTS"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, and put them first; skip those that need a GPU where there is none."""
    def rank(item: pytest.Item) -> int:
        return SLOW_FILES.index(item.path.stem) if item.path.stem in SLOW_FILES else len(SLOW_FILES)

    for item in items:
        if item.path.stem in SLOW_FILES:
            item.add_marker("slow")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available() and not REHEARSE_GPU_TESTS:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    items.sort(key=rank)


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Return a folder that `make` filled, once for all processes of pytest-xdist."""
    root = factory.getbasetemp().parent if workers else factory.getbasetemp()
    folder, done = root / name, root / f"{name}.done"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


# --- the tiny competition ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four training cars of four makes and one test car; tests only read it."""
    def draw(folder: pathlib.Path) -> None:
        write_competition.main(folder / "demo", cars=4, test_cars=1)

    return make_once(tmp_path_factory, "competition", draw) / "demo"


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


# --- the tiny run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_runs(demo_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """`runs/` with fold 0 of the tiny run; tests work on copies."""
    def train(folder: pathlib.Path) -> None:
        with pytest.MonkeyPatch.context() as patch, one_thread():
            patch.chdir(folder)
            pathlib.Path("tiny.yaml").write_text(CONFIG)
            pipeline = Pipeline(demo_folder)
            assert pipeline("folds") == 0 and pipeline("train") == 0

    return make_once(tmp_path_factory, "tiny_run", train) / "runs"


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A network this small is no work for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folder in which all tests of a module work."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(tmp_path_factory.mktemp("workplace"))
        pathlib.Path("tiny.yaml").write_text(CONFIG)
        yield


@pytest.fixture(scope="module")
def pipeline(tiny_place: None, demo_folder: pathlib.Path) -> Pipeline:
    return Pipeline(demo_folder)


@pytest.fixture(scope="module")
def trained(pipeline: Pipeline, tiny_runs: pathlib.Path) -> None:
    """Fold 0 of the tiny run."""
    shutil.copytree(tiny_runs, RUN.parent, dirs_exist_ok=True)


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
    """A test that interrupts a run leaves no handler behind."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
