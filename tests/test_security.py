"""What the pipeline must never do with strange data: run it, write elsewhere, or leak a key."""
import ast
import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kaggle_server import ALWAYS, Kaggle, answering, leaks

from pipeline.synthetic import fake_kaggle
from tests.torture import inputs

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("pipeline", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py"))

# --- no code out of data --------------------------------------------------------------------------

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy",
}  # fmt: skip
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pandas.read_pickle",
    "pandas.eval", "tempfile.mktemp", "torch.hub.load", "torch.jit.load", "asyncio.create_subprocess_shell",
}  # fmt: skip
NEEDED = {  # name -> the keyword that its calls must have
    "torch.load": ("weights_only", "True"), "numpy.load": ("allow_pickle", "False"), "yaml.load": ("Loader", "Yaml")
}  # fmt: skip


def dangers(source: str) -> list[str]:
    """What of it could run data, `line 3: eval`: a use of a name, under whatever other name it was imported."""
    tree = ast.parse(source)
    problems, real_names, calls = list[str](), dict[str, str](), dict[int, ast.Call]()
    own = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}  # as the flag `compile`
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
            real_names |= {name.asname: name.name for name in node.names if name.asname}
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            real_names |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            problems += [f"line {node.lineno}: {name.name} of {node.module}" for name in node.names if name.name == "*"]
        else:
            continue
        problems += [f"line {node.lineno}: {name}" for name in modules if name.partition(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            calls[id(node.func)] = node
            if any(keyword.arg == "shell" and ast.unparse(keyword.value) != "False" for keyword in node.keywords):
                problems.append(f"line {node.lineno}: {ast.unparse(node.func)} with shell")
    for node in ast.walk(tree):
        name = real_name(node, real_names)
        call = calls.get(id(node))
        if name in FORBIDDEN and (call or name not in own):
            problems.append(f"line {getattr(node, 'lineno', 0)}: {name}")
        if name in NEEDED:  # handed on, it could be called with anything
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords} if call else {}
            if given.get(NEEDED[name][0]) != NEEDED[name][1]:
                problems.append(f"line {getattr(node, 'lineno', 0)}: {name} without {'='.join(NEEDED[name])}")
    return problems


def real_name(node: ast.AST, real_names: dict[str, str]) -> str:
    """`np.load` and, after `from numpy import load as get`, `get` -> "numpy.load"; "" for what is no name."""
    if isinstance(node, ast.Attribute):
        of = real_name(node.value, real_names)
        return f"{of}.{node.attr}".removeprefix("builtins.") if of else ""
    return real_names.get(node.id, node.id).removeprefix("builtins.") if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_could_run_data(path: pathlib.Path) -> None:
    assert dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import joblib.memory", "x = eval(text)", "os.system(text)",
        "subprocess.run(text, shell=True)", "torch.load(path)", "torch.load(path, weights_only=False)",
        "import numpy as np; np.load(path, allow_pickle=True)", "import numpy; numpy.load(path)",
        "import yaml; yaml.load(text, Loader=yaml.Loader)", "from torch import load; load(path)",
        "from torch import load as get; get(path)", "import torch as t; t.load(path)", "from torch import *",
        "from subprocess import getoutput; getoutput(text)", "import subprocess as s; s.getoutput(text)",
        "from os import system as run; run(text)", "import builtins; builtins.exec(text)", "list(map(eval, texts))",
        "import pandas as pd; pd.read_pickle(path)", "import functools, torch; functools.partial(torch.load, path)",
        "def read(path):\n    from numpy import load\n    return load(path)", "from _pickle import loads",
    ],
)  # fmt: skip
def test_what_could_run_data_is_seen(source: str) -> None:
    assert len(dangers(source)) == 1


def test_what_looks_like_it_is_left_alone() -> None:
    harmless = "import re, torch\nre.compile(x)\nmodel.eval()\nx = self.load(y)\ntorch.load(path, weights_only=True)"
    assert dangers(harmless) == []


def test_the_config_s_loader_is_a_safe_one() -> None:
    import yaml

    from pipeline.config import Yaml

    assert issubclass(Yaml, yaml.SafeLoader)


# --- nothing written elsewhere --------------------------------------------------------------------

