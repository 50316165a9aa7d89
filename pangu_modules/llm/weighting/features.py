"""Last hidden states for the encoder 'lm': of the trained model, from a pass that happens anyway, or of a kept one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.llm.files import MODEL_FILE, atomic_model_folder
from pangu_modules.llm.loading import load_causal_lm


class HiddenStates:
    """Hands out the last hidden states of a module's next forward pass.

    Args:
        module: LightningModule with a transformers model in ``module.model``.

    Raises:
        ValueError: there is no such model.
    """

    def __init__(self, module: Any) -> None:
        model: Any = getattr(module, "model", None)
        if not (hasattr(model, "get_decoder") and hasattr(getattr(model, "config", None), "hidden_size")):
            raise ValueError(
                f"encoder='lm' reads the hidden states of a transformers model in module.model, which "
                f"{type(module).__name__} does not have: take encoder='tiny' or 'features'"
            )
        self.size = int(model.config.hidden_size)
        self._backbone: nn.Module = model.get_decoder()
        self._handle: Any = None

    def expect(self, then: Callable[[Tensor], None]) -> None:
        """Call `then` with the next forward pass's hidden states (batch, seq, hidden), detached; once."""
        self.forget()

        def take(module: nn.Module, arguments: Any, output: Any) -> None:
            self.forget()
            then(output.last_hidden_state.detach())

        # The hook lives for one pass only, so that copies of the module never hold one.
        self._handle = self._backbone.register_forward_hook(take)

    def forget(self) -> bool:
        """Expect nothing any more; returns whether something was still expected."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()
        return handle is not None


class KeptModel(nn.Module):
    """A language model as it was at a stage's updates, by whose hidden states another model's data are weighed.

    Features of one model mean nothing to the weighting model of another, so the model goes with it. It costs its own
    forward pass, without the output layer.

    Args:
        folder: transformers folder, see `keep_model`.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        model: Any = load_causal_lm(str(folder))
        self.size = int(model.config.hidden_size)
        self.backbone: nn.Module = model.get_decoder().eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the last hidden states of a batch, (batch, seq, hidden)."""
        output: Any = self.backbone(
            input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


def keep_model(module: Any, folder: Path) -> None:
    """Write ``module.model``, a transformers model, to a folder for `KeptModel`, atomically."""
    with atomic_model_folder(folder, replace=True) as temporary:
        module.model.save_pretrained(temporary)


def is_kept(folder: Path) -> bool:
    """Return whether `keep_model` wrote to this folder."""
    return (folder / MODEL_FILE).is_file()
