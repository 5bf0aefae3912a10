"""The report of several classes, and of plain folders of one: tables by known answers, and the pages as text."""
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import small_classes_run
from test_report import image_of

from pipeline.inference.oof import read_oof_confusion
from pipeline.masks import confusion
from pipeline.masks.colours import palette
from pipeline.paths import Run
from pipeline.report import charts, classes, compare, gallery, report
from pipeline.runtime.problem import Problem

# Of 10 pixels of wall 8 are right; floor is never predicted; lamp is in neither truth nor prediction.
TOTAL = np.array([[8, 2, 0, 0], [1, 4, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])
NAMES = ["wall", "door", "floor", "lamp"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        small_classes_run.make("several", shift_px=1)
        small_classes_run.make("worse", shift_px=3)
        small_classes_run.make("one", shift_px=1, binary=True)
        yield


def test_a_class_that_does_not_occur_has_dashes_and_counts_in_no_mean() -> None:
    table = classes.class_table(TOTAL, np.array([[10, 5, 5, 0]]), NAMES)
    assert table["iou"].tolist() == pytest.approx([8 / 16, 4 / 7, 0, np.nan], nan_ok=True)
    assert table["truth_fraction"].tolist() == [0.5, 0.25, 0.25, 0]
    rows = classes.class_rows(table)
    assert [row["iou"] for row in rows] == ["0.5000", "0.5714", "0.0000", "–"]
    assert [row["dice"] for row in rows][-1] == "–" and rows[-1]["truth"] == "0\u202f%"
    assert classes.mean_iou(TOTAL) == pytest.approx((8 / 16 + 4 / 7 + 0) / 3)
    assert [name for name, _ in classes.legend(table)] == NAMES[:3]


def test_of_very_many_classes_only_those_that_occur_are_shown() -> None:
    total = np.zeros((100, 100), np.int64)
    total[7, 7], total[99, 7] = 3, 5
    table = classes.class_table(total, total[[7, 99]], [f"c{number}" for number in range(100)])
    assert [row["name"] for row in classes.class_rows(table)] == ["c99", "c7"]
    context = classes.class_sections(table, total, pd.DataFrame({"score": [0.5], "group": [""]}))
    assert (context["more_classes"], context["matrix"], len(context["pairs"])) == (98, "", 1)


def test_what_is_confused_most_comes_first() -> None:
    pairs = classes.confused_pairs(TOTAL, NAMES, limit=2)
    assert pairs[["truth", "predicted", "px"]].values.tolist() == [["floor", "wall", 5], ["wall", "door", 2]]
    assert pairs["class_fraction"].tolist() == [1, 0.2] and pairs["error_fraction"].tolist() == [5 / 8, 2 / 8]
    assert not len(classes.confused_pairs(np.diag([3, 4]), NAMES[:2], limit=9))


def test_rows_of_the_matrix_are_fractions_and_nan_for_a_class_without_truth() -> None:
    fractions = charts.fractions_of_truth(TOTAL)
    np.testing.assert_allclose(fractions[:3], [[0.8, 0.2, 0, 0], [0.2, 0.8, 0, 0], [1, 0, 0, 0]])
    assert np.isnan(fractions[3]).all()
    svg, width_px = charts.confusion_matrix(TOTAL, NAMES)
    assert f'viewBox="0 0 {width_px} {width_px}"' in svg
    assert re.findall(r">(\d+)</text>", svg) == ["80", "20", "20", "80", "100"]
    assert "wall 80%, door 80%, floor 0%" in svg and "lamp" in svg


@pytest.mark.parametrize("fraction, text", [(1, "100"), (0.9999, "99"), (0.994, "99"), (0.005, "0"), (0.456, "46")])
def test_only_all_of_them_is_100(fraction: float, text: str) -> None:
    assert charts.percent(fraction) == text


@pytest.mark.parametrize("count", [13, 40])
def test_the_matrix_of_many_classes_has_legible_text(count: int) -> None:
    names = [f"class number {each}" for each in range(count)]
    svg, width_px = charts.confusion_matrix(np.eye(count, dtype=np.int64), names)
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
    assert min(sizes) >= 9 and width_px < 900


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_class_map_has_the_colours_of_its_palette_and_ignored_pixels_are_transparent(dtype: type) -> None:
    count = 3 if dtype is np.uint8 else 894
    indices = np.array([[0, count - 1, confusion.ignored(dtype)]], dtype)
    image = image_of(gallery.class_png(indices, count)).convert("RGBA")
    pixels = [image.getpixel((column, 0)) for column in range(3)]
    colours = palette(count)
    assert [pixel[:3] for pixel in pixels[:2]] == [tuple(colours[0]), tuple(colours[count - 1])]
    assert [pixel[3] for pixel in pixels] == [gallery.CLASS_OPACITY, gallery.CLASS_OPACITY, 0]


def test_more_colours_than_a_png_has_leave_the_rare_ones_out() -> None:
    indices = np.concatenate([np.arange(300), np.arange(200)]).astype(np.uint16)[None]
    image = np.asarray(image_of(gallery.class_png(indices, 894)).convert("RGBA"))[0]
    assert (image[:200, 3] > 0).all() and (image[:300, 3] == 0).sum() == 45


def test_ignored_pixels_are_not_wrong() -> None:
    truth, predicted = np.array([[0, 1, 255]], np.uint8), np.array([[0, 0, 0]], np.uint8)
    assert gallery.class_errors(truth, predicted).tolist() == [[0, gallery.WRONG, gallery.IGNORED]]


def test_a_report_of_classes_has_its_tables_and_no_cars(place: None) -> None:
    run = Run("several")
    report.main(run, [], [])
    text = run.report_page.read_text()
    images, table = (pd.read_csv(run.report / name) for name in ("images.csv", "classes.csv"))
    assert list(images.columns[:5]) == ["img", "group", "fold", "mean_iou", "pixel_accuracy"] and len(images) == 12
    assert set(images["group"]) == {f"group {number}" for number in range(4)}
    assert table["class"].tolist() == ["ground", "disc", "square", "sky"] and np.isnan(table["iou"][3])
    total = sum(read_oof_confusion(run.oof(fold)).matrix for fold in (0, 1))
    assert f'<span class="number">{classes.mean_iou(total):.4f}</span>' in text
    assert images["mean_iou"].max() == 1 > images["mean_iou"].min()
    assert text.count('<article class="card"') == 12
    for anchor in ("classes", "confusion", "gallery", "training"):
        assert f'<section id="{anchor}"' in text
    assert not re.search(r'id="(ring|submission|suspects)"|Make<|Angle<|\bcars?\b|\bmakes\b', text)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text), "nothing is fetched"


def test_a_report_of_a_plain_folder_has_groups_instead_of_makes(place: None) -> None:
    run = Run("one")
    report.main(run, [], [])
    text = run.report_page.read_text()
    images = pd.read_csv(run.report / "images.csv")
    assert list(images.columns[:4]) == ["img", "group", "fold", "dice"] and len(images) == 12
    assert f"{images['dice'].mean():.5f}" in text and text.count('<article class="card"') == 12
    assert "Group<select" in text and "By group" in text and "Dice by threshold" in text
    assert not re.search(r'class="turntable"|id="submission"|Make<|Angle<|\bcars?\b|\bmakes\b', text)


def test_what_is_damaged_is_named_and_the_rest_is_shown(place: None, capsys: pytest.CaptureFixture) -> None:
    run = small_classes_run.make("half", shift_px=1)
    run.oof_predictions(0).write_bytes(b"threshold")
    run.oof(1).unlink()
    report.main(run, ["data.folder=nowhere"], [])
    text, printed = run.report_page.read_text(), capsys.readouterr().out
    for sentence_start in ("Fold 0 has no predictions", "Fold 1 has no scores", "There is no gallery"):
        assert sentence_start in text and sentence_start in printed
    assert 'id="classes"' in text and 'id="gallery"' not in text
    run.oof(0).unlink()
    report.main(run, [], [])
    assert 'id="training"' in run.report_page.read_text() and "run `make validate`" in capsys.readouterr().out


def test_missing_or_damaged_counts_are_a_problem(place: None) -> None:
    with pytest.raises(Problem, match="damaged"):
        read_oof_confusion(Run("one").oof(0))
    with pytest.raises(Problem, match="There is no"):
        read_oof_confusion(pathlib.Path("nothing.npz"))


def test_compare_of_classes_shows_the_difference_of_mean_iou(place: None, capsys: pytest.CaptureFixture) -> None:
    joint = Run("several+worse")
    compare.main(joint, [Run("several"), Run("worse")], [])
    text = joint.compare_page.read_text()
    assert 'class="palette"' in text and "missed: in the mask" not in text
    assert "no significant difference between worse and several" in text
    assert "mean IoU of worse" in text and "By group" in text
    assert not re.search(r"\bDice\b|Angle<|By angle|\bcars\b", text)
    assert text.count('<article class="card"') == 12
    assert "over 12 images of 4 groups." in capsys.readouterr().out


def test_a_binary_run_and_one_of_classes_cannot_be_compared(place: None) -> None:
    with pytest.raises(Problem, match="runs/several and runs/one cannot be compared"):
        compare.main(Run("x"), [Run("several"), Run("one")], [])


def test_other_classes_cannot_be_compared(place: None) -> None:
    other = small_classes_run.make("renamed", shift_px=1)
    for fold in (0, 1):
        with np.load(other.oof(fold)) as file:
            stored = dict(file)
        with open(other.oof(fold), "wb") as draft:
            np.savez(draft, **stored | {"classes": np.array(["a", "b", "c", "d"])})
    with pytest.raises(Problem, match="have different classes"):
        compare.main(Run("x"), [Run("several"), other], [])
    with pytest.raises(Problem, match="runs/nobody has no Dice"):
        compare.main(Run("x"), [Run("several"), Run("nobody")], [])
