"""The trained model's last hidden states, taken from a forward pass that happens anyway (encoder 'lm')."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


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
