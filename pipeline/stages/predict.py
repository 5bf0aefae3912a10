"""Stage `predict`: checkpoints, the cut and the test pictures in; `submissions/RUN.csv.gz` and its origin out.

Each picture's probability is the mean over the folds and their flips; no probability touches the disk.
"""
import hashlib
import json
import pathlib
from typing import Any

from pipeline import carvana, config, git
from pipeline.config import Settings
from pipeline.data import competition
from pipeline.data.dataset import HeldOutPictures, held_out_loader
from pipeline.files import sha256
from pipeline.inference.device import describe, pick_device
from pipeline.inference.evaluate import predictions
from pipeline.inference.load import load_network
from pipeline.inference.predictor import Predictor
from pipeline.leaderboard import origin, writer
from pipeline.masks.dice import cut_from_share
from pipeline.memory import out_of_memory_told, too_large
from pipeline.paths import Run
from pipeline.problem import Problem
from pipeline.progress import progress


def run(run: Run, folds: list[int], overrides: list[str]) -> None:
    if not folds:
        raise Problem(f"{run.folder} has no trained fold; run `make train FOLD=0` first.")
    device = pick_device()
    loaded = [load_network(run.fold(fold).best, device) for fold in folds]
    networks, trained = [network for network, _ in loaded], [settings for _, settings in loaded]
    for fold, other in zip(folds, trained):
        if (other.data.scale, other.data.hq) != (trained[0].data.scale, trained[0].data.hq):
            raise Problem(
                f"Folds {folds[0]} and {fold} of {run.folder} see their pictures at another data.scale or data.hq; "
                "predict them one by one with FOLD=."
            )
    settings = config.for_later_stage(trained[0], overrides, where=str(run.fold(folds[0]).best))
    cut = read_cut(run.threshold)
    about = origin_of(run, folds, trained, settings)

    folder = pathlib.Path(settings.data.folder)
    sample = competition.read_table(folder, "sample_submission.csv", carvana.SUBMISSION_HEADER)
    names = sample["img"].tolist()
    pictures = competition.Pictures(folder, "test_hq" if settings.data.hq else "test")
    if missing := sorted(set(names) - set(pictures.names)):
        raise Problem(f"{folder} lacks {len(missing)} pictures of the sample submission, the first is {missing[0]}.")

    predictor = Predictor(
        networks, settings.predict.tta == "hflip", settings.data.scale, carvana.HEIGHT_PX, carvana.WIDTH_PX
    )
    dataset = HeldOutPictures(pictures, names, settings.data.scale)
    loader = held_out_loader(dataset, settings.predict.batch_size, settings.data.workers, device.type == "cuda")
    print(f"{len(names)} pictures, folds {', '.join(map(str, folds))}, on {describe(device)}.")
    masks = (probability_u8 >= cut for probability_u8 in predictions(predictor, loader))
    named = zip(names, masks, strict=True)
    with out_of_memory_told(lambda: too_large(settings.predict.batch_size, settings.data.scale)):
        rows = writer.write(run.submission, carvana.SUBMISSION_HEADER, progress(named, "test", total=len(names)))
    origin.write(run.origin, origin.Origin(sha256=sha256(run.submission), **about))
    print(f"{run.submission}: {rows} rows, {run.submission.stat().st_size / 1e6:.1f} MB.")


def read_cut(path: pathlib.Path) -> int:
    """The cut of `threshold.json` as the smallest 8-bit value that counts as car."""
    try:
        share = json.loads(path.read_text())["cut"]
    except FileNotFoundError:
        raise Problem(f"There is no {path}; run `make threshold` first.") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise Problem(f"{path} is damaged; delete it and run `make threshold`.") from None
    if not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise Problem(f"{path}: the cut is {share!r}, but it must lie between 0 and 1.")
    return cut_from_share(share)


def origin_of(run: Run, folds: list[int], trained: list[Settings], settings: Settings) -> dict[str, Any]:
    """What the submission is made of, noted before the work begins. trained: the settings of each fold."""
    found = json.loads(run.threshold.read_text())
    nearest, words = config.nearest(trained[0]) if all(other == trained[0] for other in trained) else ("", [])
    return {
        "runs": [run.name],
        "folds": folds,
        "cut": found["cut"],
        "oof_dice": found.get("oof_dice"),
        "oof_dice_cross_fitted": found.get("oof_dice_cross_fitted"),
        "config": nearest,
        "train_set": words,
        "predict_set": config.words_between(trained[0], settings),
        "config_sha256": hashlib.sha256("".join(dict.fromkeys(map(config.dump, trained))).encode()).hexdigest(),
        "checkpoints": {str(path): sha256(path) for path in (run.fold(fold).best for fold in folds)},
        "commit": git.commit(),
        "clean": git.is_clean(),
    }
