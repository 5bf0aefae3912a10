"""Charts, gallery and pages of a binary report as text; `test_browser.py` opens the pages in a browser."""
import base64
import dataclasses
import io
import pathlib
import re
import shutil
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import small_run
from PIL import Image

from pipeline.masks.colours import ADDED, MISSED
from pipeline.paths import Run
from pipeline.report import charts, compare, gallery, overview, page, paired, palette, report
from pipeline.runtime.files import locked, read_json, write_json
from pipeline.runtime.problem import Problem

BACKGROUNDS = ("page", "card")
# Viénot, Brettel and Mollon 1999, for linear RGB: what a person without long- or middle-wave cones sees.
SEEN_BY = {
    "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


@pytest.fixture(scope="module")
def place(demo_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A folder with the runs `one` and, worse, `two`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        small_run.make("one", demo_folder, shift_cells=0.4)
        small_run.make("two", demo_folder, shift_cells=0.8)
        yield pathlib.Path.cwd()


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_text_and_lines_have_the_contrast_that_wcag_asks_for(colours: dict[str, str]) -> None:
    for background in BACKGROUNDS:
        for text in ("ink", "soft", "accent", "missed", "added"):
            assert contrast(colours[text], colours[background]) >= 4.5, (text, background)
        assert contrast(colours["faint"], colours[background]) >= 3


@pytest.mark.parametrize("colours, series", [
    (palette.LIGHT, palette.SERIES_LIGHT), (palette.DARK, palette.SERIES_DARK),
], ids=["light", "dark"])  # fmt: skip
def test_every_line_of_a_chart_stands_out_from_its_card(colours: dict[str, str], series: tuple[str, ...]) -> None:
    assert min(contrast(line, colours["card"]) for line in series) >= 3


def test_the_contrast_of_black_on_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("eye", SEEN_BY)
def test_missed_and_added_differ_for_the_colour_blind(eye: str) -> None:
    pairs = [(palette.LIGHT["missed"], palette.LIGHT["added"]), (palette.DARK["missed"], palette.DARK["added"])]
    pairs.append(("#%02x%02x%02x" % MISSED, "#%02x%02x%02x" % ADDED))
    for one, other in pairs:
        seen = [np.array(SEEN_BY[eye]) @ linear(colour) for colour in (one, other)]
        assert np.abs(seen[0] - seen[1]).max() > 0.25


def contrast(one: str, other: str) -> float:
    """Return WCAG's contrast ratio of two colours such as `#1b1e23`, 1 to 21."""
    # Relative luminance, 0 to 1.
    darker, lighter = sorted(float(linear(colour) @ (0.2126, 0.7152, 0.0722)) for colour in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def linear(colour: str) -> np.ndarray:
    """Return red, green and blue of sRGB without its gamma, 0 to 1."""
    fraction = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(fraction <= 0.04045, fraction / 12.92, ((fraction + 0.055) / 1.055) ** 2.4)


def test_a_chart_has_text_the_colours_of_the_page_and_ids_of_its_own() -> None:
    lines = {"fold 0": ([1, 2], [0.5, 0.25])}
    one, other = (charts.curves(name, lines, "loss", log=True) for name in ("one", "other"))
    assert "var(--series0)" in one and "epoch</text>" in one and "font-family" not in one
    assert not re.search(r"#0102\w\w", one)
    assert 'aria-label="loss by epoch; at the end fold 0 0.25"' in one
    ids = [set(re.findall(r'id="([^"]+)"', chart)) for chart in (one, other)]
    assert ids[0] and not ids[0] & ids[1]
    assert charts.curves("one", lines, "loss", log=True) == one  # the same each time


@pytest.mark.filterwarnings("error")  # a warning would be printed on stderr beside the one sentence
@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_charts_of_equal_scores_are_drawn_without_a_warning(value: float) -> None:
    equal = np.full(3, value)
    charts.curves("x", {"fold 0": ([1, 2], [value, value])}, "Dice", log=False)
    charts.threshold_curve(np.linspace(0, 1, 256), np.full(256, value), 0.5)
    charts.lost_histogram(equal)
    charts.histogram("x", equal, "IoU")
    charts.ring([value] * 16)
    charts.groups("x", "Dice", {"a": equal})
    charts.scatter("x", equal, equal, ("a", "b"))
    charts.differences("x", "Dice", {"a": (0.0, 0.0, 0.0)})


def test_errors_are_missed_or_added() -> None:
    truth, predicted = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    assert gallery.mask_errors(truth, predicted).tolist() == [[0, gallery.MISSED_PIXEL, gallery.ADDED_PIXEL, 0]]


def test_a_layer_is_a_png_of_its_palette() -> None:
    image = image_of(gallery.png(np.array([[0, 1, 2]], np.uint8), gallery.MASK_ERROR_PALETTE)).convert("RGBA")
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0, 0), (*MISSED, 255), (*ADDED, 255)]


def image_of(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


@pytest.mark.parametrize("spot, starts", [((0, 0), (0, 0)), ((50, 50), (46, 44)), ((99, 99), (92, 88))])
def test_a_window_lies_inside_the_image(spot: tuple[int, int], starts: tuple[int, int]) -> None:
    rows, columns = gallery.window_around(spot, (8, 12), (100, 100))
    assert (rows.start, columns.start) == starts
    assert (rows.stop - rows.start, columns.stop - columns.start) == (8, 12)


def test_a_wrong_pixel_costs_more_in_a_small_object() -> None:
    images = pd.DataFrame({"truth_px": [90, 900], "predicted_px": [10, 100], "a_px": [3, 0], "b_px": [0, 10]})
    assert overview.lost_fraction(images, ["a_px", "b_px"]).tolist() == pytest.approx([0.75, 0.25])
    assert overview.lost_fraction(images * 0, ["a_px", "b_px"]).tolist() == [0, 0]


def test_the_worst_median_and_random_images_are_chosen() -> None:
    images = pd.DataFrame({"img": list("abcdefghij"), "score": np.linspace(0.99, 0.9, 10)})
    rows = gallery.choose(images, worst=2, median=2, random=1)
    tags = dict(zip(rows["img"], rows["tags"]))
    assert [name for name in tags if "worst" in tags[name]] == ["j", "i"]
    assert [name for name in tags if "median" in tags[name]] == ["f", "e"]
    assert gallery.count_tags(rows) == {"worst": 2, "median": 2, "random": 1}
    assert gallery.count_tags(gallery.choose(images)) == {}  # all of them have all


def test_filters_are_make_and_angle_of_cars_and_group_and_fold_of_other_images() -> None:
    cars = pd.DataFrame({"group": ["bmw", ""], "angle": [16, 1], "fold": [0, 0]})
    makes, angles, folds = gallery.filters(cars)
    assert makes == ("group", "Make", [("", overview.display_make("")), ("bmw", "BMW")])
    assert (angles, folds) == (("angle", "Angle", [(1, "1"), (16, "16")]), ("fold", "Fold", [(0, "0")]))
    assert gallery.filters(pd.DataFrame({"group": ["room", ""]})) == [("group", "Group", [("room", "room")])]
    assert gallery.filters(pd.DataFrame({"group": [""]})) == []


def test_angle_1_is_at_the_top_and_the_numbers_run_counterclockwise() -> None:
    places = overview.places_on_ring(16)
    assert places[0] == (50, 7) and places[4] == (7, 50) and places[8] == (50, 93)


def test_text_of_a_page_is_escaped_and_commands_are_code() -> None:
    assert page.code("run `make <x>` & wait") == "run <code>make &lt;x&gt;</code> &amp; wait"
    assert page.thousands(1234567) == "1\u202f234\u202f567"
    assert page.signed(-0.00012) == "−0.00012"


def test_a_report_is_one_file_with_its_tables(place: pathlib.Path, demo_folder: pathlib.Path) -> None:
    run = Run("one")
    small_run.submit(run, demo_folder)
    report.main(run, [], [])
    text = run.report_page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text), "nothing is fetched"
    assert not re.search(r"url\((?!#)|@import", text)
    images = pd.read_csv(run.report / "images.csv")
    assert list(images.columns[:6]) == ["img", "car", "group", "angle", "fold", "dice"]
    assert len(images) == 64 and images["dice"].between(0.9, 1).all()
    assert f"{images['dice'].mean():.5f}" in text
    assert text.count('<article class="card"') >= 64
    assert "trained by commit 0123456789<" in text and "on CPU, bfloat16, 2 threads" in text
    assert "empty" in text  # the first row of the submission
    assert list(pd.read_csv(run.report / "suspects.csv").columns)[0] == "img"
    per_card = len(text) / text.count('<article class="card"')
    assert 300 * per_card < 30e6


def test_a_report_of_half_a_run_names_what_is_missing(
    place: pathlib.Path, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    run = Run("half")
    shutil.copytree(Run("one").folder, run.folder)
    run.oof_predictions(0).write_bytes(b"threshold")
    run.oof(1).unlink()
    run.threshold.unlink()
    report.main(run, [f"data.folder={demo_folder}"], [])
    text, printed = run.report_page.read_text(), capsys.readouterr().out
    for sentence_start in ("Fold 0 has no predictions", "Fold 1 has no scores", "The threshold is 0.5"):
        assert sentence_start in text and sentence_start in printed
    for path in (run.oof_predictions(0), run.oof(1), run.submission):
        assert str(path) in text and str(path) in printed
    assert text.count('<p class="missing">') == 4
    assert 'id="where"' in text and 'id="gallery"' not in text


def test_a_report_says_when_the_threshold_is_of_other_predictions(place: pathlib.Path) -> None:
    threshold = Run("one").threshold
    stored = read_json(threshold)
    try:
        write_json(threshold, stored | {"predictions": {"fold0": "another"}})
        report.main(Run("one"), [], [])
        assert f'<p class="missing">{threshold}' in Run("one").report_page.read_text()
    finally:
        write_json(threshold, stored)


def test_a_report_of_a_run_in_training_shows_its_curves(place: pathlib.Path) -> None:
    run = Run("young")
    run.fold(0).folder.mkdir(parents=True)
    for name in ("config.yaml", "log.jsonl"):
        shutil.copy(Run("one").fold(0).folder / name, run.fold(0).folder)
    report.main(run, [], [])
    text = run.report_page.read_text()
    assert 'id="training"' in text and 'id="where"' not in text
    assert "<code>make validate threshold</code>" in text


def test_without_its_images_the_report_has_no_gallery(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = Run("one")
    report.main(run, [f"data.folder={tmp_path}"], [])
    text = run.report_page.read_text()
    assert str(tmp_path) in text and 'id="where"' in text and 'id="gallery"' not in text


def test_the_gallery_needs_no_metadata(
    place: pathlib.Path, demo_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for path in demo_folder.iterdir():
        if "metadata" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    run = Run("one")
    report.main(run, [f"data.folder={tmp_path}"], [])
    text = run.report_page.read_text()
    assert 'id="gallery"' in text and 'id="suspects"' in text and "metadata" not in text


def test_two_at_once_do_not_write_one_page(place: pathlib.Path) -> None:
    one, joint = Run("one"), Run("one+two")
    busy = pytest.raises(Problem, match="is being written by another process")
    with locked(one.lock("report"), "busy"), busy:
        report.main(one, [], [])
    with locked(joint.lock("compare"), "busy"), busy:
        compare.main(joint, [one, Run("two")], [])


def test_no_run_no_report(place: pathlib.Path) -> None:
    with pytest.raises(Problem, match="runs/nobody has no trained fold"):
        report.main(Run("nobody"), [], [])


def test_compare_says_which_run_is_better(place: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    one, two = Run("one"), Run("two")
    compare.main(Run("one+two"), [one, two], [])
    text = Run("one+two").compare_page.read_text()
    assert "no significant difference between two and one" in text and "needs 6 cars" in text
    assert text.count('<article class="card"') == 60
    line = r"compare/index.html: two against one -0\.\d+, .*6 cars, over 64 images of 4 cars\."
    assert re.search(line, capsys.readouterr().out)


def test_compare_lists_what_is_missing_of_each_run(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    compare.main(Run("one+two"), [Run("one"), Run("two")], [f"data.folder={tmp_path}"])
    text = Run("one+two").compare_page.read_text()
    assert text.count('<p class="missing">') == 2 and "one: " in text and 'id="gallery"' not in text


def test_a_difference_is_called_significant_when_its_interval_excludes_0() -> None:
    worse = paired.Difference(mean=-0.002, low=-0.003, high=-0.001, images=96, clusters=6, wins=1)
    assert compare.verdict(worse, "one", "two") == "two is worse than one"
    unclear = dataclasses.replace(worse, high=0.001)
    assert compare.verdict(unclear, "one", "two") == "no significant difference between two and one"


def test_compare_needs_the_threshold_of_each_run(place: pathlib.Path) -> None:
    aside = Run("two").threshold.rename("aside.json")
    try:
        with pytest.raises(Problem, match=r"runs/two has no threshold; run `make threshold RUN=two`"):
            compare.main(Run("one+two"), [Run("one"), Run("two")], [])
    finally:
        aside.rename(Run("two").threshold)


@pytest.mark.parametrize("names", [["one"], ["one", "two", "three"]])
def test_compare_needs_two_runs(place: pathlib.Path, names: list[str]) -> None:
    with pytest.raises(Problem, match="name two"):
        compare.main(Run("x"), [Run(name) for name in names], [])
