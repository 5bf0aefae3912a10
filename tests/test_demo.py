"""Parts of the demo that tests/test_whole_run.py does not reach."""
import pathlib

import pytest

from pipeline.__main__ import main
from pipeline.synthetic import demo


def test_downloaded_files_with_other_cars_are_removed(tmp_path: pathlib.Path) -> None:
    drawn, copy = tmp_path / "demo", tmp_path / "demo-downloaded"
    for folder, contents in {drawn: (b"one", b"two", b"new"), copy: (b"one", b"old")}.items():
        folder.mkdir()
        for name, data in zip(("train.zip", "test.zip", "metadata.csv.zip"), contents):
            (folder / name).write_bytes(data)
    (copy / "download.json").write_text("{}")
    demo.remove_outdated(drawn, copy)
    assert sorted(path.name for path in copy.iterdir()) == ["download.json", "train.zip"]


def test_a_first_demo_has_nothing_to_remove(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.zip").write_bytes(b"one")
    demo.remove_outdated(tmp_path, tmp_path / "not there")


def test_a_demo_on_kaggle_does_each_stage_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sessions have data of their own; they split, find the threshold and check."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("demo.yaml").write_text("train: {epochs: 1}")
    calls = dict[str, tuple[str, ...]]()
    monkeypatch.setattr(demo, "run_stage", lambda stage, *arguments, environment: calls.update({stage: arguments}))
    assert main(["demo", "--config", "demo.yaml", "--data", "drawn", "--on", "kaggle", "--fold", "1"]) == 0
    assert list(calls) == ["demo-data", "download", "train", "validate", "predict", "score", "submit", "report"]
    for name, arguments in calls.items():
        goes_there = name in ("train", "validate", "predict")
        assert ("--on" in arguments) == goes_there and ("--data" in arguments) != goes_there
        assert name == "demo-data" or arguments[: 6] == ("--config", "demo.yaml", "--run", "demo-kaggle", "--fold", "1")
