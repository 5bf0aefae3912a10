"""Measure how many wrong masks `make report` finds: corrupt masks of a copied competition folder, then rank suspects.

    python -m benchmarks.suspects plant --data data/demo --out data/planted
    make train validate CONFIG=configs/demo.yaml DATA=data/planted RUN=planted FOLD=0,1
    python -m benchmarks.suspects find --data data/demo --out data/planted --run planted

The networks also learn from the wrong masks of other makes, as they would from real ones. The last line of `find` is
one JSON object of figures.
"""
import argparse
import json
import pathlib

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import carvana
from pipeline.inference.loading import load_network
from pipeline.inference.oof import OofStore, open_oof_store, read_oof_histograms
from pipeline.masks import rle
from pipeline.paths import Run
from pipeline.report.errors import upsample_stored
from pipeline.report.suspects import suspects_table
from pipeline.runtime.files import write_json
from pipeline.synthetic.write_competition import Row, write_table

SHAPE = (carvana.HEIGHT_PX, carvana.WIDTH_PX)
KINDS = ("neighbour", "filled", "missing")
PLANTED = "planted.json"  # image -> kind, pixels changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plant", "find"))
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a folder with correct masks")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the copy")
    parser.add_argument("--run", help="find: the run that was trained and validated on the copy")
    parser.add_argument("--fraction", type=float, default=0.05, help="plant: of the masks, which become wrong")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "plant":
        plant(args.data, args.out, args.fraction, args.seed)
    else:
        find(args.data, args.out, Run(args.run))


def plant(folder: pathlib.Path, out: pathlib.Path, fraction: float, seed: int) -> None:
    """Link everything but the masks; write these with a fraction of them wrong, as many of each kind."""
    out.mkdir(parents=True)
    for path in folder.iterdir():
        if not path.name.startswith("train_masks"):
            (out / path.name).symlink_to(path.resolve())
    masks = carvana.CARVANA.open_masks(folder)
    names = masks.names
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(names))[: round(fraction * len(names))].tolist())
    kind_of = {names[index]: KINDS[place % len(KINDS)] for place, index in enumerate(chosen)}
    rows: list[Row] = [carvana.CARVANA.submission_header]
    planted: dict[str, dict[str, str | int]] = {}
    px = []
    for name in names:
        mask = masks.read(name)
        if kind := kind_of.get(name):
            wrong = masks.read(neighbour(name)) if kind == "neighbour" else corrupt(mask, kind, rng)
            px.append(int((wrong != mask).sum()))
            planted[name] = {"kind": kind, "px": px[-1]}
            mask = wrong
        rows.append((name, rle.encode(mask)))
    write_table(out / "train_masks.csv.zip", rows)
    write_json(out / PLANTED, planted)
    print(f"{out}: {len(planted)} of {len(names)} masks are wrong, by {min(px)} to {max(px)} pixels.")


def full_size(stored_u8: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Return a stored prediction at full size, which it has already if it was refined."""
    return stored_u8 if stored_u8.shape == SHAPE else upsample_stored(stored_u8, scale, *SHAPE)


def find(folder: pathlib.Path, copy: pathlib.Path, run: Run) -> None:
    """Print the rank of each suspect, and its Dice to the correct mask before and after correction."""
    kind_of = {name: mask["kind"] for name, mask in json.loads((copy / PLANTED).read_text()).items()}
    correct, wrong = carvana.CARVANA.open_masks(folder), carvana.CARVANA.open_masks(copy)
    store_of: dict[str, OofStore] = {}
    scale = 0
    for fold in run.trained_folds():
        oof = read_oof_histograms(run.oof(fold))
        store_of |= dict.fromkeys(oof.names, open_oof_store(oof, run.oof_predictions(fold)))
        scale = load_network(run.fold(fold).best, torch.device("cpu"))[1].data.scale
    table = suspects_table(
        store_of, wrong.read, lambda name: [full_size(store_of[name].read(name), scale)]
    )

    planted = [name for name in store_of if name in kind_of]
    print(f"{len(planted)} of {len(store_of)} out-of-fold masks are wrong; {len(table)} suspects")
    print("rank  score    pixels  planted    Dice to the correct mask: before, after")
    ranks, gains = [], []
    for rank, row in enumerate(table.itertuples(), start=1):
        bounds = rle.bounds(correct.read(row.img))
        before = rle.dice_score(rle.bounds(wrong.read(row.img)), bounds)
        after = rle.dice_score(rle.parse(row.rle_mask, SHAPE[0] * SHAPE[1]), bounds)
        if row.img in kind_of:
            ranks.append(rank)
            gains.append(after - before)
        print(f"{rank:4}  {row.score:.5f} {row.px:7}  {kind_of.get(row.img, ''):9}  {before:.5f} {after:.5f}")
    print(json.dumps({
        "planted": len(planted),
        "detected": len(ranks),
        "detected_in_top": sum(rank <= len(planted) for rank in ranks),
        "worst_rank": max(ranks, default=None),
        "mean_dice_gain": round(float(np.mean(gains)), 5) if gains else None,
    }))  # fmt: skip


def neighbour(name: str) -> str:
    """Return the next angle of the same car."""
    angle = carvana.angle_of(name) % carvana.ANGLES + 1
    return carvana.image_name(carvana.car_of(name), f"{angle:02d}")


def corrupt(mask: NDArray[np.bool_], kind: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Fill or remove a rectangle of an eighth to a quarter of the car's bounding box on its outline."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height = round((rows[-1] - rows[0] + 1) * rng.uniform(0.125, 0.25))
    width = round((columns[-1] - columns[0] + 1) * rng.uniform(0.125, 0.25))
    column = int(rng.integers(columns[0], columns[-1] - width))
    edge = np.flatnonzero(mask[:, column + width // 2])  # where the outline crosses the middle of the rectangle
    middle = int(edge[0] if rng.random() < 0.5 else edge[-1])
    top = max(0, middle - height // 2)
    wrong = mask.copy()
    wrong[top : top + height, column : column + width] = kind == "filled"
    return wrong


if __name__ == "__main__":
    main()
