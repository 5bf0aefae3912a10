"""`make bench-report` and `benchmarks.suspects`: the runs and wrong masks that they make up."""
import json
import pathlib
import sys

import numpy as np
import pytest

from benchmarks import report
from benchmarks import suspects
from pipeline import carvana


def test_the_figures_are_those_of_a_whole_report(
    demo_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(report, "FOLDS", 2)
    monkeypatch.setattr(report, "DISTINCT_CARS", 1)
    monkeypatch.setattr(report, "WRONG_FRACTION", 0.05)
    monkeypatch.setattr(sys, "argv", ["report", "--data", str(demo_folder), "--cars", "2"])
    report.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("32 images of real cars")
    figures = json.loads(lines[-1])
    assert figures["seconds_5088"] is None and figures["images"] == 32  # the time of all was not measured
    assert figures["suspects"] == round(0.05 * 32) and figures["page_mb"] > 0.1


def test_planted_masks_are_wrong_and_the_others_are_not(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "planted"
    suspects.plant(demo_folder, copy, fraction=0.1, seed=0)
    planted = json.loads((copy / "planted.json").read_text())
    right, wrong = carvana.CARVANA.open_masks(demo_folder), carvana.CARVANA.open_masks(copy)
    assert sorted(one["kind"] for one in planted.values()) == sorted(suspects.KINDS * 2)
    for name in right.names:
        differ = np.count_nonzero(right.read(name) ^ wrong.read(name))
        assert differ == planted.get(name, {"px": 0})["px"] and (differ > 500) == (name in planted)
    assert carvana.CARVANA.open_images(copy, "train").names == right.names
