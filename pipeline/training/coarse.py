"""What a trained network predicts for the images that its refiner is trained on, computed once and stored."""
import itertools
import pathlib
import zipfile
from collections.abc import Iterator

from pipeline.config import Settings
from pipeline.data.dataset import TrainableImages
from pipeline.data.loader import ValidationDataset, validation_loader
from pipeline.data.zip_reader import DAMAGE
from pipeline.inference.ensemble import Member
from pipeline.inference.oof import oof_writer, png, png_name
from pipeline.inference.probability import to_u8_on_device
from pipeline.runtime.device import describe
from pipeline.runtime.memory import explain_out_of_memory, too_large_message
from pipeline.runtime.progress import in_order, progress


def coarse_predictions(
    path: pathlib.Path, member: Member, settings: Settings, dataset: TrainableImages, names: list[str], made_by: str
) -> dict[str, bytes]:
    """Return name -> PNG of the probability on the network's grid, 0 to 255, of each training image.

    They are read from the zip at `path`, or else predicted and stored there. made_by: fingerprint of the network
    and the images, which is the zip's comment.
    """
    if (stored := read_stored(path, made_by, names)) is not None:
        return stored
    batch_size, scale = settings.predict.batch_size, settings.data.scale
    images = ValidationDataset(dataset, names, (scale,))
    loader = validation_loader(images, batch_size, settings.data.workers, member.device.type == "cuda")
    remaining: Iterator[str] = iter(names)
    png_of: dict[str, bytes] = {}
    print(f"Predicting {len(names)} training images on {describe(member.device)}, once; they are stored in {path}.")
    with explain_out_of_memory(lambda: too_large_message(batch_size, scale)):
        for image_of_scale in progress(loader, "training images"):
            prob_NHW = to_u8_on_device(member.predict(image_of_scale)[:, 0]).cpu().numpy()
            batch_names = list(itertools.islice(remaining, len(prob_NHW)))
            png_of |= dict(zip(batch_names, in_order(png, prob_NHW[: len(batch_names)])))
    with oof_writer(path, comment=made_by) as store:
        for name, encoded in png_of.items():
            store(name, encoded)
    return png_of


def read_stored(path: pathlib.Path, made_by: str, names: list[str]) -> dict[str, bytes] | None:
    """Return the PNGs of these images; None if they are missing, damaged or made by another network."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.comment == made_by.encode():
                return {name: archive.read(png_name(name)) for name in names}
    except (KeyError, *DAMAGE):
        pass
    return None
