"""ExpertLoad in a Trainer: what it logs against counts by hand, padding, the report's parts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llm import tiny_module, token_batch
from tiny_moge import moge_module, short_trainer
from tiny_text import TokenBatches

from callbacks import ExpertLoad
from callbacks.mixture.expert_load import draw_load, selected_experts
from pangu_modules.llm.moge.statistics import LoadMeter, coefficient_of_variation
from pangu_modules.report.parts import PARTS


def load(**fields: Any) -> ExpertLoad:
    method = {"token_counts": (8, 32), "num_devices": fields.pop("num_devices", None)}
    callback: ExpertLoad = ExpertLoad.Config(method=method, **fields).build(name="load")
    return callback


def test_the_tests_figures_are_those_of_all_its_tokens(tmp_path: Path) -> None:
    """The test set has 4 sequences in batches of 3 and 1; a meter that sees them at once must agree."""
    module = moge_module(model_args={"router": "topk"})
    data = TokenBatches.Config(eval_batch_size=3).build()
    callback = load()
    trainer = short_trainer(tmp_path, callback)
    trainer.test(module, datamodule=data, verbose=False)
    tokens = torch.stack([data.test_dataset[index]["input_ids"] for index in range(4)])
    with torch.no_grad():
        module.eval().model(tokens)
    meter = LoadMeter(8, 4, (8, 32))
    meter.update(selected_experts(module, {"input_ids": tokens}))
    expected = meter.summary().scalars()
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "/load/" in name}
    assert logged == {f"test/load/{name}": pytest.approx(value, rel=1e-6) for name, value in expected.items()}
    assert logged["test/load/imbalance_8"] > 0
    assert callback.summary is not None
    assert callback.summary.counts.sum(-1).tolist() == [4 * 16 * 4] * 2


def test_a_grouped_router_has_no_imbalance_in_training_and_validation(tmp_path: Path) -> None:
    trainer = short_trainer(tmp_path, load(every_n_steps=2), limit_val_batches=1, val_check_interval=2, max_steps=4)
    trainer.fit(moge_module(), datamodule=TokenBatches.Config().build())
    for stage in ("train", "val"):
        assert trainer.callback_metrics[f"{stage}/load/imbalance_8"] == 0
        assert trainer.callback_metrics[f"{stage}/load/device_max_over_mean_8"] == 1
        assert trainer.callback_metrics[f"{stage}/load/cv"] > 0


def test_padding_is_left_out() -> None:
    module = moge_module().eval()
    batch = token_batch(batch=2, seq=6)
    batch["attention_mask"] = torch.tensor([[1] * 6, [1] * 2 + [0] * 4])
    module.compute_outputs(batch)
    chosen = selected_experts(module, batch)
    assert chosen.shape == (2, 8, 4)
    alone = {"input_ids": batch["input_ids"][:1]}
    module.compute_outputs(alone)
    assert torch.equal(chosen[:, :6], selected_experts(module, alone))


def test_tables_and_heat_map_are_left_for_the_report(tmp_path: Path) -> None:
    trainer = short_trainer(tmp_path, load())
    trainer.test(moge_module(), datamodule=TokenBatches.Config().build(), verbose=False)
    layers = json.loads((tmp_path / PARTS / "load-1-layers.json").read_text())
    sizes = json.loads((tmp_path / PARTS / "load-2-imbalance.json").read_text())
    assert [row["layer"] for row in layers["rows"]] == [0, 1]
    assert [row["tokens"] for row in sizes["rows"]] == [8, 32]
    assert all(row["batches in balance, %"] == 100 for row in sizes["rows"])
    assert "4 devices" in sizes["title"]
    assert (tmp_path / PARTS / "load-3-map.png").read_bytes().startswith(b"\x89PNG")


def test_the_heat_map_shows_multiples_of_an_even_load() -> None:
    counts = torch.tensor([[10, 30], [20, 20]])
    assert float(coefficient_of_variation(counts)[0]) == 0.5
    image = draw_load(counts).axes[0].images[0].get_array()
    assert image is not None
    assert image.tolist() == [[0.5, 1.5], [1.0, 1.0]]


def test_models_and_devices_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    trainer = short_trainer(tmp_path)
    with pytest.raises(ValueError, match="'load': the model has no mixture of experts"):
        load().setup(trainer, tiny_module(), "fit")
    with pytest.raises(ValueError, match="num_devices=3 does not divide num_experts=8"):
        load(num_devices=3).setup(trainer, moge_module(), "fit")
