"""What a user may choose of an export: the type of the weights, and the layout of a pruned model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pangu_modules.llm.export.exported import ExportedModule

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = ("uniform", "padded", "per_layer")


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Args:
        dtype: of the weights, one of `DTYPES`; None: the type that the model was loaded from.
        layout: of a pruned model's folder, one of `LAYOUTS`; None: the one its plan names.

    Raises:
        ValueError: there is no such type or layout.
    """

    dtype: str | None = None
    layout: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("dtype", self.dtype, DTYPES), ("layout", self.layout, LAYOUTS)):
            if value is not None and value not in known:
                raise ValueError(f"export: {name}={value!r} is unknown; choose {', '.join(known)}")

    def dtype_of(self, module: ExportedModule) -> torch.dtype:
        """Return the type to write the weights in."""
        return DTYPES[self.dtype or module.loaded_dtype]

    def refuse(self, kind: str, *names: str) -> None:
        """Refuse options that a format has no use for.

        Raises:
            ValueError: one of them is given.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None:
                raise ValueError(f"export: format {kind!r} takes no {name}, leave {name}={value!r} out")
