"""The cut, and a Dice that does not flatter it."""
import json
import pathlib

import numpy as np
import pytest

from pipeline.config import Settings
from pipeline.runtime.files import sha256, write_json
from pipeline.inference.stored_threshold import stale_message, predicted_with, read_threshold_u8
from pipeline.masks import dice
from pipeline.paths import Run
from pipeline.runtime.problem import Problem
from pipeline import threshold
from pipeline.submission import plan


def scores(*best_cuts: int) -> np.ndarray:
    """Dice (images, 256) that falls by 0.001 a step on both sides of each image's best cut."""
    return 0.9 - 0.001 * np.abs(np.arange(256)[None] - np.array(best_cuts)[:, None])


def test_each_group_is_judged_at_the_cut_that_is_best_on_the_others() -> None:
    found = threshold.cross_fitted(scores(100, 100, 140), np.array(["kia", "kia", "ford"]))
    assert found == pytest.approx(0.9 - 0.040)


def test_images_of_one_group_do_not_choose_each_others_cut() -> None:
    """Judged alone, each image would be flattered by the others of its make."""
    images = scores(100, 100, 100, 140, 140)
    grouped = threshold.cross_fitted(images, np.array(["kia", "kia", "kia", "ford", "ford"]))
    alone = threshold.cross_fitted(images, np.array(["a", "b", "c", "d", "e"]))
    assert grouped == pytest.approx(0.9 - 0.040)
    assert alone > grouped + 0.005


def test_a_single_group_is_judged_at_its_own_cut() -> None:
    assert threshold.cross_fitted(scores(100, 100), np.array(["kia", "kia"])) == pytest.approx(0.9)


