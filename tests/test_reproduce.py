"""A row of the ledger gives the same submission again, byte for byte, or one sentence that says why it cannot."""
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pipeline import config
from pipeline.__main__ import main
from pipeline.carvana import CARVANA
from pipeline.kaggle import ledger, reproduce, submit
from pipeline.kaggle.ledger import Row
from pipeline.model import checkpoint
from pipeline.model.factory import build
from pipeline.paths import Run
from pipeline.runtime import git
from pipeline.runtime.files import sha256, write_json
from pipeline.runtime.problem import Problem
from pipeline.submission import provenance
from pipeline.submission.plan import fingerprint, open_test_images
from pipeline.submission.provenance import Provenance

ROOT = pathlib.Path(__file__).parent.parent
SUBMISSION = pathlib.Path("submissions/tiny.csv.gz")
LEDGER = pathlib.Path("submissions/ledger.csv")
CONFIG = "data: {scale: 8, folds: 2, workers: 0}\nmodel: {width: 4, depth: 2, patch: 2}\n"
SET = ("--set", "predict.tta=none", "--set", "predict.batch_size=4")


def in_git(*arguments: str) -> None:
    identity = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def made(demo_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A checkout with an untrained network, its submission, and the ledger's row of it, not committed."""
    folder = tmp_path_factory.mktemp("checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(git, "CHECKOUT", folder)
        patch.setattr(git, "__file__", str(folder / "pipeline/runtime/git.py"))
        shutil.copytree(ROOT / "pipeline", "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Makefile", "Makefile")
        shutil.copytree(ROOT / ".ci", ".ci")
        pathlib.Path("configs").mkdir()
        pathlib.Path("configs/tiny.yaml").write_text(CONFIG)
        ignored = ("runs/", "submissions/*.gz", "submissions/*.json", "submissions/*.unsure.csv", "submissions/.*",
                   "__pycache__/")  # fmt: skip
        pathlib.Path(".gitignore").write_text("\n".join(ignored) + "\n")
        LEDGER.parent.mkdir()
        LEDGER.write_text(",".join(ledger.COLUMNS) + "\n")
        in_git("init", "-q")
        in_git("add", ".")
        in_git("commit", "-qm", "all")
        settings = config.load(pathlib.Path("configs/tiny.yaml"), ["train.epochs=2"])
        torch.manual_seed(0)
        state = {"settings": settings.model_dump(), "network": build(**settings.model.model_dump()).state_dict()}
        checkpoint.save(pathlib.Path("runs/tiny/fold1/best.pt"), state)
        threshold = {"threshold": 0.498039, "oof_dice": 0.99, "oof_dice_cross_fitted": 0.98, "images": 32}
        write_json(pathlib.Path("runs/tiny/threshold.json"), threshold)
        assert main(["predict", "--run", "tiny", "--data", str(demo_folder), *SET]) == 0
        about = provenance.find_by_hash(SUBMISSION.parent, sha256(SUBMISSION))
        ledger.put(LEDGER, Row(**about.model_dump(), time="2017-09-27T23:59:58Z", file=str(SUBMISSION), message="#tag"))
        yield folder


@pytest.fixture
def checkout(made: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A copy, to work in and to damage."""
    copy = pathlib.Path(shutil.copytree(made, tmp_path / "checkout"))
    monkeypatch.chdir(copy)
    monkeypatch.setattr(git, "CHECKOUT", copy)
    monkeypatch.setattr(git, "__file__", str(copy / "pipeline/runtime/git.py"))
    monkeypatch.setattr(reproduce, "run_stage", lambda stage, *arguments: main([stage, *arguments]))
    return copy


def test_predict_leaves_what_the_ledger_needs(made: pathlib.Path, demo_folder: pathlib.Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=made, capture_output=True, text=True).stdout.strip()
    settings = config.load(made / "configs/tiny.yaml", ["train.epochs=2"])
    names, images = open_test_images(CARVANA, config.for_later_stage(settings, [f"data.folder={demo_folder}"]))
    assert provenance.read(made / "submissions/tiny.json") == Provenance(
        sha256=sha256(made / SUBMISSION),
        runs=("tiny",),
        folds=(1,),
        threshold=0.498039,
        oof_dice=0.99,
        oof_dice_cross_fitted=0.98,
        config="configs/tiny.yaml",
        train_overrides=("train.epochs=2",),
        predict_overrides=(f'data.folder="{demo_folder}"', "predict.batch_size=4", 'predict.tta="none"'),
        config_sha256=sha256_of(config.dump(settings), made),
        checkpoints={"runs/tiny/fold1/best.pt": sha256(made / "runs/tiny/fold1/best.pt")},
        commit=head,
        clean=True,
        test_images=fingerprint(images, names),
    )


def sha256_of(text: str, folder: pathlib.Path) -> str:
    (folder / "runs" / "text").write_text(text)
    return sha256(folder / "runs" / "text")


def test_the_printed_commands_make_the_same_bytes(checkout: pathlib.Path) -> None:
    in_git("add", ".")
    in_git("commit", "-qm", "the ledger, and nothing else")
    script = checkout_output("reproduce", "--row", "1")
    assert "#   make train CONFIG=configs/tiny.yaml RUN=tiny FOLD=1 SET=train.epochs=2\n" in script
    SUBMISSION.unlink()
    environment = {"PATH": os.environ["PATH"], "PY": sys.executable}  # nothing of a make that may run these tests
    process = subprocess.run(["bash", "-e"], input=script, text=True, capture_output=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "submissions/tiny.csv.gz: OK"


def checkout_output(*arguments: str) -> str:
    process = subprocess.run([sys.executable, "-m", "pipeline", *arguments], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_go_predicts_the_same_bytes(checkout: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    before = SUBMISSION.read_bytes()
    assert main(["reproduce", "--row", "1", "--go"]) == 0
    assert f"has the sha256 of row 1, {sha256(SUBMISSION)}" in capsys.readouterr().out
    assert SUBMISSION.read_bytes() == before
    files = ["ledger.csv", "tiny.csv.gz", "tiny.json", "tiny.unsure.csv"]
    assert sorted(path.name for path in SUBMISSION.parent.glob("[!.]*")) == files


def predicting(data: bytes) -> Callable[..., None]:
    """Return a stand-in for the stage `predict` that writes these bytes and their provenance."""

    def predict(*arguments: str) -> None:
        SUBMISSION.write_bytes(data)
        provenance.write(Run("tiny").provenance, Provenance(sha256=sha256(SUBMISSION), runs=("predicted again",)))

    return predict


def test_go_keeps_another_file_that_stood_there(
    checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(reproduce, "run_stage", predicting(SUBMISSION.read_bytes()))
    SUBMISSION.write_bytes(b"newer")
    newer, table = Provenance(sha256=sha256(SUBMISSION), runs=("newer",)), SUBMISSION.with_name("tiny.unsure.csv")
    provenance.write(Run("tiny").provenance, newer)
    table.write_text("of the newer one")
    assert main(["reproduce", "--row", "1", "--go"]) == 0
    assert "submissions/before.tiny.csv.gz" in capsys.readouterr().out
    assert SUBMISSION.with_name("before.tiny.csv.gz").read_bytes() == b"newer"
    assert SUBMISSION.with_name("before.tiny.unsure.csv").read_text() == "of the newer one" and not table.exists()
    assert provenance.find_by_hash(SUBMISSION.parent, newer.sha256) == newer
    assert provenance.find_by_hash(SUBMISSION.parent, sha256(SUBMISSION)).runs == ("predicted again",)


@pytest.mark.parametrize("blended", [False, True])
def test_a_submission_of_several_runs_is_made_again(
    checkout: pathlib.Path, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture, blended: bool
) -> None:
    """With the weights of the blend or equal ones; by the printed commands and by --go."""
    shutil.copytree("runs/tiny", "runs/other")
    state = checkpoint.load(pathlib.Path("runs/other/fold1/best.pt"), ("network", "settings"))
    state["network"] = {key: value * 1.5 for key, value in state["network"].items()}
    checkpoint.save(pathlib.Path("runs/other/fold1/best.pt"), state)
    joint, arguments = Run("tiny+other"), ["predict", "--runs", "tiny", "other", "--data", str(demo_folder), *SET]
    if blended:
        hashes = {str(best): sha256(best) for best in pathlib.Path("runs").glob("*/fold1/best.pt")}
        weights = {"tiny": 0.25, "other": 0.75}
        blend = {"weights": weights, "threshold": 0.498039, "oof_dice": 0.9, "checkpoints": hashes}
        write_json(joint.blend, blend)
    assert main(arguments) == 0
    about, before = provenance.find_by_hash(SUBMISSION.parent, sha256(joint.submission)), joint.submission.read_bytes()
    row = Row(**about.model_dump(), time=submit.now(), file=str(joint.submission), message="#two")
    assert ledger.put(LEDGER, row) == 2
    in_git("commit", "-qam", "the ledger, and nothing else")
    head, script = git.commit(), checkout_output("reproduce", "--row", "2")
    for name in ("tiny", "other"):
        assert f"#   make train CONFIG=configs/tiny.yaml RUN={name} FOLD=1 SET=train.epochs=2\n" in script
    assert ("#   make blend RUN=tiny+other RUNS='tiny other' FOLD=1 " in script) == blended
    joint.submission.unlink()
    threads = str(torch.get_num_threads())  # which the bits depend on
    environment = {"PATH": os.environ["PATH"], "PY": sys.executable, "OMP_NUM_THREADS": threads}
    process = subprocess.run(["bash", "-e"], input=script, text=True, capture_output=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert joint.submission.read_bytes() == before
    in_git("checkout", "-q", head)  # whose ledger has the row
    capsys.readouterr()
    assert main(["reproduce", "--row", "2", "--go"]) == 0
    assert f"{joint.submission} has the sha256 of row 2" in capsys.readouterr().out
    write_json(joint.blend, {"threshold": 0.4})
    assert main(["reproduce", "--row", "2", "--go"]) == 1
    assert ("has the threshold 0.4" if blended else "the row has equal weights") in capsys.readouterr().err


def test_a_submission_of_another_name_than_its_run_is_made_again_under_that_name(
    checkout: pathlib.Path, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    alone = Run("alone")
    assert main(["predict", "--run", "alone", "--runs", "tiny", "--data", str(demo_folder), *SET]) == 0
    about = provenance.find_by_hash(SUBMISSION.parent, sha256(alone.submission))
    row = Row(**about.model_dump(), time=submit.now(), file=str(alone.submission), message="#alone")
    assert ledger.put(LEDGER, row) == 2
    in_git("commit", "-qam", "the ledger, and nothing else")
    script = checkout_output("reproduce", "--row", "2")
    assert "make predict RUN=alone RUNS=tiny FOLD=1 " in script and "submissions/alone.csv.gz' | sha256sum" in script
    capsys.readouterr()
    assert main(["reproduce", "--row", "2", "--go"]) == 0
    assert "submissions/alone.csv.gz has the sha256 of row 2" in capsys.readouterr().out


def test_runs_with_different_folds_need_no_fold_in_the_command() -> None:
    digest = "0" * 64
    hashes = {f"runs/{name}/best.pt": digest for name in ("a/fold0", "a/fold1", "b/fold0")}
    row = Row(
        sha256=digest, runs=("a", "b", "c"), folds=(0, 1), threshold=0.5, oof_dice=0.9, checkpoints=hashes,
        time=submit.now(), file="elsewhere/x.csv.gz", message="#tag",
    )  # fmt: skip
    lines = reproduce.script_lines(row, 1, None)
    assert "make predict RUN=a+b+c RUNS='a b c'" in lines
    assert "# There c has the weight 0, but it must exist." in lines
    with pytest.raises(Problem, match="Row 1 has the folds 0,1 of a, but none are trained here"):
        reproduce.check_folds(row, 1)
    with pytest.raises(Problem, match="names best.pt instead of runs/RUN/fold0/best.pt"):
        reproduce.script_lines(row.model_copy(update={"checkpoints": {"best.pt": digest}}), 1, None)


def test_bytes_that_differ_are_a_problem_and_both_are_kept(
    checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = SUBMISSION.read_bytes()
    monkeypatch.setattr(reproduce, "run_stage", predicting(b"other"))
    assert main(["reproduce", "--row", "1", "--go"]) == 1
    assert "has sha256 d9298a10d1b0" in capsys.readouterr().err
    assert SUBMISSION.with_name("before.tiny.csv.gz").read_bytes() == before


def test_a_prediction_that_breaks_off_leaves_the_file_as_it_was(
    checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: str) -> None:
        raise KeyboardInterrupt

    before = SUBMISSION.read_bytes()
    monkeypatch.setattr(reproduce, "run_stage", interrupted)
    assert main(["reproduce", "--row", "1", "--go"]) == 1
    assert SUBMISSION.read_bytes() == before


def test_a_submission_is_predicted_again_when_its_weights_are_others(checkout: pathlib.Path) -> None:
    run, best = Run("tiny"), pathlib.Path("runs/tiny/fold1/best.pt")
    assert submit.reason_to_predict(run, [1]) is None
    assert "other weights" in str(submit.reason_to_predict(run, [0, 1]))
    assert submit.reason_to_predict(run, []) is None  # trained elsewhere
    append_to(str(best))()
    assert "other weights" in str(submit.reason_to_predict(run, [1]))
    SUBMISSION.write_bytes(b"from elsewhere")
    assert submit.reason_to_predict(run, [1]) is None
    SUBMISSION.unlink()
    assert "There is no submissions/tiny.csv.gz yet" in str(submit.reason_to_predict(run, [1]))


def test_a_submission_with_other_overrides_is_predicted_again_and_without_overrides_it_is_taken_as_it_is(
    checkout: pathlib.Path,
) -> None:
    run = Run("tiny")
    run.fold(1).config.write_text(config.dump(config.load(pathlib.Path("configs/tiny.yaml"), ["train.epochs=2"])))
    assert submit.reason_to_predict(run, [1]) is None  # made with predict.tta=none
    assert submit.reason_to_predict(run, [1], ["predict.tta=none"]) is None
    assert submit.reason_to_predict(run, [1], ["predict.batch_size=7", "predict.tta=none", "train.epochs=9"]) is None
    assert submit.reason_to_predict(run, [1], ["predict.tta=none", "predict.refiner_tta=none"]) is None
    of_tiles = ["predict.tta=none", "predict.refiner_tta=hflip"]
    for overrides in (["predict.tta=hflip+scales"], ["predict.tta=none", "data.scale=4"], ["train.epochs=2"], of_tiles):
        assert "not made with SET=" in str(submit.reason_to_predict(run, [1], overrides))
    run.fold(1).config.unlink()
    assert "not made with" in str(submit.reason_to_predict(run, [1], ["predict.tta=none"]))


def test_a_submission_whose_prediction_was_killed_is_not_of_unknown_origin(checkout: pathlib.Path) -> None:
    run = Run("tiny")
    SUBMISSION.write_bytes(b"joined, and its origin not written yet")
    assert submit.reason_to_predict(run, [1]) is None  # made by hand
    write_json(run.shards / "state.json", {"threshold": 0.5})
    assert "an interrupted prediction: predicting first" in str(submit.reason_to_predict(run, [1]))
    with pytest.raises(Problem, match="run its `make predict` again first"):
        submit.reason_to_predict(run, [])


def test_a_lost_run_is_trained_again_to_the_same_bytes(
    checkout: pathlib.Path, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """By the printed commands and nothing else; then --go accepts the new weights as the row's own."""
    arguments = ("--config", "configs/tiny.yaml", "--run", "lost", "--data", str(demo_folder), "--fold", "1")
    overrides = ("train.epochs=1", "train.learning_rate=1e-2", "predict.batch_size=4", "predict.tta=none")
    for stage in ("folds", "train", "validate", "threshold", "predict"):
        assert main([stage, *arguments, *(f"--set={override}" for override in overrides)]) == 0
    best, submission = pathlib.Path("runs/lost/fold1/best.pt"), pathlib.Path("submissions/lost.csv.gz")
    about = provenance.find_by_hash(submission.parent, sha256(submission))
    weights, rows = sha256(best), submission.read_bytes()
    ledger.put(LEDGER, Row(**about.model_dump(), time="2017-09-27T23:59:58Z", file=str(submission), message="#tag"))
    in_git("add", ".")
    in_git("commit", "-qm", "the ledger, and nothing else")
    head = git.commit()
    shutil.rmtree("runs/lost")
    submission.unlink()

    script = checkout_output("reproduce", "--row", "2", "--data", str(demo_folder)).replace("#   make ", "make ")
    assert "make train CONFIG=configs/tiny.yaml RUN=lost FOLD=1" in script
    threads = str(torch.get_num_threads())  # which the bits depend on
    environment = {"PATH": os.environ["PATH"], "PY": sys.executable, "OMP_NUM_THREADS": threads}
    process = subprocess.run(["bash", "-e"], input=script, text=True, capture_output=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert (sha256(best), submission.read_bytes()) == (weights, rows)
    in_git("checkout", "-q", head)  # whose ledger has the row
    assert main(["reproduce", "--row", "2", "--go", "--data", str(demo_folder)]) == 0
    assert f"has the sha256 of row 2, {sha256(submission)}" in capsys.readouterr().out


# --- refusals -------------------------------------------------------------------------------------


def update_row(**values: Any) -> Callable[[], None]:
    return lambda: ledger.put(LEDGER, ledger.read(LEDGER)[0].model_copy(update=values)) and None


def other_commit() -> None:
    pathlib.Path("pipeline/runtime/git.py").write_text("")
    in_git("commit", "-qam", "another")


def append_to(name: str) -> Callable[[], None]:
    return lambda: pathlib.Path(name).write_bytes(pathlib.Path(name).read_bytes() + b"\n") and None


@pytest.mark.parametrize(
    "harm, named",
    [
        (append_to("pipeline/runtime/git.py"), "has uncommitted changes"),
        (other_commit, "but row 1 was made by"),
        (lambda: shutil.rmtree(".git"), "not in a git checkout"),
        (update_row(clean=False), "its code is lost"),
        (update_row(commit=""), "names no commit"),
        (update_row(runs=()), "unknown origin"),
        (append_to("runs/tiny/fold1/best.pt"), "runs/tiny/fold1/best.pt is not the file of row 1"),
        (lambda: pathlib.Path("runs/tiny/fold1/best.pt").unlink(), "There is no runs/tiny/fold1/best.pt"),
        (lambda: write_json(pathlib.Path("runs/tiny/threshold.json"), {"threshold": 0.5}), "has the threshold 0.5"),
        (lambda: pathlib.Path("runs/tiny/threshold.json").unlink(), "no threshold in runs/tiny/threshold.json"),
    ],
)
def test_go_refuses_code_and_files_that_changed(
    checkout: pathlib.Path, capsys: pytest.CaptureFixture, harm: Callable[[], None], named: str
) -> None:
    harm()
    before = SUBMISSION.read_bytes()
    assert main(["reproduce", "--row", "1", "--go"]) == 1
    assert named in capsys.readouterr().err
    assert SUBMISSION.read_bytes() == before


@pytest.mark.parametrize("number", ["0", "2"])
def test_a_row_that_is_not_there_is_a_problem(
    checkout: pathlib.Path, capsys: pytest.CaptureFixture, number: str
) -> None:
    assert main(["reproduce", "--row", number]) == 1
    assert f"has 1 rows and no row {number}" in capsys.readouterr().err


def test_without_git_no_commit_is_claimed(checkout: pathlib.Path) -> None:
    assert len(git.commit()) == 40 and git.is_clean()
    shutil.rmtree(".git")
    assert git.commit() == "" and not git.is_clean()


def test_a_folder_within_another_repository_is_not_taken_for_a_checkout(checkout: pathlib.Path) -> None:
    in_git("rm", "-rq", "--cached", "pipeline")
    assert git.commit() == ""
