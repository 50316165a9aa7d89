"""The residual stream of the calibration tokens, carried layer by layer through a decoder.

The inputs of the first layer are caught once; from there every layer is run on its own, so a model is walked at the
price of one forward pass however often its layers change. Two blocks of memory hold hidden states, whatever the depth:
the stream, which is changed in place, and what one sub-layer after the other keeps. Both are large enough for the
allocator to return them at once; of tensors freed batch by batch it returns little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.llm.calibration.statistics import wide
from pangu_modules.llm.models.decoder import backbone, decoder_layers
from pangu_modules.training.objectives import Batch


class Stream:
    """Hidden states of all calibration batches at one point of the decoder.

    Attributes:
        hidden: per batch (batch, seq, hidden), in the model's precision.
        valid: per batch (batch * seq,) bool, True on real tokens; None where there is no padding.
        arguments: per batch, what the decoder passes to a layer besides hidden states (masks, rotary embeddings), by
            kind of attention.
        kinds: kind of attention of every layer.
    """

    def __init__(
        self,
        hidden: list[Tensor],
        valid: list[Tensor | None],
        arguments: list[dict[str, dict[str, Any]]],
        kinds: list[str],
    ) -> None:
        self.hidden = hidden
        self.valid = valid
        self.arguments = arguments
        self.kinds = kinds
        self._memory = torch.empty(0)

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def num_tokens(self) -> int:
        """Number of real tokens."""
        return sum(
            hidden.shape[:-1].numel() if valid is None else int(valid.sum())
            for hidden, valid in zip(self.hidden, self.valid, strict=True)
        )

    def tokens(self, index: int, values: Tensor) -> Tensor:
        """Flatten values (batch, seq, size) of batch `index` to its real tokens, (tokens, size)."""
        flat = values.flatten(0, 1)
        valid = self.valid[index]
        return flat if valid is None else flat[valid]

    def keep(self, index: int, values: Tensor) -> Tensor:
        """Copy values (batch, seq, size) of batch `index` to where they stay until the next sub-layer keeps its own.

        Every sub-layer keeps one tensor of each batch, all of one size.
        """
        counts = [hidden.shape[:-1].numel() for hidden in self.hidden]
        size = values.shape[-1]
        if self._memory.numel() < sum(counts) * size:
            self._memory = values.new_empty(sum(counts) * size)
        start = sum(counts[:index]) * size
        return self._memory[start : start + values.numel()].view(values.shape).copy_(values)

    def run_attention(self, layer: Any, layer_index: int, index: int) -> Tensor:
        """Return the attention sub-layer's output for batch `index`, (batch, seq, hidden), residual not added."""
        normed = layer.input_layernorm(self.hidden[index])
        output: Tensor = layer.self_attn(hidden_states=normed, **self.arguments[index][self.kinds[layer_index]])[0]
        return output

    def pass_attention(self, layer: Any, layer_index: int) -> None:
        """Move the stream past the layer's attention (residual added)."""
        for index in range(len(self)):
            self.hidden[index] += self.run_attention(layer, layer_index, index)

    def pass_ffn(self, layer: Any) -> None:
        """Move the stream past the layer's FFN (residual added)."""
        for index, hidden in enumerate(self.hidden):
            self.hidden[index] += layer.mlp(layer.post_attention_layernorm(hidden))

    def run_layer(self, layer: nn.Module, layer_index: int, index: int, hidden: Tensor) -> Tensor:
        """Return the whole layer's output on `hidden`, which belongs to batch `index`."""
        output: Tensor = layer(hidden, **self.arguments[index][self.kinds[layer_index]])
        return output

    def run_layers(self, layers: nn.ModuleList, start: int, stop: int, index: int, hidden: Tensor) -> Tensor:
        """Return the output of layers `start` to `stop` (excluded) on `hidden`, which belongs to batch `index`."""
        for number in range(start, stop):
            hidden = self.run_layer(layers[number], number, index, hidden)
        return hidden


def caught_input(module: nn.Module, function: Callable[..., Any], *args: Any) -> Tensor:
    """Run ``function(*args)`` until it reaches `module` and return that module's input; the rest is not computed."""
    caught: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        caught.append(args[0])
        raise _Caught

    handle = module.register_forward_pre_hook(hook)
    try:
        function(*args)
    except _Caught:
        pass
    finally:
        handle.remove()
    return caught[0]


