"""Fingerprint of a model's parameters: by it a resumed run knows whether it has the same teacher."""

from __future__ import annotations

import hashlib

from torch import nn


def fingerprint(model: nn.Module, samples: int = 64) -> str:
    """Return a hash of every parameter's name, shape and `samples` of its values, spread over the tensor."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        values = parameter.detach().flatten()
        # A stride, because a teacher has billions of values: neighbours say little about whether it is another one,
        # while a change of any row or column is seen. At the division's remainder there may be more than `samples`.
        digest.update(values[:: max(1, len(values) // samples)][:samples].cpu().double().numpy().tobytes())
    return digest.hexdigest()
