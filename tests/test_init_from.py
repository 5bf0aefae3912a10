"""Runs that start from the weights of another: what is loaded, what is noted, and no score on images seen before."""
import dataclasses
import pathlib
import shutil
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_run import RUN, Killed, Pipeline, assert_equal, assert_same_training, listing, only_line, read_log, with_set

from pipeline import config
from pipeline.data import grouping
from pipeline.model import checkpoint
from pipeline.model.ema import Ema
from pipeline.paths import Run
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem
from pipeline.training import init_from
from pipeline.training.fold_data import FoldData
from pipeline.training.networks import build_network

BEST = RUN / "fold0" / "best.pt"
ONE_EPOCH = ("train.epochs=1", "train.ema_decay=0")


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_finished_run_with_more_epochs_names_the_command_that_goes_on_in_a_new_one(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    before = listing(RUN)
    assert pipeline("train", "--set", "train.epochs=5") == 1
    line = only_line(capsys)
    assert "RUN=NAME" in line and f'SET="train.init_from={BEST} train.epochs=2"' in line and listing(RUN) == before
    overrides = line.partition('SET="')[2].partition('"')[0].split()
    assert pipeline("train", "--run", "new", *with_set(*overrides)) == 0
    assert f"Starting from the weights in {BEST}." in capsys.readouterr().out
    assert read_log(new_run / "fold0")[0]["train_loss"] < read_log(RUN / "fold0")[0]["train_loss"] / 2
    best = checkpoint.load(new_run / "fold0" / "best.pt", ("settings", "trained_on"))
    assert best["settings"]["train"]["init_sha256"] == sha256(BEST)
    assert config.load(new_run / "fold0" / "config.yaml").train.init_sha256 == sha256(BEST)
    table = grouping.read_folds(RUN / "folds.csv")
    assert best["trained_on"] == sorted(table["car_id"][table["fold"] != 0])


@pytest.mark.parametrize("override", ["train.epochs=2", "train.learning_rate=1e-3", "model.width=4"])
def test_other_changes_of_a_finished_run_are_not_answered_with_that_command(
    pipeline: Pipeline, trained: None, capsys: pytest.CaptureFixture, override: str
) -> None:
    overrides = [override, *(["train.epochs=9"] if override.startswith("model") else [])]
    assert pipeline("train", *with_set(*overrides)) == 1
    assert "set them back" in only_line(capsys)


def test_a_run_that_is_stopped_goes_on_without_the_file_that_it_started_from(
    pipeline: Pipeline, run_copy: pathlib.Path, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Ema.update
    overrides = with_set(*ONE_EPOCH, f"train.init_from={run_copy}/fold0/best.pt", "train.checkpoint_steps=3")

    def killed(self: Ema, step: int) -> None:
        update(self, step)
        if step == 5:
            raise Killed

    assert pipeline("train", "--run", "new", *overrides) == 0
    whole = (new_run / "fold0").rename("runs/new/whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Ema, "update", killed)
        pipeline("train", "--run", "new", *overrides)
    (run_copy / "fold0" / "best.pt").unlink()
    assert pipeline("train", "--run", "new", *overrides) == 0
    assert_same_training(new_run / "fold0", whole)
    assert (new_run / "fold0" / "best.pt").read_bytes() == (whole / "best.pt").read_bytes()


def test_no_run_starts_from_a_network_that_has_seen_its_held_out_images(
    pipeline: Pipeline, new_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    elsewhere = shutil.copy(BEST, tmp_path / "copied.pt")  # where no folds.csv lies beside it
    for path in (BEST, elsewhere):
        assert pipeline("train", "--run", "new", "--fold", "1", "--set", f"train.init_from={path}") == 1
        line = only_line(capsys)
        assert "2 cars of those that fold 1 of runs/new/folds.csv holds out" in line and "too good" in line
    assert not list((new_run / "fold1").glob("*.pt"))


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["train.init_from=runs/none.pt"], "train.init_from names runs/none.pt, but there is no such file"),
        (["train.init_from=runs"], "train.init_from names runs, but there is no such file"),
        (["train.init_from=tiny.yaml"], "tiny.yaml is damaged or not one of ours"),
        ([f"train.init_from={RUN}/fold0/last.pt"], "last.pt has no folds"),
        ([f"train.init_from={BEST}", "model.width=4"], "which is of another network: 54 weights differ"),
        ([f"train.init_from={BEST}", "model.arch=smp.Unet", "model.encoder=resnet18"], "which is of another network: "),
        ([f"train.init_from={BEST}", f"train.init_sha256={'a' * 64}"], "but train.init_sha256 is aaaa"),
    ],
)
def test_a_file_that_a_run_cannot_start_from_is_a_problem(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture, overrides: list[str], sentence: str
) -> None:
    assert pipeline("train", "--run", "new", *with_set(*overrides)) == 1
    assert sentence in only_line(capsys)
    assert not list((new_run / "fold0").glob("*.pt"))


# --- weights ---------------------------------------------------------------------------------------------------------


def settings_of(*overrides: str) -> config.Settings:
    return config.load(pathlib.Path("tiny.yaml"), list(overrides))


def test_all_weights_are_loaded_and_a_head_of_other_classes_stays_random(trained: None) -> None:
    saved = checkpoint.load(BEST, ("network",))["network"]
    assert_equal(build_network(settings_of(f"train.init_from={BEST}"), pretrained=True).state_dict(), saved)
    task = ("data.kind=folder", "task.kind=multiclass", "task.classes=3")
    torch.manual_seed(0)
    random = build_network(settings_of(*task), pretrained=True).state_dict()
    torch.manual_seed(0)
    loaded = build_network(settings_of(f"train.init_from={BEST}", *task), pretrained=True).state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, random[name] if name.startswith("network.head.") else saved[name]), name


