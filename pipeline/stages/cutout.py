"""Stage `cutout`: photos of cars, of any size, in; for each a PNG of the car on a transparent background out."""
import pathlib

from PIL import Image

from pipeline import carvana
from pipeline.files import replacing
from pipeline.inference.cutout import cut_out, read_photo
from pipeline.inference.device import describe, pick_device
from pipeline.inference.load import load_members
from pipeline.inference.predictor import Ensemble
from pipeline.memory import out_of_memory_told
from pipeline.paths import Run
from pipeline.problem import Problem


def run(run: Run, folds: list[int], overrides: list[str], photos: list[pathlib.Path], out: pathlib.Path) -> None:
    """`photos` to `out/NAME.png`. folds: the networks whose mean it is."""
    if not folds:
        raise Problem(f"{run.folder} has no trained fold; run `make train FOLD=0` first.")
    targets = {photo: out / f"{photo.stem}.png" for photo in photos}
    for photo, target in targets.items():
        if twins := [other for other in photos if other != photo and targets[other] == target]:
            raise Problem(f"{photo} and {twins[0]} would both become {target}; rename one, or cut them out one by one.")
        if photo.resolve() == target.resolve():
            raise Problem(f"{photo} would be overwritten by its own cut-out; choose another OUT=.")
    device = pick_device()
    paths = [run.fold(fold).best for fold in folds]
    members, _ = load_members({path: 1 / len(paths) for path in paths}, overrides, device)
    ensemble = Ensemble(members, carvana.HEIGHT_PX, carvana.WIDTH_PX)
    print(f"{len(photos)} photos, {', '.join(map(str, paths))}, on {describe(device)}.")
    for photo, target in targets.items():
        pixels = read_photo(photo)
        with out_of_memory_told(lambda: f"The memory is too small for {photo}; make the photo smaller."):
            cut = cut_out(ensemble, pixels)
        with replacing(target) as draft:
            Image.fromarray(cut).save(draft, format="PNG")
        print(f"{target}: {cut.shape[1]}x{cut.shape[0]}, the car covers {(cut[..., 3] >= 128).mean():.0%}.")
