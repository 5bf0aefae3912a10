"""Stage `predict`: checkpoints, the cut and the test pictures in; `submissions/RUN.csv.gz` and its origin out.

Each picture's probability is the mean over runs, folds and views; no probability touches the disk. The file comes
about in parts, so that a start after a kill goes on where it was, and several processes share the work; its bytes
are the same in any case.
"""
import contextlib
import hashlib
import itertools
import math
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from pipeline import carvana, config
from pipeline.runtime import git
from pipeline.config import Settings
from pipeline.data import competition
from pipeline.data.image_stream import Batch, ImagesAtScales, stream
from pipeline.runtime.files import locked, read_json, sha256
from pipeline.inference.stored_threshold import stale_message, predicted_with, read_threshold_json
from pipeline.runtime.device import describe, describe_machine
from pipeline.inference.evaluate import predict_ahead
from pipeline.inference.loading import batch_that_fits, check_cars, load_members
from pipeline.inference.ensemble import Ensemble
from pipeline.submission import provenance
from pipeline.submission.shards import Shards
from pipeline.submission.writer import Row, verified_rle
from pipeline.masks import on_device, rle
from pipeline.masks.dice import threshold_to_u8
from pipeline.runtime.memory import explain_out_of_memory, too_large_message
from pipeline.model import checkpoint
from pipeline.runtime.distributed import process_group
from pipeline.paths import Run
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress
from pipeline.runtime.progress import batches

SHAPE = (carvana.HEIGHT_PX, carvana.WIDTH_PX)


def main(run: Run, folds: list[int], overrides: list[str], runs: Sequence[Run] = (), on_bad_image: bool = False) -> None:
    """folds: their numbers; none stands for all that are trained. runs: to be averaged; `run` then names the result.

    forgive: a picture that cannot be read gets an empty row, and is told at the end, instead of ending the stage.
    """
    with process_group() as dist, contextlib.ExitStack() as until_done:
        with dist.main_first():
            for path in (one.fold(fold).config for one in runs or [run] for fold in folds or one.trained_folds()):
                config.check_binary(path, "A submission", only_cars=True)
            weight_of_path, threshold_u8, threshold_facts = weights_and_threshold(run, runs or [run], folds)
            with checkpoint.unchanged(weight_of_path) as hashes:
                members, trained = load_members(weight_of_path, overrides, dist.device)
            check_cars(weight_of_path, trained, "A submission")
            each = [config.for_later_stage(one, overrides) for one in trained]
            settings = each[0]
            ensemble = Ensemble(members, *SHAPE)
            names, pictures = open_pictures(settings)
            shards = Shards(run.shards, names, settings.predict.rows_per_shard)
            asked = settings.predict.batch_size
            facts = {
                "checkpoints": {path: [hashes[path], weight_of_path[pathlib.Path(path)]] for path in hashes},
                "threshold": threshold_u8,
                "settings": [trace(one) for one in each],
                "batch": asked,
                "way with pictures that cannot be read": "an empty row" if on_bad_image else "an error",
                "test pictures": fingerprint(pictures, names),
                "machine": describe_machine(dist.device),
                "code": git.code_digest(),
                "packages": git.packages(),
            }
            # Of parts that are there: with another batch, should more or less fit by now, they cannot go on.
            earlier = (shards.earlier(facts) or {}).get("batch that fits")
        if any(found != hashes for found in dist.gather(hashes)):
            raise dist.problem(f"The processes do not see the same {', '.join(hashes)}; start this again.")
        first_try = earlier if isinstance(earlier, int) and 1 <= earlier < asked else asked
        batch_size = min(dist.gather(batch_that_fits(ensemble, first_try)))
        with dist.main_first():
            if dist.is_main:
                busy = f"{run.submission} is being predicted by another process; wait until it is done."
                until_done.enter_context(locked(run.submission_lock, busy))
                of_before = shards.open(facts | {"batch that fits": batch_size})
        missing = dist.gather(shards.missing())[0]  # as the first sees it, before any of them writes a part
        if dist.is_main:
            threshold_notes = [] if run.blend.is_file() else [threshold_note(one, weight_of_path, each) for one in runs or [run]]
            if any(is_of_others for _, is_of_others in threshold_notes):  # so is the Dice that stands beside it
                threshold_facts = {"threshold": threshold_facts["threshold"]}
            about = provenance_of(runs or [run], hashes, trained, settings, threshold_facts)
            count = f", {dist.world_size} processes" if dist.world_size > 1 else ""
            weights = ", ".join(map(str, weight_of_path))
            print(f"{len(names)} pictures, {weights}, on {describe(dist.device)}{count}.")
            tell(
                *(sentence for sentence, _ in threshold_notes),
                "" if len(runs) < 2 or run.blend.is_file() else no_blend(run, runs),
                f"Only {batch_size} pictures at once fit into the memory." if batch_size < asked else "",
                *of_before,
            )

        started = time.monotonic()
        mine = missing[dist.rank :: dist.world_size]
        name_batches = [batch for number in mine for batch in batches(shards.names_of(number), batch_size)]
        dataset = ImagesAtScales(pictures, ensemble.scales, SHAPE, on_bad_image)
        on_gpu = dist.device.type == "cuda"
        loader = stream(dataset, name_batches, batch_size, settings.data.workers, pin_memory=on_gpu)
        with explain_out_of_memory(lambda: too_large_message(batch_size, settings.data.scale)):
            rows = rows_of(ensemble, loader, threshold_u8, settings.predict.verify_every_rows, shards)
            total = sum(len(shards.names_of(number)) for number in mine)
            shown_rows = iter(progress(rows, "test", wanted=dist.is_main, total=total))
            for number in mine:
                shards.write(number, itertools.islice(shown_rows, len(shards.names_of(number))))

        rows_written = sum(dist.gather(total))  # and so all parts are there
        if dist.is_main:
            bad_images = shards.bad_images()
            tell(*(f"{name} has an empty row: {problem}" for name, problem in sorted(bad_images.items())))
            shards.join(run.submission, carvana.SUBMISSION_HEADER)
            about |= {"sha256": sha256(run.submission), "bad_images": sorted(bad_images)}
            provenance.write(run.provenance, provenance.Provenance(**about))
            tell(shards.remove())
            others = ", ".join(map(str, shards.aside()))
            tell(f"Parts of other predictions are kept in {others}; remove what nobody wants." if others else "")
            megabytes, speed = run.submission.stat().st_size / 1e6, rows_written / (time.monotonic() - started)
            print(f"{run.submission}: {len(names)} rows, {megabytes:.1f} MB, {speed:.1f} images/s.")