def test_a_resume_and_a_start_from_another_run_need_no_encoders_file(trained: None) -> None:
    settings = settings_of("model.arch=smp.Unet", "model.encoder=resnet18", "model.encoder_weights=none.pt")
    build_network(settings, pretrained=False)
    with pytest.raises(Problem, match="none.pt, but there is no such file"):
        build_network(settings, pretrained=True)
    with pytest.raises(Problem, match="another network"):
        build_network(config.with_overrides(settings.model_dump(), [f"train.init_from={BEST}"]), pretrained=True)


def test_a_file_that_is_replaced_after_its_hash_was_noted_is_a_problem(trained: None) -> None:
    settings = init_from.note_sha256(settings_of(f"train.init_from={BEST}"), "train", {})
    assert settings.train.init_sha256 == sha256(BEST)
    build_network(settings, pretrained=True)
    other = settings.train.model_copy(update={"init_sha256": "0" * 64})
    with pytest.raises(Problem, match="was replaced before it was loaded"):
        build_network(settings.model_copy(update={"train": other}), pretrained=True)


def test_the_ledger_says_by_its_hash_what_a_run_started_from(trained: None) -> None:
    settings = init_from.note_sha256(settings_of(f"train.init_from={BEST}"), "train", {})
    overrides = config.overrides_between(settings_of(), settings)
    assert overrides == [f'train.init_from="{BEST}"', f'train.init_sha256="{sha256(BEST)}"']
    assert config.load(pathlib.Path("tiny.yaml"), overrides) == settings


# --- what they were trained on ---------------------------------------------------------------------------------------

TABLE = pd.DataFrame({"image": list("abcd"), "group": list("abcd"), "fold": [0, 0, 1, 1]})


