"""Which callbacks of one Trainer work together: each says in words what it needs and provides, rules say what clashes.

A callback's words are the class attributes `needs` and `provides` of `RecipeCallback`; Lightning's own callbacks that
matter have theirs in `words_of`. `refuse_conflicts` is called in `RecipeCallback.setup`, before any callback acts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from pangu_modules.common.errors import UsageError

WORDS: dict[str, str] = {
    # needs
    "sample weights": "writes batch['sample_weight'], which one callback alone may do",
    "displaced weights": "moves the weights in place for a moment, so they must be whole on each process",
    "final shapes": "copies the model's tensors in setup, so their shapes must not change afterwards",
    "original model": "keeps the model as it is in setup, so nothing may have been taken from it before",
    "whole rows": "computes with whole rows of matrices, which strategies that flatten parameters cut",
    # provides
    "averaged weights": "evaluates and keeps averages of the weights instead of the weights in training",
    "pruned model": "removes parts of the model in setup",
    "absorbed norms": "folds the model's post-norms away in setup",
    "adapters": "inserts low-rank adapters in setup, beside layers that are frozen",
    "new shapes": "changes the structure of the model in setup",
    "binary layers": "trains latent weights of which the signs count",
}
"""What a callback may need of training or provide to it, and what it means for the others."""


@dataclass(frozen=True)
class Rule:
    """A clash of a callback with word `first` and one with word `second`; by default in whatever order."""

    first: str
    second: str
    why: str
    remedy: str
    ordered: bool = False  # only where `first` is listed before `second`


RULES: tuple[Rule, ...] = (
    Rule("sample weights", "sample weights", "both write batch['sample_weight']", "remove one of them"),
    Rule(
        "averaged weights",
        "averaged weights",
        "both average, and a run can average its weights once",
        "remove one of them",
    ),
    Rule(
        "binary layers",
        "averaged weights",
        "averages of latent weights do not have the averaged signs, and ruin binary models",
        "remove callback {second}",
    ),
    Rule("binary layers", "binary layers", "a model is binarized once", "remove callback {second}"),
    Rule(
        "pruned model",
        "pruned model",
        "a model that was already pruned is not pruned again in the same stage",
        "remove one of the two, or prune in a stage of its own and start the next stage from its checkpoint",
    ),
    Rule("absorbed norms", "absorbed norms", "both absorb post-norms, which is done once", "remove one of them"),
    Rule(
        "binary layers",
        "new shapes",
        "the second would change binary layers",
        "list callback {second} before {first}",
        ordered=True,
    ),
    Rule(
        "adapters",
        "binary layers",
        "layers with LoRA adapters cannot be binarized",
        "remove lora from {first}, or merge it in a stage of its own with merge_lora()",
    ),
    Rule(
        "final shapes",
        "new shapes",
        "the model's structure would change after it was copied for averaging",
        "list callback {first} after {second}",
        ordered=True,
    ),
    Rule(
        "pruned model",
        "original model",
        "the second's teacher='self' is the model before pruning, and it is pruned by then",
        "list callback {second} before {first}: put this callback before the one that prunes",
        ordered=True,
    ),
    Rule(
        "binary layers",
        "original model",
        "the second's teacher='self' is the model in full precision, and its layers are binary by then",
        "list callback {second} before {first}",
        ordered=True,
    ),
)

SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
FLATTENED = (DeepSpeedStrategy, FSDPStrategy)
STRATEGIES: dict[str, tuple[tuple[type, ...], str]] = {
    "displaced weights": (
        SHARDED,
        "weights sharded by {strategy} cannot be moved and put back as a whole; train with strategy 'ddp', or use the "
        "weighting models of an earlier run (frozen)",
    ),
    "averaged weights": (
        SHARDED,
        "weights sharded by {strategy} cannot be averaged; remove the callback, or train with strategy 'ddp'",
    ),
    "whole rows": (
        FLATTENED,
        "{strategy} flattens parameters, but scales are means of whole rows; use strategy 'ddp' or 'model_parallel' "
        "(FSDP2, which shards rows)",
    ),
}
"""Strategies that a word does not go with, and why."""


def words_of(callback: Callback) -> frozenset[str]:
    """Return what a callback needs and provides; nothing for those of Lightning that do not matter here."""
    words = frozenset(getattr(callback, "needs", ())) | frozenset(getattr(callback, "provides", ()))
    if isinstance(callback, (WeightAveraging, StochasticWeightAveraging)):
        words |= {"averaged weights"}
    return words


def name_of(callback: Any) -> str:
    """Return a callback's name in the recipe, or its class."""
    return str(getattr(callback, "name", type(callback).__name__))


def conflict(first: frozenset[str], second: frozenset[str]) -> tuple[Rule, bool] | None:
    """Return the first rule that forbids a callback with the words `first` listed before one with `second`.

    The rule's own first is the second callback where the flag is True.
    """
    for rule in RULES:
        if rule.first in first and rule.second in second:
            return rule, False
        if not rule.ordered and rule.first in second and rule.second in first:
            return rule, True
    return None


def refuse_conflicts(callback: Callback, callbacks: Sequence[Callback], strategy: Any) -> None:
    """Refuse what does not go with a callback: another one in the same Trainer, or the strategy.

    Raises:
        UsageError: there is a clash; both callbacks, the reason and the remedy are named.
    """
    for first, second in _pairs_with(callback, callbacks):
        found = conflict(words_of(first), words_of(second))
        if found is not None:
            rule, swapped = found
            names = (name_of(second), name_of(first)) if swapped else (name_of(first), name_of(second))
            remedy = rule.remedy.format(first=repr(names[0]), second=repr(names[1]))
            raise UsageError(f"callbacks {names[0]!r} and {names[1]!r} {_sentence(rule)}: {remedy}")
    for word in sorted(words_of(callback)):
        strategies, message = STRATEGIES.get(word, ((), ""))
        if isinstance(strategy, strategies):
            raise UsageError(f"callback {name_of(callback)!r}: {message.format(strategy=type(strategy).__name__)}")


def _pairs_with(callback: Callback, callbacks: Sequence[Callback]) -> Iterator[tuple[Callback, Callback]]:
    """Yield the pairs that the callback is part of, in the order in which they are listed."""
    position = next((number for number, other in enumerate(callbacks) if other is callback), len(callbacks))
    for number, other in enumerate(callbacks):
        if other is not callback:
            yield (other, callback) if number < position else (callback, other)


def _sentence(rule: Rule) -> str:
    """Return the reason as it goes on after both names."""
    return rule.why if rule.why.startswith("both ") else f"do not go together: {rule.why}"
