"""Load weights that others have trained into an encoder: only tensors are ever unpickled, and every one must match."""
import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.runtime.problem import Problem

# Under which keys trainers put a state_dict; an average of the weights comes first, since it is the better one.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "network")


def load_encoder(encoder: nn.Module, path: pathlib.Path) -> None:
    """Load a file into an encoder of segmentation-models-pytorch; raise Problem unless it has all of its weights.

    path: a state_dict by `torch.save`, also one inside a checkpoint, or safetensors: of the encoder itself, of a whole
    network of smp or of this project, or timm's file for a `tu-` encoder. Prefixes such as `module.` do not matter, and
    what a classifier has besides its encoder is left out.
    """
    weights = read_weights(path)
    with contextlib.suppress(Exception):  # smp knows by itself how some old files name their weights
        encoder.load_state_dict(dict(weights))
        return
    names = {flat_name(name): name for name in encoder.state_dict()}
    if all(name.startswith("model_") for name in names):  # a `tu-` encoder wraps timm's network, whose file does not
        names = {name.removeprefix("model_"): full for name, full in names.items()}
    given = {flat_name(name): tensor for name, tensor in weights.items()}
    prefix = find_prefix(list(names), given)
    chosen = {full: given[prefix + name] for name, full in names.items() if prefix + name in given}
    expected = encoder.state_dict()
    counters = [name for name in expected if name.endswith("num_batches_tracked")]  # old files lack them
    missing = [name for name in expected if name not in chosen and name not in counters]
    shapes = [name for name in chosen if chosen[name].shape != expected[name].shape]
    inner = tuple({prefix + flat_name(full.removeprefix("model.").split(".")[0]) + "_" for full in names.values()})
    unknown = [name for name in given if name.startswith(inner) and name.removeprefix(prefix) not in names]
    for reason, wrong in (("no", missing), ("another shape of", shapes), ("also", unknown)):
        if wrong:
            what = f"{path} does not hold the weights of this encoder"
            raise Problem(f"{what} (it has {reason} {wrong[0][:60]}, the first of {len(wrong)} such).")
    try:
        nn.Module.load_state_dict(encoder, chosen, strict=False)
    except Exception as error:  # of a sparse or quantised tensor
        reason = " ".join(str(error).split())[:200]
        raise Problem(f"{path} does not hold the weights of this encoder ({reason}).") from None


def read_weights(path: pathlib.Path) -> dict[str, Tensor]:
    """Return the state_dict in a file, taken out of the checkpoint that may hold it."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # comes with segmentation-models-pytorch

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Problem(f"model.encoder_weights names {path}, but there is no such file.") from None
    except Exception as error:  # the bytes of a damaged file may raise anything
        reason = " ".join(str(error).split())[:200]
        advice = "save its state_dict alone, with torch.save"
        raise Problem(f"{path} does not hold the weights of this encoder ({reason}); {advice}.") from None
    inside = [content, *(content[key] for key in WRAPPERS if isinstance(content, Mapping) and key in content)]
    for weights in inside:
        if isinstance(weights, Mapping) and (tensors := {k: v for k, v in weights.items() if isinstance(v, Tensor)}):
            return {str(name): tensor for name, tensor in tensors.items()}
    raise Problem(f"{path} does not hold the weights of this encoder (it has no tensors by name).")


def flat_name(name: str) -> str:
    """Return the name of a weight by which file and encoder agree: timm renames `stages.0` of an encoder `stages_0`."""
    return name.replace(".", "_")


def find_prefix(names: list[str], given: Mapping[str, Tensor]) -> str:
    """Return what stands in a file before the names of an encoder's weights, such as `module_`; "" if nothing fits."""
    ends = [name.removesuffix(names[0]) for name in given if name.endswith(names[0])]
    prefixes = [prefix for prefix in dict.fromkeys(ends) if not prefix or prefix.endswith("_")]
    return max(prefixes, key=lambda prefix: sum(prefix + name in given for name in names), default="")
