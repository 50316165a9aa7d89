"""Every ordered pair of callbacks on one model trains, or is refused in setup by a ValueError that names both."""

from __future__ import annotations

import itertools

import pytest
import torch
from lightning.pytorch import Callback
from settings import ON_A_MIXTURE, ON_ONE_MODEL, SETTINGS, data_of, trainer_of

from pangu_modules.training.composition import conflict, words_of

DENSE = list(itertools.product(ON_ONE_MODEL, repeat=2))
MIXED = [
    *itertools.product(ON_A_MIXTURE, repeat=2),
    *itertools.product(ON_A_MIXTURE, ("average", "distill", "dwm", "weighting", "influence")),
    *itertools.product(("average", "distill", "dwm", "weighting", "influence"), ON_A_MIXTURE),
]


class Began(Callback):
    """Knows whether setup came to its end."""

    yes = False

    def on_fit_start(self, *_):
        self.yes = True


def trains(first, second, module, folder):
    """Train two steps; False if the pair was refused, in which case the refusal is checked."""
    callbacks, began = [SETTINGS[first].build_callback("one"), SETTINGS[second].build_callback("two")], Began()
    trainer = trainer_of(folder, [*callbacks, began], steps=2)
    allowed = conflict(*map(words_of, callbacks)) is None  # what docs/composition.md says
    if allowed:
        trainer.fit(module, datamodule=data_of(SETTINGS[first], SETTINGS[second]))
        assert trainer.global_step == 2
        assert all(bool(value.isfinite().all()) for value in module.state_dict().values() if torch.is_tensor(value))
        return True
    with pytest.raises(ValueError, match=r"'(one|two)' and '(one|two)'") as refused:
        trainer.fit(module, datamodule=data_of(SETTINGS[first], SETTINGS[second]))
    assert "'one'" in str(refused.value)
    assert "'two'" in str(refused.value)
    assert ": " in str(refused.value)
    assert not began.yes
    return False


@pytest.mark.parametrize(("first", "second"), DENSE)
def test_a_pair_on_a_dense_model_trains_or_is_refused(first, second, tmp_path):
    trains(first, second, SETTINGS[first].build_module(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), MIXED)
def test_a_pair_on_a_mixture_trains(first, second, tmp_path):
    module = SETTINGS["balance"].build_module()
    assert trains(first, second, module, tmp_path)


def test_how_many_pairs_are_refused():
    refused = [
        (first, second)
        for first, second in DENSE
        if conflict(*(words_of(SETTINGS[name].build_callback(name)) for name in (first, second))) is not None
    ]
    weighting, pruning = {"dwm", "weighting", "influence"}, {"slimllm", "drop", "light"}
    want = {*itertools.product(weighting, repeat=2), *itertools.product(pruning, repeat=2)}
    want |= {("average", "average"), ("binarize", "binarize"), ("average", "binarize"), ("binarize", "average")}
    want |= {("binarize", "distill"), *itertools.product(pruning, ("distill",))}
    want |= {*itertools.product(("average", "binarize"), pruning)}
    assert set(refused) == want
