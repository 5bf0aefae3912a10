"""What the pipeline must never do with strange data: run it, write elsewhere, or tell a key."""
import ast
import gzip
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest
from kaggle_stand_in import ALWAYS, Kaggle, answering, leaks

from pipeline.leaderboard import stand_in
from tests.torture import inputs

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("pipeline", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py"))

# --- no code out of data --------------------------------------------------------------------------

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pd.read_pickle", "pd.eval",
    "tempfile.mktemp", "torch.hub.load", "torch.jit.load", "asyncio.create_subprocess_shell",
}  # fmt: skip
NEEDED = {  # call -> what it must be told
    "torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False"), "yaml.load": ("Loader", "Yaml")
}  # fmt: skip


def dangers(source: str) -> list[str]:
    """What of it could run data, `line 3: eval`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {line}: {name}" for name in modules if name.partition(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        told = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in FORBIDDEN_CALLS or told.get("shell", "False") != "False":
            found.append(f"line {line}: {name}")
        if name in NEEDED and told.get(NEEDED[name][0]) != NEEDED[name][1]:
            found.append(f"line {line}: {name} without {'='.join(NEEDED[name])}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_could_run_data(path: pathlib.Path) -> None:
    assert dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import joblib.memory", "x = eval(text)", "os.system(text)",
        "subprocess.run(text, shell=True)", "torch.load(path)", "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)", "np.load(path)", "yaml.load(text, Loader=yaml.Loader)",
    ],
)  # fmt: skip
def test_what_could_run_data_is_seen(source: str) -> None:
    assert len(dangers(source)) == 1


def test_the_config_s_loader_is_a_safe_one() -> None:
    import yaml

    from pipeline.config import Yaml

    assert issubclass(Yaml, yaml.SafeLoader)


# --- nothing written elsewhere --------------------------------------------------------------------

WATCH = """
import json, os, sys
from pipeline.__main__ import main
from pipeline.stages import cutout, folds, predict, score, threshold, train
stages, touched, started = json.loads(sys.argv[1]), set(), []
# Event -> where among its arguments a path is, and the folder that it is told from.
CHANGES = {"os.remove": [(0, 1)], "os.rename": [(0, 2), (1, 3)], "os.link": [(1, 3)], "os.symlink": [(1, 2)],
           "os.mkdir": [(0, 2)], "os.rmdir": [(0, 1)], "os.truncate": [(0, None)], "os.chmod": [(0, 2)]}

def watch(event, args):
    if event == "open" and not isinstance(args[0], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        touched.add(os.path.abspath(os.fsdecode(args[0])))
    for place, folder in CHANGES.get(event, []):
        if not isinstance(args[place], int):
            fd = -1 if folder is None else args[folder]
            start = os.getcwd() if fd == -1 else os.readlink(f"/proc/self/fd/{fd}")
            touched.add(os.path.abspath(os.path.join(start, os.fsdecode(args[place]))))
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        started.append([str(word) for word in args[1]] if event == "subprocess.Popen" else [event])
    if event == "socket.connect" and isinstance(args[1], tuple):  # and not a socket of its own workers
        started.append([event, str(args[1])])

sys.addaudithook(watch)
for words in stages:
    assert main(words) == 0, words
found = {"touched": sorted(touched), "started": started}
print(json.dumps(found))
"""


@pytest.fixture
def temporary() -> Iterator[pathlib.Path]:
    """In the place of /tmp, where Python and torch keep what they need for a while; a socket's name must be short."""
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def test_stages_write_to_their_own_folders_and_call_nobody(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, temporary: pathlib.Path
) -> None:
    """The interpreter itself tells of each file that Python code opens to write, removes or renames."""
    place = inputs.make_place(tmp_path / "place", demo_folder)
    _, photo = place.first_picture()
    place.put("photo.jpg", photo)
    common = ["--config", "tiny.yaml"]
    stages = [
        ["threshold"], ["folds"], ["train", "--set", "data.workers=1"], ["validate"], ["predict"],
        ["score", "submissions/tiny.csv.gz", "--data", "demo"], ["cutout", "photo.jpg", "--out", "cut"], ["report"],
        ["demo-rooms", "--data", "rooms", "--scenes", "2", "--height", "32", "--width", "32"],
    ]  # fmt: skip
    words = json.dumps([[stage[0], *common, *stage[1:]] for stage in stages])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"TMPDIR": str(temporary), "HOME": str(place.folder / "home")}
    # Set by torch where another test compiled, and by the report where one drew.
    for name in ("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", WATCH, words], cwd=place.folder, env=environment, capture_output=True, text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    touched = [pathlib.Path(path) for path in found["touched"]]
    allowed = [temporary, *(place.folder / name for name in ("runs", "submissions", "cut", "rooms"))]
    elsewhere = [path for path in touched if not any(path == root or root in path.parents for root in allowed)]
    assert [path for path in elsewhere if not str(path).startswith(("/dev/", "/proc/"))] == []
    written = {str(path.relative_to(place.folder)) for path in touched if place.folder in path.parents}
    assert {"runs/tiny/fold0/log.jsonl", "runs/tiny/threshold.json", "submissions/tiny.csv.gz"} <= written
    assert {"runs/tiny/report/index.html", "rooms/nyu_depth_v2_labeled.mat"} <= written
    assert not list(temporary.glob("matplotlib*")) and not (place.folder / "home").exists()
    # Beside git: matplotlib asks which fonts there are, and Python, for its module platform, which processor.
    known = {("fc-list", "--help"), ("fc-list", "--format=%{file}\\n"), ("uname", "-p")}
    strangers = [command for command in found["started"] if command[0] != "git" and tuple(command) not in known]
    assert strangers == []


