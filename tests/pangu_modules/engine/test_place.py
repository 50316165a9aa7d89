"""Which run is gone on with: one whose configuration is the same but for fields that are newer than it."""

from __future__ import annotations

import yaml
from toys import ToyData, ToyModule

from pangu_modules.engine.place import with_new_fields
from pangu_modules.engine.stages import Stage

STAGE = Stage(module=ToyModule.Config(width=8), data=ToyData.Config(batch_size=8), trainer={"max_epochs": 1})


def stored_without(*dotted: str) -> dict:
    content = yaml.safe_load(yaml.safe_dump(STAGE.plain()))
    for path in dotted:
        *parents, name = path.split(".")
        part = content
        for parent in parents:
            part = part[parent]
        del part[name]
    return content


def test_a_field_that_did_not_exist_has_its_default() -> None:
    stored = stored_without("data_from", "module.dropout", "module.optimizer.schedule", "data.seed")
    assert with_new_fields(stored, STAGE) == STAGE.plain()


def test_another_value_and_a_new_field_that_was_given_are_other_configurations() -> None:
    other = stored_without()
    other["module"]["width"] = 9
    assert with_new_fields(other, STAGE) != STAGE.plain()
    given = STAGE.derive(data_from="made")
    assert with_new_fields(stored_without("data_from"), given) != given.plain()
    assert with_new_fields(stored_without("trainer.max_epochs"), STAGE) != STAGE.plain()  # no field of ours
    assert with_new_fields("text", STAGE) == "text"
