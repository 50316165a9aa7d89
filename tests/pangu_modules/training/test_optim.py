"""Which parameters decay: by their dimensions, and by what the model itself says."""

from __future__ import annotations

import math

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from pangu_modules import ImageClassifier, OptimizerConfig
from pangu_modules.training.optim import build_optimizer, exempt_parameters
from recipes.scalenet_digits import recipe as digits

SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}


def decayed(module: nn.Module, config: OptimizerConfig) -> set[str]:
    optimizer, _ = build_optimizer(module, config, 10)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    return {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}


def matrices(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.ndim >= 2}


def test_position_embedding_and_class_token_of_a_vit_do_not_decay() -> None:
    module = ImageClassifier.Config(backbone="vit_tiny_patch16_224", model_args=SMALL).build(num_classes=3)
    exempt = {"model.pos_embed", "model.cls_token"}
    assert decayed(module, OptimizerConfig()) == matrices(module) - exempt
    assert decayed(module, OptimizerConfig(respect_no_weight_decay=False)) == matrices(module)
    # the same split as timm's own
    exempt_in_timm = module.model.no_weight_decay()
    groups = param_groups_weight_decay(module.model, 0.05, no_weight_decay_list=exempt_in_timm)
    theirs = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    names = {f"model.{name}" for name, parameter in module.model.named_parameters() if id(parameter) in theirs}
    assert names == decayed(module, OptimizerConfig())


def test_the_digits_recipe_decays_all_matrices() -> None:
    """Its published results were measured so."""
    module = digits.stages["base"].module.build(num_classes=10)
    assert "model.pos_embed" in decayed(module, module.config.optimizer) == matrices(module)


def test_names_are_patterns_below_the_part_that_gives_them() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ParameterDict({name: nn.Parameter(torch.zeros(2, 2)) for name in ("a", "b")})
            self.weight = nn.Parameter(torch.zeros(2, 2))

        def no_weight_decay(self) -> set[str]:
            return {"tables.*"}

    whole = nn.Sequential(nn.Linear(2, 2, bias=False), Part())
    assert exempt_parameters(whole) == ["1.tables.*"]
    assert decayed(whole, OptimizerConfig()) == {"0.weight", "1.weight"}


@pytest.mark.parametrize("steps", [0, -1, math.inf])
def test_an_unknown_number_of_steps_is_refused(steps: float) -> None:
    with pytest.raises(ValueError, match=r"set trainer.max_steps or trainer.max_epochs"):
        build_optimizer(nn.Linear(2, 2), OptimizerConfig(), steps)
