"""The threshold, and a Dice that is not too good."""
import json
import pathlib

import numpy as np
import pytest

from pipeline import threshold
from pipeline.config import Predict, Settings
from pipeline.inference.stored_threshold import predicted_with, read_threshold_u8, stale_message
from pipeline.masks import dice
from pipeline.paths import Run
from pipeline.runtime.files import sha256, write_json
from pipeline.runtime.problem import Problem
from pipeline.submission import plan


def scores(*best_thresholds_u8: int) -> np.ndarray:
    """Dice (images, 256) that falls by 0.001 a step on both sides of each image's best threshold."""
    return 0.9 - 0.001 * np.abs(np.arange(256)[None] - np.array(best_thresholds_u8)[:, None])


def test_each_group_is_evaluated_at_the_threshold_that_is_best_on_the_others() -> None:
    mean_dice = threshold.cross_fit(scores(100, 100, 140), np.array(["kia", "kia", "ford"]))
    assert mean_dice.mean() == pytest.approx(0.9 - 0.040)


def test_images_of_one_group_do_not_choose_each_others_threshold() -> None:
    """With groups of one image, the others of its make would choose a threshold that is too good for it."""
    images = scores(100, 100, 100, 140, 140)
    grouped = threshold.cross_fit(images, np.array(["kia", "kia", "kia", "ford", "ford"])).mean()
    alone = threshold.cross_fit(images, np.array(["a", "b", "c", "d", "e"])).mean()
    assert grouped == pytest.approx(0.9 - 0.040)
    assert alone > grouped + 0.005


def test_a_single_group_is_evaluated_at_its_own_threshold() -> None:
    assert threshold.cross_fit(scores(100, 100), np.array(["kia", "kia"])) == pytest.approx([0.9, 0.9])


def test_standard_errors_are_over_cars_and_over_makes() -> None:
    values, cars, makes = np.array([0.9, 0.9, 1.0, 1.0]), list("aabc"), np.array(["kia", "kia", "ford", "ford"])
    errors = threshold.standard_errors(values, {"car_id": cars, "make": makes})
    assert errors == {"car": pytest.approx(np.sqrt(1.5 * (0.1**2 + 2 * 0.05**2)) / 4), "make": pytest.approx(0.05)}
    assert threshold.standard_errors(values, {"image": list("abcd"), "group": np.array([""] * 4)}).keys() == {"image"}


