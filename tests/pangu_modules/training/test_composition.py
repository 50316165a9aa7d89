"""Words and rules: what is refused names both callbacks, Lightning's own count, and strategies are looked at."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from settings import SETTINGS

from callbacks import Distillation, StructuredPruning
from pangu_modules.training.callback import RecipeCallback
from pangu_modules.training.composition import RULES, STRATEGIES, WORDS, refuse_conflicts, words_of


class Own(RecipeCallback):
    """A callback of another project."""

    needs = frozenset({"sample weights"})


def built(name, as_name=None):
    return SETTINGS[name].build_callback(as_name or name)


def refuse(callback, *callbacks, strategy=None):
    refuse_conflicts(callback, callbacks, strategy)


def test_every_word_that_is_used_is_explained():
    used = {word for rule in RULES for word in (rule.first, rule.second)} | set(STRATEGIES)
    callbacks = [setting.build_callback("x") for setting in SETTINGS.values() if setting.callback]
    used |= {word for callback in callbacks for word in words_of(callback)}
    assert used == set(WORDS)


@pytest.mark.parametrize("averaging", [EMAWeightAveraging(), StochasticWeightAveraging(swa_lrs=0.1)])
def test_averages_of_lightning_count(averaging):
    binarize = built("binarize")
    for order in ((averaging, binarize), (binarize, averaging)):
        with pytest.raises(ValueError, match=rf"'binarize' and '{type(averaging).__name__}' .*: remove callback"):
            refuse(binarize, *order)
    with pytest.raises(ValueError, match="can average its weights once"):
        refuse(built("average"), averaging)
    prune = built("slimllm")
    refuse(prune, prune, averaging)


def test_an_order_that_works_is_named():
    binarize, prune = built("binarize"), built("slimllm", "prune")
    refuse(binarize, prune, binarize)
    with pytest.raises(ValueError, match=r"'binarize' and 'prune' .*: list callback 'prune' before 'binarize'"):
        refuse(binarize, binarize, prune)
    average = built("average")
    refuse(average, prune, average)
    with pytest.raises(ValueError, match=r"'average' and 'prune' .*: list callback 'average' after 'prune'"):
        refuse(average, average, prune)


def test_what_a_configuration_adds_and_takes_away():
    plain, prune = Distillation.Config(teacher="smollm2").build(name="distill"), built("slimllm", "prune")
    refuse(plain, prune, plain)
    own = built("distill")
    with pytest.raises(ValueError, match=r"'prune' and 'distill' .*put this callback before the one that prunes"):
        refuse(own, prune, own)
    adapted = StructuredPruning.Config(lora={"rank": 2}).build(name="prune")
    with pytest.raises(ValueError, match=r"'prune' and 'binarize' .*adapters cannot be binarized: remove lora"):
        refuse(adapted, adapted, built("binarize"))


def test_callbacks_of_others_take_part_and_those_without_words_do_not():
    own = Own(Own.Config(), name="mine")
    with pytest.raises(ValueError, match="'dwm' and 'mine' both write"):
        refuse(own, built("dwm"), own)
    refuse(own, Callback(), own, Callback())


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("average", {FSDPStrategy, ModelParallelStrategy}),
        ("dwm", {FSDPStrategy, ModelParallelStrategy}),
        ("binarize", {FSDPStrategy}),
        ("slimllm", set()),
    ],
)
def test_strategies(name, refused):
    for kind in (DDPStrategy, FSDPStrategy, ModelParallelStrategy):
        strategy = object.__new__(kind)
        if kind in refused:
            with pytest.raises(ValueError, match=f"'{name}': .*{kind.__name__}"):
                refuse(built(name), strategy=strategy)
        else:
            refuse(built(name), strategy=strategy)
