"""Names of weights lose what wrappers put into them, and nothing else."""

import pytest

from pangu_modules.common.weight_names import unwrapped, without_wrappers

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "name",
    [
        f"_orig_mod.{NAME}",
        f"module._orig_mod.{NAME}",
        f"_orig_mod.module.{NAME}",
        f"base_model.model.{NAME}",
        f"_forward_module.module.{NAME}",
        "model.layers.0._orig_mod.mlp.up_proj.weight",
        "_fsdp_wrapped_module.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight",
        NAME,
    ],
)
def test_wrappers_come_off_in_any_order(name):
    assert unwrapped({name: 1}) == {NAME: 1}
    assert without_wrappers({name: 1}, {NAME}) == {NAME: 1}


def test_names_that_are_the_models_own_stay():
    own = {"module.weight", "model.module.weight"}
    assert without_wrappers(dict.fromkeys(own, 1), own) == dict.fromkeys(own, 1)
    assert without_wrappers({"module.other": 1}, own) == {"module.other": 1}  # refused later, under its own name