class _Caught(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass once what was wanted of it is known."""


@torch.no_grad()
def catch_stream(model: nn.Module, batches: Iterable[Batch]) -> Stream:
    """Run embedding and masks of the model and catch what reaches the first layer.

    Args:
        model: a supported model in evaluation mode.
        batches: with ``input_ids`` (batch, seq) and, where padded, ``attention_mask`` (batch, seq).

    Raises:
        ValueError: there is no batch, a batch has no real token, or padding is present without a mask.
    """
    decoder = backbone(model)
    layers = decoder_layers(model)
    kinds = list(getattr(decoder.config, "layer_types", None) or ["full_attention"] * len(layers))
    device = next(model.parameters()).device
    batches = list(batches)
    if not batches:
        raise ValueError(
            "there is no calibration batch: is the calibration text shorter than one window? Give more text or a "
            "shorter calibration sequence_length"
        )
    sizes = [batch["input_ids"].numel() for batch in batches]
    parts: tuple[Tensor, ...] = ()
    stream = Stream([], [], [], kinds)
    for number, batch in enumerate(batches):
        ids, mask = batch["input_ids"].to(device), batch.get("attention_mask")
        stream.valid.append(_valid_tokens(ids, mask, decoder.config, number))
        hidden, arguments = _catch(decoder, ids, None if mask is None else mask.to(device), kinds)
        parts = parts or hidden.new_empty(sum(sizes), hidden.shape[-1]).split(sizes)
        stream.hidden.append(parts[number].view(hidden.shape).copy_(hidden))
        stream.arguments.append(_shared(arguments, stream.arguments[-1]) if stream.arguments else arguments)
    return stream


def layer_similarities(
    model: nn.Module, stream: Stream, next_needed: Callable[[list[float]], int] | None = None
) -> list[float]:
    """Return c_l = mean over tokens of cos(layer input, layer output) of every layer, in one pass (section 3, ratio).

    ``1 - c_l`` is ShortGPT's block influence (arXiv:2403.03853).

    Args:
        model: the dense model.
        stream: in front of the first layer.
        next_needed: tells from the similarities in front of which layer the stream shall stand afterwards; None leaves
            it where it is.

    Raises:
        ValueError: a hidden state is not finite (the layer is named).
    """
    layers = decoder_layers(model)
    sums = [0.0] * len(layers)
    # The layer that the first batch's similarities name is nearly always the one that all batches' name: what reaches
    # it is kept, and need not be computed again.
    named = 0
    reached = list(stream.hidden)
    for index in range(len(stream)):
        hidden = stream.hidden[index]
        for number, layer in enumerate(layers):
            if index > 0 and number == named > 0:
                reached[index] = stream.keep(index, hidden)
            after = stream.run_layer(layer, number, index, hidden)
            cosines = nn.functional.cosine_similarity(
                wide(stream.tokens(index, hidden)), wide(stream.tokens(index, after)), dim=-1
            )
            sums[number] += float(cosines.sum(dtype=torch.float64))
            hidden = after
        if index == 0 and next_needed is not None:
            named = min(next_needed([total / len(cosines) for total in sums]), len(layers) - 1)
            reached[0] = stream.keep(0, stream.run_layers(layers, 0, named, 0, stream.hidden[0]))
    for number, total in enumerate(sums):
        if not torch.isfinite(torch.tensor(total)):
            raise not_finite(number, "output")
    similarities = [total / stream.num_tokens for total in sums]
    needed = 0 if next_needed is None else next_needed(similarities)
    start = named if named <= needed else 0
    for index, hidden in enumerate(reached if named <= needed else stream.hidden):
        stream.hidden[index].copy_(stream.run_layers(layers, start, needed, index, hidden))
    return similarities


def not_finite(layer_index: int, what: str) -> ValueError:
    """Return the error for an activation that is NaN or infinite."""
    return ValueError(
        f"layer {layer_index}: the {what} has NaN or infinite values on the calibration text; check the weights, or "
        "calibrate in float32 or bfloat16 instead of float16"
    )


def _valid_tokens(ids: Tensor, mask: Tensor | None, config: Any, number: int) -> Tensor | None:
    if mask is None:
        padding = getattr(config, "pad_token_id", None)
        special = {getattr(config, name, None) for name in ("bos_token_id", "eos_token_id")}
        if padding is not None and padding not in special and bool((ids[:, [0, -1]] == padding).any()):
            raise ValueError(
                f"calibration batch {number} has padding (token {padding}) but no attention_mask: padding must not "
                "enter the statistics; add the mask to the batch"
            )
        return None
    if not bool(mask.any()):
        raise ValueError(f"calibration batch {number} has no real token: its attention_mask is all zero")
    return None if bool(mask.all()) else (mask != 0).flatten().to(ids.device)


def _shared(arguments: dict[str, dict[str, Any]], earlier: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Take what is equal from the batch before: the rotary embeddings of equal lengths are held once."""
    shared = {}
    for kind, named in arguments.items():
        old = earlier[kind]
        shared[kind] = {name: old[name] if _equal(value, old.get(name)) else value for name, value in named.items()}
    return shared


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
        return all(_equal(a, b) for a, b in zip(value, other, strict=True))
    return isinstance(value, Tensor) and isinstance(other, Tensor) and torch.equal(value, other)


def _catch(
    decoder: Any, ids: Tensor, mask: Tensor | None, kinds: list[str]
) -> tuple[Tensor, dict[str, dict[str, Any]]]:
    first_of_kind = {kinds.index(kind): kind for kind in dict.fromkeys(kinds)}
    caught: dict[str, dict[str, Any]] = {}
    hidden: list[Tensor] = []

    def hook_for(kind: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append(args[0])
            caught[kind] = kwargs
            if len(caught) == len(first_of_kind):
                raise _Caught

        return hook

    handles = [
        decoder.layers[index].register_forward_pre_hook(hook_for(kind), with_kwargs=True)
        for index, kind in first_of_kind.items()
    ]
    try:
        decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Caught:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return hidden[0], caught