# Becomes sitecustomize.py, so that each Python that is started logs what it does, a line an event, in one file; and
# so does each that is forked.
WATCH = """
import json, os, sys
log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
# Event -> where among its arguments a path is, and the folder that it is relative to.
CHANGES = {"os.remove": [(0, 1)], "os.rename": [(0, 2), (1, 3)], "os.link": [(1, 3)], "os.symlink": [(1, 2)],
           "os.mkdir": [(0, 2)], "os.rmdir": [(0, 1)], "os.truncate": [(0, None)], "os.chmod": [(0, 2)]}

def log_event(what, about):
    os.write(log, (json.dumps([os.getpid(), what, about]) + chr(10)).encode())

def watch(event, args):
    if event == "open" and not isinstance(args[0], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        log_event("touched", os.path.abspath(os.fsdecode(args[0])))
    for place, folder in CHANGES.get(event, []):
        if not isinstance(args[place], int):
            fd = -1 if folder is None else args[folder]
            start = os.getcwd() if fd == -1 else os.readlink(f"/proc/self/fd/{fd}")
            log_event("touched", os.path.abspath(os.path.join(start, os.fsdecode(args[place]))))
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        log_event("started", [str(word) for word in args[1]] if event == "subprocess.Popen" else [event])
    if event == "socket.connect" and isinstance(args[1], tuple):  # and not a socket of its own workers
        log_event("called", list(args[1][:2]))

log_event("began", sys.argv)
sys.addaudithook(watch)
"""
RUN = """
import json, sys
from pipeline import blend, cutout, folds, predict, score, train
from pipeline.__main__ import main
from pipeline.kaggle import download, reproduce, submit
from pipeline.report import compare, report
from pipeline.runtime import git
git.commit, git.is_clean, git.same_code = lambda: "0" * 40, lambda: True, lambda one, other: True
from sitecustomize import log_event
for arguments in json.loads(sys.argv[1]):
    log_event("stage", arguments)
    assert main(arguments) == 0, arguments
"""
Event = tuple[int, str, Any]  # which process, what it did, with what


@pytest.fixture
def temporary() -> Iterator[pathlib.Path]:
    """In the place of /tmp, where Python and torch keep what they need for a while; a socket's name must be short."""
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def watched(
    code: str, *arguments: str, folder: pathlib.Path, log: pathlib.Path, more: dict[str, str] = {}
) -> list[Event]:
    """What a Python and all that it starts do to files, processes and lines, in the order of time."""
    watch = log.with_suffix("")
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("KAGGLE")}
    # Set by torch where another test compiled, and by the report where one drew.
    for name in ("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    environment |= {"PYTHONPATH": f"{watch}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"WATCH_LOG": str(log)} | more
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]


def test_the_watch_sees_processes_of_all_kinds(tmp_path: pathlib.Path) -> None:
    code = (
        "import multiprocessing, os, pathlib, subprocess, sys\n"
        "if os.fork() == 0:\n    pathlib.Path('forked').touch()\n    os._exit(0)\n"
        "os.wait()\nsubprocess.run([sys.executable, '-c', 'open(\"started\", \"w\")'])\n"
        "spawn = multiprocessing.get_context('spawn')\n"
        "child = spawn.Process(target=pathlib.Path.touch, args=(pathlib.Path('spawned'),))\n"
        "child.start()\nchild.join()\nos.rename('spawned', 'renamed')\n"
    )
    events = watched(code, folder=tmp_path, log=tmp_path / "watch.log")
    touched = {(pathlib.Path(about).name, pid) for pid, what, about in events if what == "touched"}
    assert {name for name, _ in touched} >= {"forked", "started", "spawned", "renamed"}
    assert len({pid for _, pid in touched}) == 4


