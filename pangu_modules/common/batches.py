"""The words of a batch, for whoever makes, reads or trains on one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Batch = Mapping[str, Any]
"""Tensors by name, whose first dimension is the batch: ``input_ids``, ``labels``, ``image``, ``sample_weight``, ..."""

IGNORE_INDEX = -100
"""The label of a token that is no target; torch's and transformers' own."""