def rows_of(
    ensemble: Ensemble, batches_of_pictures: Iterable[Batch], threshold_u8: int, verify_every: int, shards: Shards
) -> Iterator[Row]:
    """The row of each picture, in order; an empty one for a picture that could not be read, which is noted.

    One row of `verify_every` is decoded again and compared with its mask.
    """
    numbers = itertools.count()

    def predict(batch: Batch) -> Tensor:
        return ensemble(batch.image_of_scale)

    def finish(batch: Batch, probability_u8_NHW: Tensor) -> list[Row]:
        """Text at once: masks that outlive their batch leave holes in the memory, 1 MB a picture with glibc 2.36."""
        shards.note_bad_images(batch.problems)
        rows = []
        for name, (mask, bounds) in zip(batch.names, masks_and_bounds(probability_u8_NHW, threshold_u8)):
            proven = next(numbers) % verify_every == 0
            text = verified_rle(mask, bounds) if proven else rle.text(bounds)
            rows.append((name, "" if name in batch.problems else text))
        return rows

    for rows in predict_ahead(predict, batches_of_pictures, finish):
        yield from rows


def masks_and_bounds(probability_u8_NHW: Tensor, threshold_u8: int) -> Iterable[tuple[NDArray, NDArray]]:
    """The mask of each prediction, bool (height, width), and the bounds of its runs, as `rle.bounds` gives them."""
    if probability_u8_NHW.device.type == "cuda":
        mask_NHW = probability_u8_NHW >= threshold_u8
        return zip(mask_NHW.cpu().numpy(), on_device.bounds(mask_NHW))
    masks = (probability_u8 >= threshold_u8 for probability_u8 in probability_u8_NHW.numpy())
    return ((mask, rle.bounds(mask)) for mask in masks)


def weights_and_threshold(
    joint: Run, runs: Sequence[Run], folds: list[int]
) -> tuple[dict[pathlib.Path, float], int, dict[str, Any]]:
    """Checkpoint -> its weight in the mean; the cut as the smallest 8-bit value that counts as car; its file's content.

    The weights of several runs are those that the stage `blend` found; without it they are equal, and the cut is the
    mean of the runs' own.
    """
    paths = {run.name: [run.fold(fold).best for fold in folds or run.trained_folds()] for run in runs}
    for run in runs:
        if not paths[run.name]:
            raise Problem(f"{run.folder} has no trained fold; run `make train FOLD=0` first.")
    if len(runs) > 1 and joint.blend.is_file():
        weights, found = read_blend(joint.blend, runs), read_threshold_json(joint.blend, stage="blend")
    else:
        if sentence := next(filter(None, map(stale_message, runs)), ""):
            raise Problem(sentence)
        weights, all_found = {run.name: 1 / len(runs) for run in runs}, [read_threshold_json(run.threshold) for run in runs]
        found = all_found[0] if len(runs) == 1 else {"threshold": sum(each["threshold"] for each in all_found) / len(runs)}
    weight_of_path = {
        path: weights[run.name] / len(paths[run.name]) for run in runs for path in paths[run.name] if weights[run.name]
    }
    return weight_of_path, threshold_to_u8(found["threshold"]), found