def test_stages_write_to_their_own_folders_and_call_nobody(
    kaggle: Kaggle, demo_folder: pathlib.Path, tmp_path: pathlib.Path, temporary: pathlib.Path
) -> None:
    """The interpreter itself reports each file that Python code opens to write, removes or renames."""
    place = inputs.make_place(tmp_path / "place", demo_folder)
    _, image = place.first_image()
    place.put("any.jpg", image)
    shutil.copy(place.submission, place.folder / "mine.csv.gz")
    it, runs = ["--run", "better"], ["--runs", "tiny", "better"]  # better: good enough for `check`
    better = ["model.width=8", "model.depth=2", "train.epochs=2", "train.learning_rate=1e-2", "train.ema_decay=0.9"]
    stages = [
        ["folds", *it], ["train", *it, "--set", *better], ["validate", *it], ["threshold", *it], ["folds"],
        ["train", "--set", "data.workers=1"], ["validate"], ["threshold"], ["predict"], ["report"],
        ["score", "--file", "submissions/tiny.csv.gz", "--data", "demo"],
        ["cutout", "--image", "any.jpg", "--out", "cutouts"],
        ["demo-rooms", "--data", "rooms", "--scenes", "2", "--height", "32", "--width", "32"],
        ["demo-data", "--data", "drawn", "--cars", "1", "--test-cars", "1"],
        ["shrink", "--data", "demo", "--out", "half", "--scale", "8"], ["download", "--data", "fetched"],
        ["check", "--file", "mine.csv.gz"], ["submit", "--file", "mine.csv.gz"], ["predict", *it], ["submit", *it],
        ["leaderboard"],
        ["reproduce", "--row", "2"], ["reproduce", "--row", "2", "--go"], ["blend", *runs], ["compare", *runs],
    ]  # fmt: skip
    arguments = json.dumps([[stage[0], *stage[1:], "--config", "tiny.yaml"] for stage in stages])
    more = {"TMPDIR": str(temporary), "HOME": str(place.folder / "home")} | kaggle.environment()
    events = watched(RUN, arguments, folder=place.folder, log=tmp_path / "watch.log", more=more)

    touched = [pathlib.Path(about) for _, what, about in events if what == "touched"]
    own = ("runs", "submissions", "cutouts", "rooms", "drawn", "half", "fetched")
    allowed = [temporary, *(place.folder / name for name in own)]
    elsewhere = [path for path in touched if not any(path == root or root in path.parents for root in allowed)]
    assert [path for path in elsewhere if not str(path).startswith(("/dev/", "/proc/"))] == []
    written = {str(path.relative_to(place.folder)) for path in touched if place.folder in path.parents}
    assert {"runs/better/fold0/log.jsonl", "runs/tiny/threshold.json", "submissions/tiny.csv.gz"} <= written
    assert {"runs/tiny/report/index.html", "rooms/nyu_depth_v2_labeled.mat", "submissions/ledger.csv"} <= written
    assert {"drawn/train.zip", "half/train.zip", "fetched/download.json"} <= written
    assert {"runs/tiny+better/blend.json", "runs/tiny+better/compare/index.html"} <= written
    assert not list(temporary.glob("matplotlib*")) and not (place.folder / "home").exists()
    # Beside git: matplotlib asks which fonts there are, and Python which processor (platform) and libraries (ctypes).
    known = {("fc-list", "--help"), ("fc-list", "--format=%{file}\\n"), ("uname", "-p"), ("/sbin/ldconfig", "-p")}
    started = [tuple(about) for _, what, about in events if what == "started" and about[0] != "git"]
    strangers = [command for command in started if command not in known]
    assert all(command[0] == sys.executable for command in strangers), strangers
    assert {command[1:4] for command in strangers if command[1] == "-m"} == {("-m", "pipeline", "predict")}
    assert called_by_stage(events) == {name: {kaggle.server_port} for name in ("download", "submit")}


def called_by_stage(events: list[Event]) -> dict[str, set[int]]:
    """Ports of this machine that a stage called, and where it called another one, 0."""
    problems, stage = dict[str, set[int]](), ""
    for _, what, about in events:
        if what == "stage":
            stage = about[0]
        if what == "called":
            problems.setdefault(stage, set()).add(about[1] if about[0] in ("127.0.0.1", "::1", "localhost") else 0)
    return problems


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
        refusal = answering(403, f"No, {fake_kaggle.KEY} of {fake_kaggle.TOKEN}")
        kaggle.faults["StartSubmissionUpload"] = [refusal] * ALWAYS
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    (home / ".kaggle/kaggle.json").write_text(json.dumps({"username": fake_kaggle.USER, "key": fake_kaggle.KEY}))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("KAGGLE")}
    environment |= kaggle.environment() | {"HOME": str(home), "PYTHONPATH": str(ROOT), "VERBOSE": "1"}
    if way == "a score":
        environment["KAGGLE_API_TOKEN"] = fake_kaggle.TOKEN  # it is taken before the file
    file = ["--file", "submissions/tiny.csv.gz"]
    submit = [sys.executable, "-m", "pipeline", "submit", *file, "--config", "tiny.yaml", "--debug"]
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
    problems = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            problems.append(path.read_text())
        except OSError:  # it has ended
            continue
    return "\n".join(problems)


def text_of(path: pathlib.Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("latin-1")


# --- packages -------------------------------------------------------------------------------------


def test_packages_are_installed_with_their_hashes_compared() -> None:
    lines = (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
    installed = [line for line in lines if re.search(r"\b(pip|uv|pipx|easy_install)\b.*\b(install|sync)\b", line)]
    assert len(installed) == 3
    for line in installed:
        (lock,) = re.findall(r" -qq --disable-pip-version-check --require-hashes -r (\S+)$", line)
        assert all("==" in entry for entry in entries_of(ROOT / lock))


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-uv.lock", "tests/torture/fuzz.lock"])
def test_each_package_of_a_lock_has_a_version_and_hashes(name: str) -> None:
    for entry in entries_of(ROOT / name):
        assert re.match(r"[a-zA-Z0-9._-]+(\[[\w,-]+\])?==[\w.!+]+( ;[^\n]*)? \\\n", entry), entry[:80]
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry[:80]


def test_the_lock_is_of_all_packages() -> None:
    assert len(entries_of(ROOT / "requirements.lock")) > 50


def entries_of(lock: pathlib.Path) -> list[str]:
    """Each with the lines of its hashes; without comments."""
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    return re.split(r"\n(?=\S)", "\n".join(lines).strip())
