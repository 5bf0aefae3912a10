"""ON=kaggle on the command line: what becomes of each variable of each target, and which files are sent."""
import io
import pathlib
import re
import shlex
import subprocess
import tarfile

import pytest
import small_checkout

from pipeline.__main__ import COMMANDS, main
from pipeline.config import Settings
from pipeline.kaggle import packing, remote
from pipeline.kaggle.session import Job
from pipeline.options import AT_KAGGLE, BESIDE_KAGGLE, DEFAULT_GPU, Common
from pipeline.runtime import git
from pipeline.runtime.problem import Problem

CONFIG = "data: {folder: data/mine}\ntrain: {epochs: 1}\n"

# What becomes of a variable: it is sent, with the stage's command line; or something here uses it; or it is refused.
SENT, USED, REFUSED = "sent", "used", "refused"
COMMON = {
    "config": SENT, "fold": SENT, "data": REFUSED, "run": SENT, "set": SENT, "debug": SENT, "on": USED, "gpu": USED,
}  # fmt: skip
TRAINING = COMMON | {"pseudo": REFUSED, "gpus": SENT, "deterministic": SENT, "force": USED}
TABLE = {
    "train": TRAINING,
    "refine": TRAINING,
    "validate": COMMON | {"force": USED},
    "predict": COMMON | {"runs": REFUSED, "gpus": SENT, "on_bad_image": SENT, "force": USED},
}
VALUES = {
    "config": "mine.yaml", "fold": "1", "data": "data/half", "run": "x", "set": "train.epochs=2", "on": "kaggle",
    "gpu": "NvidiaL4", "pseudo": "x.csv.gz", "gpus": "2", "runs": "x", "on_bad_image": "empty",
}  # fmt: skip
CASES = [(name, option, fate) for name, fates in TABLE.items() for option, fate in fates.items()]
NEEDED = {
    "shrink": ["--out", "x"], "blend": ["--runs", "a", "b"], "compare": ["--runs", "a", "b"],
    "cutout": ["--image", "x.jpg", "--out", "y"], "reproduce": ["--row", "1"],
}  # fmt: skip


@pytest.fixture
def jobs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that would have been run at Kaggle, by commands in a folder with configs."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "other.yaml"):
        pathlib.Path(name).write_text(CONFIG)
    jobs = list[Job]()
    monkeypatch.setattr(remote, "connect", lambda competition: None)
    monkeypatch.setattr(remote, "Kernels", lambda client: None)
    monkeypatch.setattr(remote, "run_job", lambda kernels, run, job: jobs.append(job))
    monkeypatch.setattr(git, "uncommitted", lambda *names: [])
    return jobs


def test_the_table_has_every_variable_of_every_target_that_goes_there() -> None:
    assert {*TABLE, "demo"} == set(AT_KAGGLE)
    for name, fates in TABLE.items():
        assert fates.keys() == {option.name for option in COMMANDS[name].params}


@pytest.mark.parametrize("name, option, fate", CASES)
def test_each_variable_works_there_or_is_refused_in_a_sentence(
    jobs: list[Job], capsys: pytest.CaptureFixture, name: str, option: str, fate: str
) -> None:
    parameter = next(one for one in COMMANDS[name].params if one.name == option)
    flag = [parameter.opts[0], *([] if parameter.is_flag else [VALUES[option]])]
    base = [] if option == "config" else ["--config", "other.yaml"]
    code = main([name, *base, "--on", "kaggle", *flag])
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    if fate == REFUSED:
        assert code == 1 and not jobs and len(lines) == 1 and re.match(rf"{name}: \S.*\.$", lines[0])
        return
    assert code == 0 and not lines
    (job,) = jobs
    line = next(stage for stage in job.stages if stage[0] == name)
    assert (shlex.join(flag) in shlex.join(line)) == (fate == SENT)
    assert job.gpu == (VALUES["gpu"] if option == "gpu" else DEFAULT_GPU)
    assert job.folder == "data/mine" and list(job.files) == [base[1] if base else VALUES["config"]]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - set(AT_KAGGLE)))
