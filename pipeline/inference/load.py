"""Checkpoints to networks that are ready to predict."""
import pathlib

import torch

from pipeline import config
from pipeline.config import Settings
from pipeline.model import checkpoint
from pipeline.model.build import Segmenter, build
from pipeline.problem import Problem


def load_network(path: pathlib.Path, device: torch.device) -> tuple[Segmenter, Settings]:
    """The network of a `best.pt`, and the settings that trained it."""
    state = checkpoint.load(path, keys=("settings", "network"))
    settings = config.parse(state["settings"], where=str(path))
    # Encoder weights were where training began; the checkpoint has what became of them.
    network = build(**settings.model.model_copy(update={"encoder_weights": None}).model_dump())
    try:
        network.load_state_dict(state["network"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"The checkpoint {path} does not fit its own settings ({reason}); train it again.") from None
    return network.to(device).eval(), settings