def threshold_note(run: Run, paths: Iterable[pathlib.Path], settings: list[Settings]) -> tuple[str, bool]:
    """A sentence when the cut of a run is of predictions made otherwise than now, or nobody knows how, else "";
    and whether they surely were.

    settings: by which each of the networks at `paths` predicts.
    """
    its = [one for path, one in zip(paths, settings) if path.parent.parent == run.folder]
    ways = {predicted_with(one.predict.tta, one.data.scale, one.data.hq) for one in its}
    known = read_threshold_json(run.threshold).get("predicted_with", "")
    if not known:
        return f"{run.threshold} does not say of which predictions it is.", False
    if ways <= {known}:
        return "", False
    now = "; ".join(sorted(ways))
    its_own = "`make validate threshold` with the same SET finds its own cut"
    return f"{run.threshold} is of {known}, and this is {now}: {its_own}.", True


def no_blend(joint: Run, runs: Sequence[Run]) -> str:
    """What is taken instead, and the blend of the same runs in another order, should there be one."""
    names = sorted(run.name for run in runs)
    others = (path for path in joint.folder.parent.glob("*/blend.json") if sorted(path.parent.name.split("+")) == names)
    hint = next((f" Runs named in the order of {path} are weighed as it says." for path in others), "")
    return f"There is no {joint.blend}: equal weights, mean cut.{hint}"


def read_blend(path: pathlib.Path, runs: Sequence[Run]) -> dict[str, float]:
    """Run's name -> its weight, of a `blend.json`; they sum to 1 to the last digit, as those in the file may not."""
    try:
        found = read_json(path)
        weights = {str(name): float(weight) for name, weight in found["weights"].items()}
        hashes = dict(found["checkpoints"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise Problem(f"{path} is damaged; delete it and run `make blend`.") from None
    if not all(map(math.isfinite, weights.values())):
        raise Problem(f"{path} is damaged; delete it and run `make blend`.")
    if set(weights) != {run.name for run in runs} or min(weights.values()) < 0 or not sum(weights.values()):
        raise Problem(f"{path} weighs the runs {', '.join(weights)}; choose another RUN=, or run `make blend` again.")
    for name, digest in hashes.items():
        if not pathlib.Path(name).is_file() or sha256(pathlib.Path(name)) != digest:
            raise Problem(f"{path} was found with another {name}; run `make blend` again.")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def open_pictures(settings: Settings) -> tuple[list[str], competition.ImageSet]:
    """The names of the sample submission, in its order, and the test pictures, which have them all."""
    folder = pathlib.Path(settings.data.folder)
    sample = competition.read_table(folder, "sample_submission.csv", carvana.SUBMISSION_HEADER)
    names = sample["img"].tolist()
    pictures = competition.ImageSet(folder, "test_hq" if settings.data.hq else "test")
    if missing := sorted(set(names) - set(pictures.names)):
        raise Problem(f"{folder} lacks {len(missing)} pictures of the sample submission, the first is {missing[0]}.")
    return names, pictures


def trace(settings: Settings) -> dict:
    """Of the settings that one network predicts by, those on which a row may depend."""
    return settings.data.model_dump(include={"scale", "hq"}) | settings.predict.model_dump(exclude={"batch_size"})


def fingerprint(pictures: competition.ImageSet, names: list[str]) -> str:
    """Tells one set of test pictures from another, as far as names, sizes and the loose ones among them tell."""
    files = pictures.files
    archive_bytes = files.archive_path.stat().st_size if files.archive_path.is_file() else 0
    text = "\n".join([*names, "loose", *sorted(files.loose), f"{archive_bytes} bytes at 1/{pictures.stored_scale}"])
    return hashlib.sha256(text.encode()).hexdigest()


def tell(*lines: str) -> None:
    print("".join(line + "\n" for line in lines if line), end="")


def provenance_of(
    runs: Sequence[Run], hashes: dict[str, str], trained: list[Settings], settings: Settings, found: dict[str, Any]
) -> dict[str, Any]:
    """What the submission is made of, noted before the work begins. hashes, trained: of each checkpoint; found: what
    the file with the cut holds.
    """
    nearest, words = config.nearest(trained[0]) if all(other == trained[0] for other in trained) else ("", [])
    return {
        "runs": [run.name for run in runs],
        "folds": sorted({int(pathlib.Path(path).parent.name.removeprefix("fold")) for path in hashes}),
        "threshold": found["threshold"],
        "oof_dice": found.get("oof_dice"),
        "oof_dice_cross_fitted": found.get("oof_dice_cross_fitted"),
        "config": nearest,
        "train_overrides": words,
        "predict_overrides": config.overrides_between(trained[0], settings),
        "config_sha256": hashlib.sha256("".join(dict.fromkeys(map(config.dump, trained))).encode()).hexdigest(),
        "checkpoints": hashes,
        "commit": git.commit(),
        "clean": git.is_clean(),
    }