@pytest.fixture
def validated(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with four images of two makes in two folds whose best thresholds are 100, 100 and 140, 140."""
    monkeypatch.chdir(tmp_path)
    run = Run("small")
    run.folder.mkdir(parents=True)
    run.folds.write_text("car_id,make,fold\n00000000000a,kia,0\n00000000000b,,1\n")
    run.oof(0).parent.mkdir()
    truth = np.arange(64) < 20
    for fold, car in enumerate("ab"):
        high = 100 + 40 * fold  # the car's pixels have this value, the others one less
        values = np.where(truth, high, high - 1).astype(np.uint8)
        counts = np.stack([dice.histogram(values, truth)] * 2)
        run.fold(fold).folder.mkdir()
        run.fold(fold).best.write_text(f"the network of fold {fold}")
        save_oof(run, fold, [f"00000000000{car}_{angle}.jpg" for angle in ("01", "02")], counts)
    return run


def save_oof(run: Run, fold: int, names: list[str], counts: np.ndarray, tta: str = "none") -> None:
    about = {"checkpoint_sha256": sha256(run.fold(fold).best), "predictions_sha256": ""}
    about["predicted_with"] = predicted_with(Settings(predict=Predict(tta=tta)), refined=False)
    np.savez(run.oof(fold), names=names, histograms=counts, **about)


def test_the_threshold_and_both_dice_are_those_over_all_folds(validated: Run) -> None:
    threshold.main(validated)
    content = json.loads(validated.threshold.read_text())
    keys = ["threshold", "oof_dice", "oof_dice_cross_fitted", "standard_errors", "images"]
    assert list(content) == [*keys, "predicted_with", "predictions"]
    assert content["images"] == 4
    too_low = 2 * 20 / (64 + 20)  # at 100 the second car's image is all car
    assert content["threshold"] == pytest.approx(dice.threshold_from_u8(100), abs=1e-6)
    assert content["oof_dice"] == pytest.approx((1 + too_low) / 2, abs=1e-6)
    assert content["oof_dice_cross_fitted"] == pytest.approx((0 + too_low) / 2, abs=1e-6)  # at 140 the first has none
    assert read_threshold_u8(validated.threshold) == 100


def test_images_with_groups_are_cross_fitted_though_no_config_says_what_they_are(validated: Run) -> None:
    """A name that is looked up as a car's would be in no group, and all images in one."""
    names = ["holiday_2019_0001.jpg", "holiday_2019_0002.jpg", "holiday_2020_0001.jpg", "holiday_2020_0002.jpg"]
    rows = [f"{name},{name[:12]},{number // 2}" for number, name in enumerate(names)]
    validated.folds.write_text("\n".join(["image,group,fold", *rows, ""]))
    for fold in (0, 1):
        save_oof(validated, fold, names[2 * fold : 2 * fold + 2], np.load(validated.oof(fold))["histograms"])
    threshold.main(validated)
    content = json.loads(validated.threshold.read_text())
    assert content["oof_dice_cross_fitted"] < content["oof_dice"] - 0.1


def test_an_image_that_folds_csv_does_not_list_is_a_problem(validated: Run) -> None:
    validated.folds.write_text("car_id,make,fold\n00000000000a,kia,0\n00000000000c,,1\n")
    with pytest.raises(Problem, match=r"folds\.csv does not list 00000000000b"):
        threshold.main(validated)


def test_a_threshold_of_other_predictions_is_not_used(validated: Run) -> None:
    threshold.main(validated)
    assert stale_message(validated) == ""
    validated.fold(1).best.unlink()  # a threshold may be used with fewer folds than it was found on
    assert stale_message(validated) == ""
    save_oof(validated, 0, ["00000000000a_01.jpg"], np.ones((1, 2, 256), np.int32), tta="hflip")
    with pytest.raises(Problem, match=r"small/threshold\.json .* run `make threshold RUN=small` again"):
        plan.weights_and_threshold(validated, [validated], [0])
    write_json(validated.threshold, {"threshold": 0.4})  # by hand: it names no predictions
    assert stale_message(validated) == ""
    assert plan.weights_and_threshold(validated, [validated], [0])[1] == 102  # 0.4 of 255 and no less


def test_a_threshold_of_a_network_that_was_trained_further_is_not_used(validated: Run) -> None:
    threshold.main(validated)
    validated.fold(1).best.write_text("trained on")
    assert stale_message(validated).endswith("fold1/best.pt; run `make validate` again.")


def test_a_run_that_is_renamed_keeps_its_threshold(validated: Run) -> None:
    threshold.main(validated)
    validated.folder.rename(Run("renamed").folder)
    assert stale_message(Run("renamed")) == ""


def test_a_fold_that_was_validated_later_makes_the_threshold_stale(validated: Run) -> None:
    validated.oof(1).rename("aside.npz")
    threshold.main(validated)
    pathlib.Path("aside.npz").rename(validated.oof(1))
    assert "run `make threshold RUN=small` again" in stale_message(validated)


def test_a_threshold_knows_how_its_predictions_were_made(validated: Run) -> None:
    threshold.main(validated)
    assert json.loads(validated.threshold.read_text())["predicted_with"] == "predict.tta none, data.scale 2"
    paths, chosen_on = [validated.fold(fold).best for fold in (0, 1)], predicted_with(no_flips(), refined=False)
    assert plan.threshold_note(validated, dict.fromkeys(paths, chosen_on)) == ("", False)
    for others in (predicted_with(Settings(), refined=False), predicted_with(no_flips(), refined=True)):
        note, is_of_others = plan.threshold_note(validated, dict.fromkeys(paths, others))
        assert f"predict.tta none, data.scale 2, but this prediction uses {others}: " in note and is_of_others
    note, is_of_others = plan.threshold_note(validated, {paths[0]: chosen_on})
    assert "was chosen on fold0, fold1, but this prediction uses fold0: " in note and is_of_others
    other = {Run("other").fold(0).best: "another"}  # which has a threshold of its own
    assert plan.threshold_note(validated, other) == ("", False)
    write_json(validated.threshold, {"threshold": 0.4})
    note, is_of_others = plan.threshold_note(validated, dict.fromkeys(paths, chosen_on))
    assert note.startswith(f"{validated.threshold} does not name the settings") and not is_of_others


def no_flips() -> Settings:
    return Settings(predict=Predict(tta="none"))


def test_a_blend_of_the_same_runs_in_another_order_is_pointed_out(validated: Run) -> None:
    write_json(Run("b+a").blend, {})
    assert plan.missing_blend_note(Run("a+b"), [Run("a"), Run("b")]).endswith(
        "To use the weights of runs/b+a/blend.json, name the runs in its order."
    )
    assert plan.missing_blend_note(Run("a+c"), [Run("a"), Run("c")]).endswith("the threshold is the mean of theirs.")


def test_every_threshold_that_is_written_is_read_as_the_same(validated: Run) -> None:
    """Even the threshold 0 of a network that finds nothing at all."""
    truth = np.arange(64) < 20
    for threshold_u8 in range(256):
        values = np.where(truth, threshold_u8, max(threshold_u8 - 1, 0)).astype(np.uint8)
        counts = np.stack([dice.histogram(values, truth)])
        for fold in (0, 1):
            save_oof(validated, fold, ["00000000000a_01.jpg"], counts)
        threshold.main(validated)
        assert read_threshold_u8(validated.threshold) == threshold_u8


def test_a_run_that_was_never_validated_is_a_problem(validated: Run) -> None:
    for fold in (0, 1):
        validated.oof(fold).unlink()
    with pytest.raises(Problem, match="no out-of-fold predictions; run `make validate RUN=small` first"):
        threshold.main(validated)


def test_a_run_that_is_not_there_gets_no_folder(validated: Run) -> None:
    with pytest.raises(Problem, match="runs/typo has no out-of-fold predictions"):
        threshold.main(Run("typo"))
    assert not Run("typo").folder.exists()


def test_predictions_of_another_network_do_not_choose_the_threshold(validated: Run) -> None:
    validated.fold(1).best.write_text("trained again")
    with pytest.raises(Problem, match=r"fold1\.npz was predicted by another .*best\.pt; run `make validate` again"):
        threshold.main(validated)


def test_predictions_of_a_fold_that_was_deleted_do_not_count(validated: Run) -> None:
    validated.fold(1).best.unlink()
    threshold.main(validated)
    assert json.loads(validated.threshold.read_text())["images"] == 2


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"threshold": "0.5"}', '{"threshold": 2}', '{"threshold": null}', "\xff",
     '{"threshold": 0.5, "standard_errors": [1]}', '{"threshold": 0.5, "standard_errors": {"car": "0"}}'],
)  # fmt: skip
def test_a_damaged_threshold_json_is_a_problem_that_names_it(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "threshold.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Problem, match=r"threshold\.json"):
        read_threshold_u8(tmp_path / "threshold.json")