# --- keys -----------------------------------------------------------------------------------------


@pytest.fixture
def kaggle(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Kaggle]:
    (tmp_path / "inbox").mkdir()
    with Kaggle(demo_folder, tmp_path / "inbox") as server:
        yield server


@pytest.mark.parametrize("way", ["a score", "a refusal"])
def test_a_key_is_nowhere_to_be_found(
    kaggle: Kaggle, demo_folder: pathlib.Path, tmp_path: pathlib.Path, way: str
) -> None:
    """In no file, log, list of processes or report of an error, with --debug too."""
    place = inputs.make_place(tmp_path / "place", demo_folder)
    if way == "a refusal":
        kaggle.faults["StartSubmissionUpload"] = [answering(403, f"No, {stand_in.KEY} of {stand_in.TOKEN}")] * ALWAYS
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    (home / ".kaggle/kaggle.json").write_text(json.dumps({"username": stand_in.USER, "key": stand_in.KEY}))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("KAGGLE")}
    environment |= kaggle.environment() | {"HOME": str(home), "PYTHONPATH": str(ROOT), "VERBOSE": "1"}
    if way == "a score":
        environment["KAGGLE_API_TOKEN"] = stand_in.TOKEN  # it is taken before the file
    submit = [sys.executable, "-m", "pipeline", "submit", "submissions/tiny.csv.gz", "--config", "tiny.yaml", "--debug"]
    seen = []
    with open(place.folder / "said.log", "w") as said:
        process = subprocess.Popen(submit, cwd=place.folder, env=environment, stdout=said, stderr=said)
        while process.poll() is None:
            seen.append(command_lines())
            time.sleep(0.05)
    assert (process.returncode == 0) == (way == "a score"), (place.folder / "said.log").read_text()
    assert kaggle.calls  # the key was used
    assert any("pipeline\0submit" in text for text in seen) and not any(map(leaks, seen))
    texts = {path: text_of(path) for path in place.folder.rglob("*") if path.is_file()}
    assert place.folder / "said.log" in texts
    assert {path: leaks(text) for path, text in texts.items() if leaks(text)} == {}


def command_lines() -> str:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:  # it has ended
            continue
    return "\n".join(found)


def text_of(path: pathlib.Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("latin-1")


# --- packages -------------------------------------------------------------------------------------


def test_each_package_of_the_lock_has_a_version_and_hashes() -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[a-zA-Z0-9._-]+(\[[\w,-]+\])?==[\w.!+]+( ;[^\n]*)? \\\n", entry), entry[:80]
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry[:80]


def test_packages_are_installed_with_their_hashes_compared() -> None:
    assert "--require-hashes -r requirements.lock" in (ROOT / "Makefile").read_text()
