"""Every configuration's old names: they lead to fields there are, and a subclass reads those of its parents too."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import callbacks
import datamodules
import pangu_modules
from callbacks import BatchWeighting, DWMReweighting, StructuredPruning
from datamodules import TextData
from pangu_modules.common.config import Config
from pangu_modules.llm.moge.block import MoGEBlock

PACKAGES = (pangu_modules, callbacks, datamodules)


def configurations() -> list[type[Config]]:
    """Every configuration class of the modules that rename fields."""
    for package in PACKAGES:
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            if "renamed = {" in path.read_text(encoding="utf-8"):  # one that gives no map has its parent's
                importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts))
    found: list[type[Config]] = []
    waiting = [Config]
    while waiting:
        waiting += (kinds := waiting.pop().__subclasses__())
        found += [kind for kind in kinds if kind.__module__.split(".")[0] in {each.__name__ for each in PACKAGES}]
    return found


def has(kind: Any, path: str) -> bool:
    """Whether a class has the field, dotted where it is nested."""
    name, _, rest = path.partition(".")
    return name in kind.model_fields and (not rest or has(kind.model_fields[name].annotation, rest))


def test_old_names_lead_to_fields_and_are_inherited() -> None:
    wrong = []
    kinds = configurations()
    for kind in kinds:
        lost = {old for base in kind.__mro__ for old in getattr(base, "renamed", {})} - set(kind.renamed)
        wrong += [f"{kind.__qualname__} lost {old}" for old in lost]
        wrong += [f"{kind.__qualname__}: no {new}" for new in kind.renamed.values() if not has(kind, new)]
        moved = {old for old, new in kind.renamed.items() if new.startswith(f"{old}.")}
        wrong += [f"{kind.__qualname__}: {old} is a field" for old in set(kind.renamed) - moved if has(kind, old)]
    assert not wrong
    assert sum(bool(kind.renamed) for kind in kinds) > 20


@pytest.mark.filterwarnings("ignore:.*is now")
@pytest.mark.parametrize(
    ("kind", "old", "present"),
    [
        (
            StructuredPruning.Config,
            {"method": {"base_ratio": 0.5, "keep_least_fraction": 0.02, "calib": {"n_samples": 3, "seq_len": 7}}},
            {"method": {"base_share": 0.5, "keep_least_share": 0.02,
                        "calibration": {"num_samples": 3, "sequence_length": 7}}},
        ),
        (
            DWMReweighting.Config,
            {"n_stages": 4, "warmup_stages": 2, "freeze_after_stage": 3, "model": {"d_model": 8, "n_heads": 2}},
            {"num_rounds": 4, "warmup_rounds": 2, "freeze_after_round": 3,
             "method": {"model": {"hidden_size": 8, "num_heads": 2}}},
        ),
        (
            BatchWeighting.Config,
            {"method": "loss", "tau": 2.0, "n_stages": 3},
            {"method": {"kind": "loss", "tau": 2.0}, "num_rounds": 3},
        ),
        (
            TextData.Config,
            {"val_fraction": 0.2, "test_fraction": 0.25, "calibration_fraction": 0.15},
            {"val_share": 0.2, "test_share": 0.25, "calibration_share": 0.15},
        ),
        (
            MoGEBlock.Config,
            {"experts_per_token": 16, "expert_intermediate_size": 5, "shared_intermediate_size": 6},
            {"num_experts_per_tok": 16, "moe_intermediate_size": 5, "shared_expert_intermediate_size": 6},
        ),
    ],
)  # fmt: skip
def test_old_names_mean_the_present_ones(kind: type[Config], old: dict[str, Any], present: dict[str, Any]) -> None:
    read = kind.model_validate(old)
    assert read == kind.model_validate(present)
    assert within(present, read.plain())


def within(part: Any, whole: Any) -> bool:
    """Whether what is given of nested mappings is what the whole holds."""
    if isinstance(part, dict):
        return all(within(value, whole[name]) for name, value in part.items())
    return bool(part == whole)
