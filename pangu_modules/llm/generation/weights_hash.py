"""A name for a model's weights: what samples and stores say they were made by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

ELEMENTS = 1024  # of each tensor: any training moves all; a whole model would take seconds a billion parameters


def weights_hash(model: nn.Module) -> str:
    """Return a hash of names, types and shapes of a model's tensors, and of elements spread evenly over each.

    Training, merging, pruning and quantising change it; a change to single elements may not. It is the same on every
    device, and takes milliseconds, so that it can be taken anew whenever the model may have been trained.
    """
    digest = hashlib.blake2b(digest_size=16)
    chosen: dict[torch.dtype, list[Tensor]] = {}
    for name, tensor in sorted(_tensors(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        if len(flat):
            chosen.setdefault(tensor.dtype, []).append(flat[:: max(1, len(flat) // ELEMENTS)])
    for dtype in sorted(chosen, key=str):  # one transfer from the device for each type
        together = torch.cat([part.to(chosen[dtype][0].device) for part in chosen[dtype]]).cpu()
        digest.update(together.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