@pytest.fixture
def judged(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose four pictures of two makes in two folds are best cut at 100, 100 and 140, 140."""
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
        save_oof(run, fold, [f"00000000000{car}_{view}.jpg" for view in ("01", "02")], counts)
    return run


def save_oof(run: Run, fold: int, names: list[str], counts: np.ndarray, tta: str = "none") -> None:
    about = {"checkpoint": sha256(run.fold(fold).best), "predicted_with": predicted_with(tta, scale=2, hq=False)}
    np.savez(run.oof(fold), names=names, histograms=counts, **about)


def test_the_cut_and_both_dice_are_told_over_all_folds(judged: Run) -> None:
    threshold.main(judged)
    found = json.loads(judged.threshold.read_text())
    assert list(found) == ["threshold", "oof_dice", "oof_dice_cross_fitted", "images", "predicted_with", "predictions"]
    assert found["images"] == 4
    too_low = 2 * 20 / (64 + 20)  # at 100 the second car's picture is all car
    assert found["threshold"] == pytest.approx(dice.threshold_from_u8(100), abs=1e-6)
    assert found["oof_dice"] == pytest.approx((1 + too_low) / 2, abs=1e-6)
    assert found["oof_dice_cross_fitted"] == pytest.approx((0 + too_low) / 2, abs=1e-6)  # at 140 the first has none
    assert read_threshold_u8(judged.threshold) == 100


def test_a_cut_of_other_predictions_is_not_used(judged: Run) -> None:
    threshold.main(judged)
    assert stale_message(judged) == ""
    judged.fold(1).best.unlink()  # fewer folds than the cut was found on are none of its business
    assert stale_message(judged) == ""
    save_oof(judged, 0, ["00000000000a_01.jpg"], np.ones((1, 2, 256), np.int32), tta="hflip")
    said = r"the cut of other predictions than .*oof holds now; run `make threshold RUN=small`"
    with pytest.raises(Problem, match=said):
        plan.weights_and_threshold(judged, [judged], [0])
    write_json(judged.threshold, {"threshold": 0.4})  # by hand: it names no predictions
    assert stale_message(judged) == ""
    assert plan.weights_and_threshold(judged, [judged], [0])[1] == 102  # 0.4 of 255 and no less


def test_a_cut_of_a_network_that_was_trained_on_since_is_not_used(judged: Run) -> None:
    threshold.main(judged)
    judged.fold(1).best.write_text("trained on")
    assert stale_message(judged).endswith("fold1/best.pt; run `make validate` again.")


def test_a_run_that_is_renamed_keeps_its_cut(judged: Run) -> None:
    threshold.main(judged)
    judged.folder.rename(Run("renamed").folder)
    assert stale_message(Run("renamed")) == ""


def test_a_fold_that_was_judged_since_makes_the_cut_outdated(judged: Run) -> None:
    judged.oof(1).rename("aside.npz")
    threshold.main(judged)
    pathlib.Path("aside.npz").rename(judged.oof(1))
    assert "run `make threshold RUN=small` again" in stale_message(judged)


def test_a_cut_knows_how_its_predictions_were_made(judged: Run) -> None:
    threshold.main(judged)
    assert json.loads(judged.threshold.read_text())["predicted_with"] == "predict.tta none, data.scale 2"
    paths, settings = [judged.fold(fold).best for fold in (0, 1)], Settings()
    plain = settings.model_copy(update={"predict": settings.predict.model_copy(update={"tta": "none"})})
    assert plan.threshold_note(judged, paths, [plain, plain]) == ("", False)
    told, is_of_others = plan.threshold_note(judged, paths, [settings, settings])
    assert "with predict.tta none, data.scale 2, but this prediction uses predict.tta hflip, data.scale 2: " in told
    assert is_of_others
    assert plan.threshold_note(judged, [Run("other").fold(0).best], [settings]) == ("", False)  # it has a cut of its own
    write_json(judged.threshold, {"threshold": 0.4})
    told, is_of_others = plan.threshold_note(judged, paths, [plain, plain])
    assert told.startswith(f"{judged.threshold} does not name the settings") and not is_of_others


def test_a_blend_of_the_same_runs_in_another_order_is_told(judged: Run) -> None:
    write_json(Run("b+a").blend, {})
    assert plan.missing_blend_note(Run("a+b"), [Run("a"), Run("b")]).endswith(
        "To use the weights of runs/b+a/blend.json, name the runs in its order."
    )
    assert plan.missing_blend_note(Run("a+c"), [Run("a"), Run("c")]).endswith("the threshold is the mean of theirs.")


def test_whatever_cut_is_found_can_be_read_again(judged: Run) -> None:
    """Even the cut 0 of a network that finds nothing at all."""
    truth = np.arange(64) < 20
    for cut in range(256):
        values = np.where(truth, cut, max(cut - 1, 0)).astype(np.uint8)
        counts = np.stack([dice.histogram(values, truth)])
        for fold in (0, 1):
            save_oof(judged, fold, ["00000000000a_01.jpg"], counts)
        threshold.main(judged)
        assert read_threshold_u8(judged.threshold) == cut


def test_a_run_that_was_never_validated_is_a_problem(judged: Run) -> None:
    for fold in (0, 1):
        judged.oof(fold).unlink()
    with pytest.raises(Problem, match="no out-of-fold predictions; run `make validate RUN=small` first"):
        threshold.main(judged)


def test_a_run_that_is_not_there_gets_no_folder(judged: Run) -> None:
    with pytest.raises(Problem, match="runs/typo has no out-of-fold predictions"):
        threshold.main(Run("typo"))
    assert not Run("typo").folder.exists()


def test_predictions_of_another_network_do_not_choose_the_cut(judged: Run) -> None:
    judged.fold(1).best.write_text("trained again")
    with pytest.raises(Problem, match=r"fold1\.npz was predicted by another .*best\.pt; run `make validate` again"):
        threshold.main(judged)


def test_predictions_of_a_fold_that_was_deleted_do_not_count(judged: Run) -> None:
    judged.fold(1).best.unlink()
    threshold.main(judged)
    assert json.loads(judged.threshold.read_text())["images"] == 2


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"threshold": "0.5"}', '{"threshold": 2}', '{"threshold": null}', "\xff"])
def test_a_damaged_threshold_json_is_a_problem_that_names_it(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "threshold.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Problem, match=r"threshold\.json"):
        read_threshold_u8(tmp_path / "threshold.json")
