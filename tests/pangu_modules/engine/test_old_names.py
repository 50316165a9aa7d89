"""A ``--config`` file from before fields were renamed gives the configuration it gave."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_llm import TINY_LLAMA
from tiny_text import TokenBatches

from callbacks import Distillation, ProgressiveBinarization
from pangu_modules import CausalLM, Recipe, Stage
from pangu_modules.engine.cli import parse
from pangu_modules.engine.request import Program

STAGE = Stage(
    module=CausalLM.Config(architecture="llama", model_args=TINY_LLAMA),
    data=TokenBatches.Config(),
    callbacks={"distill": Distillation.Config(), "binarize": ProgressiveBinarization.Config()},
)
PROGRAM = Program(name="toy", call="python toy.py", title="A toy.")
OLD = {
    "module": {"optimizer": {"warmup_fraction": 0.25}},
    "callbacks": {
        "distill": {"lambda_kd": 0.5, "lambda_ce": 0.25, "teacher": "smollm2"},
        "binarize": {"onebit": {"method": "ste", "init": "none", "tail_fraction": 0.02}, "measure": False},
    },
}


@pytest.mark.parametrize("staged", [False, True])
def test_a_config_file_with_old_names_is_read(tmp_path: Path, staged: bool) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"only": OLD} if staged else OLD))
    recipe = Recipe(stages={"only": STAGE}) if staged else Recipe(**dict(STAGE))
    with pytest.warns(UserWarning, match="is now") as said:
        request = parse(
            recipe, ["fit", "--config", str(file)], Program(name="toy", call="python toy.py", title="A toy.")
        )
    assert request is not None
    (stage,) = request.recipe.stages.values()
    assert stage.callbacks["distill"].plain()["method"]["lambda_kd"] == 0.5
    assert stage.callbacks["distill"].plain()["method"]["lambda_ce"] == 0.25
    assert stage.callbacks["binarize"].plain()["method"]["method"] == "ste"
    assert stage.callbacks["binarize"].plain()["measure"] is False
    assert stage.callbacks["binarize"].plain()["method"]["tail_share"] == 0.02
    assert stage.module.plain()["optimizer"]["warmup_share"] == 0.25
    assert len(said) == 5