@pytest.fixture
def parent(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The contents of a `best.pt` of fold 0, which was trained on c and d; tests write it to `runs/old/fold0`."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("runs/old/fold0").mkdir(parents=True)
    TABLE.to_csv("runs/old/folds.csv", index=False)
    settings = config.parse({"data": {"kind": "folder", "folder": "mine"}}, "")
    return {"settings": settings.model_dump(), "network": {}, "folds": grouping.digest(TABLE), "trained_on": ["c", "d"]}


def inherit(state: dict[str, Any], number: int, table: pd.DataFrame = TABLE, *overrides: str) -> tuple[str, ...]:
    """Start fold `number` of `table` from `runs/old/fold0/best.pt`; return what that was trained on."""
    path = pathlib.Path("runs/old/fold0/best.pt")
    torch.save(state, path)
    tree = config.parse({"data": {"kind": "folder", "folder": "mine"}, "train": {"init_from": str(path)}}, "")
    settings = config.with_overrides(tree.model_dump(), list(overrides))
    nothing: Any = SimpleNamespace()
    data = FoldData(Run("new"), number, pathlib.Path("mine"), nothing, nothing, nothing, table, "", "", nothing)
    return init_from.inherit(data, settings, "train", {}, wanted=True).trained_before


def test_the_same_fold_may_go_on_and_another_may_not(parent: dict[str, Any]) -> None:
    assert inherit(parent, 0) == ("c", "d")
    with pytest.raises(Problem, match="on 2 images of those that fold 1 of runs/new/folds.csv .* the first is c;"):
        inherit(parent, 1)


def test_one_image_of_another_split_is_too_many(parent: dict[str, Any]) -> None:
    other = TABLE.assign(fold=[0, 1, 0, 1])
    with pytest.raises(Problem, match="trained on 1 image of those that fold 0 .* the first is c;"):
        inherit(parent, 0, other)


def test_an_older_checkpoint_is_known_by_the_folds_beside_it(
    parent: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    del parent["trained_on"]
    assert inherit(parent, 0) == ("c", "d")
    with pytest.raises(Problem, match="the first is c;"):
        inherit(parent, 1)
    for damage in ("image,group,fold\na,a,0\nb,b,1\n", None):  # another table, or none
        table = pathlib.Path("runs/old/folds.csv")
        table.write_text(damage) if damage else table.unlink()
        capsys.readouterr()
        assert inherit(parent, 1) == ()
        assert "There is no runs/old/folds.csv of the training of" in capsys.readouterr().out
    assert inherit(parent, 1, TABLE, "data.kind=carvana") == ()
    assert "There is no" not in capsys.readouterr().out.splitlines()[-1]  # other images in any case


@pytest.mark.parametrize("override", ["data.folder=elsewhere", "data.kind=carvana"])
def test_equal_names_in_another_folder_are_a_note(
    parent: dict[str, Any], capsys: pytest.CaptureFixture, override: str
) -> None:
    assert inherit(parent, 1, TABLE, override) == ("c", "d")
    assert "if these are the same images, the score is too good" in capsys.readouterr().out


def test_a_grandparent_counts_too(parent: dict[str, Any]) -> None:
    data = FoldData(Run("new"), 0, *[SimpleNamespace()] * 4, TABLE, "", "", SimpleNamespace())  # type: ignore[arg-type]
    assert data.trained_on() == ["c", "d"]
    assert dataclasses.replace(data, trained_before=("a", "c", "x")).trained_on() == ["a", "c", "d", "x"]
    parent["trained_on"] = ["a", "c", "d"]
    with pytest.raises(Problem, match="the first is a;"):
        inherit(parent, 0)


def test_a_resume_takes_what_was_trained_before_from_its_checkpoint(parent: dict[str, Any]) -> None:
    data = FoldData(Run("new"), 0, *[SimpleNamespace()] * 4, TABLE, "", "", SimpleNamespace())  # type: ignore[arg-type]
    settings = config.parse({"train": {"init_from": "gone.pt"}}, "")
    last = {"step": 3, "trained_before": ["x"]}
    assert init_from.inherit(data, settings, "train", last, wanted=True).trained_before == ("x",)


def test_other_classes_are_noted(parent: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    inherit(parent, 0, TABLE, "task.kind=multiclass", "task.classes=3")
    assert "has 1 outputs, but this run needs 3: the last layer starts at random" in capsys.readouterr().out


def test_an_encoder_from_one_of_our_networks_is_checked_and_any_other_file_is_not(
    parent: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    encoder = ("train.init_from=null", "model.arch=smp.Unet", "model.encoder_weights=runs/old/fold0/best.pt")
    assert inherit(parent, 0, TABLE, *encoder) == ("c", "d")
    with pytest.raises(Problem, match="^model.encoder_weights names .* the first is c;"):
        inherit(parent, 1, TABLE, *encoder)
    capsys.readouterr()
    assert inherit({"conv1.weight": torch.zeros(1)}, 1, TABLE, *encoder) == () and not capsys.readouterr().out