def test_a_target_that_runs_only_here_says_so(
    capsys: pytest.CaptureFixture, name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may follow the session in the same make command runs here."""
    monkeypatch.chdir(tmp_path)
    if name in BESIDE_KAGGLE:
        Common(on="kaggle").check_place(name)
        return
    assert main([name, *NEEDED.get(name, []), "--on", "kaggle"]) == 1
    assert f"leave it out of {name}, which runs only here" in capsys.readouterr().err


def test_the_names_of_targets_are_those_of_commands() -> None:
    assert {*AT_KAGGLE, *BESIDE_KAGGLE} <= set(COMMANDS)


@pytest.mark.parametrize("name", ["folds", "threshold", "check"])
def test_what_a_session_has_done_is_not_done_again(
    capsys: pytest.CaptureFixture, name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that `make train submission ON=kaggle` needs no data here."""
    monkeypatch.chdir(tmp_path)
    assert main([name, "--on", "kaggle"]) == 0
    assert "The session on Kaggle" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["train", "--gpu", "NvidiaTeslaT4"], "add ON=kaggle"),
        (["demo", "--on", "kaggle", "--gpu", "NvidiaTeslaT4"], "leave GPU out"),
        (["demo", "--on", "kaggle", "--offline"], "set one of them"),
        (["train", "--on", "kaggle", "--set", 'data.folder="x"'], "leave DATA and data.folder out"),
        (["check", "--on", "kaggle", "--file", "none.csv"], "data/mine"),  # a file is checked here
        (["train", "--on", "kaggle", "--config", "../mine.yaml"], "../mine.yaml must lie in this folder"),
        (["train", "--on", "kaggle", "--config", "/mine.yaml"], "/mine.yaml"),
        (["train", "--on", "kaggle", "--set", "data.exclude=/x.csv"], "/x.csv must lie in this folder"),
        (["train", "--on", "kaggle", "--set", "data.relabel=./data//mine/x.csv"], "x.csv lies in data.folder"),
        (["train", "--on", "kaggle", "--config", "data/mine/a.yaml"], "move it out of data/mine"),
        (["train", "--on", "kaggle", "--set", "data.exclude=x.csv"], "x.csv cannot be read"),
        (["train", "--on", "kaggle", "--set", "data.kind=folder"], "data.kind is folder"),
    ],
)
def test_refusals(jobs: list[Job], capsys: pytest.CaptureFixture, arguments: list[str], sentence: str) -> None:
    config = [] if "--config" in arguments else ["--config", "mine.yaml"]
    pathlib.Path("data/mine").mkdir(parents=True)
    for name in ("../mine.yaml", "data/mine/a.yaml"):
        pathlib.Path(name).write_text(CONFIG)
    assert main([*arguments, *config]) == 1 and not jobs
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "folder, there",
    [("data/mine", "data/mine"), ("/mnt/x", "data/carvana"), ("../x", "data/carvana"), ("runs/x", "data/carvana"),
     ("a/../../x", "data/carvana"), (".", "data/carvana"), ("pipeline", "data/carvana")],
)  # fmt: skip
def test_a_run_remembers_a_folder_that_is_good_here_too(folder: str, there: str) -> None:
    assert remote.folder_in_session(folder) == there
    assert Settings().data.folder == "data/carvana"


# --- what is sent ----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    folder = small_checkout.make(tmp_path / "checkout")
    monkeypatch.setattr(git, "CHECKOUT", folder)
    monkeypatch.setattr(git, "__file__", str(folder / "pipeline/runtime/git.py"))
    return folder


def packed_names() -> list[str]:
    job = Job(
        run="x", stages=[["train"]], files={}, gpu="none", packages=[], sample_table="s.csv", folder="data/x",
        commit="", clean=False, code="1",
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(packing.pack_checkout(job))) as archive:
        return archive.getnames()


def test_a_clean_checkout_is_sent_as_committed(checkout: pathlib.Path) -> None:
    (checkout / "notes.txt").write_text("of no concern")
    (checkout / "configs/other.yaml").write_text("of another run")
    (checkout / "submissions").mkdir()
    (checkout / "submissions/ledger.csv").touch()
    assert packing.check_committed("configs/x.yaml", "train", force=False)
    assert "pipeline/__main__.py" in (names := packed_names()) and "configs/x.yaml" in names
    assert not {"notes.txt", "configs/other.yaml"} & set(names)


@pytest.mark.parametrize("name", ["pipeline/losses.py", "configs/mine.yaml"])
def test_an_untracked_module_or_config_is_sent_only_on_demand(checkout: pathlib.Path, name: str) -> None:
    (checkout / name).write_text("new")
    with pytest.raises(Problem, match=f"^{name} is not as committed, .* make validate ON=kaggle FORCE=1.$"):
        packing.check_committed("configs/mine.yaml", "validate", force=False)
    assert not packing.check_committed("configs/mine.yaml", "validate", force=True)
    assert (name in packed_names()) == name.startswith("pipeline")  # the config goes with the job
    for command in (["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "more"]):
        subprocess.run(["git", "-C", str(checkout), *command], check=True)
    assert packing.check_committed("configs/mine.yaml", "validate", force=False)


def test_changed_and_removed_files_are_named(checkout: pathlib.Path) -> None:
    (checkout / "configs/x.yaml").write_text("changed")
    (checkout / "pipeline/kaggle/session.py").unlink()
    (checkout / "pipeline/__pycache__").mkdir()
    (checkout / "pipeline/ü \n.py").touch()
    assert git.uncommitted("pipeline") == ["configs/x.yaml", "pipeline/kaggle/session.py", "pipeline/ü \n.py"]
    with pytest.raises(Problem, match="^configs/x.yaml and 2 more files are not as committed"):
        packing.check_committed("x.yaml", "train", force=False)


def test_outside_of_a_git_checkout_all_code_is_sent(checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "git", lambda *arguments: None)
    assert not packing.check_committed("configs/x.yaml", "train", force=False)
    assert "pipeline/__main__.py" in packed_names()
