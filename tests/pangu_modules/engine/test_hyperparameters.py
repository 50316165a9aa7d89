"""Settings of a run reach TensorBoard's HPARAMS tab and other loggers, by dotted names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from toys import ToyData, ToyModule, Widen

from pangu_modules import Recipe
from pangu_modules.engine.hyperparameters import LogHyperparameters, leaves


def test_leaves_have_dotted_names() -> None:
    plain = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": None, "f": True, "g": "x"}
    assert dict(leaves(plain)) == {"a.b": 1, "d": "[1, 2]", "e": "None", "f": True, "g": "x"}


def test_each_logger_gets_them_but_the_csv_files() -> None:
    given: list[Any] = []

    class Listens(DummyLogger):
        def log_hyperparams(self, *arguments: Any, **_: Any) -> None:
            given.append(arguments)

    class Csv(CSVLogger):
        def log_hyperparams(self, *arguments: Any, **_: Any) -> None:
            raise AssertionError("config.yaml lies beside the file")

    trainer: Any = type("T", (), {"loggers": [Listens(), Csv("nowhere")]})()
    LogHyperparameters({"a": {"b": 1}}, "val/loss").on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert given == [({"a.b": 1},)]


def test_tensorboard_lists_settings_and_the_metric(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    recipe = Recipe(
        module=ToyModule.Config(width=6),
        data=ToyData.Config(batch_size=8),
        callbacks={"widen": Widen.Config()},
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        loggers=["csv", "tensorboard"],
    )
    recipe.fit(tmp_path, quiet=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    content = events.PluginTagToContent("hparams")
    settings = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert settings["module.width"].number_value == 6
    assert settings["callbacks.widen.width"].number_value == 16
    metrics = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["val/loss"]
    assert not (tmp_path / "hparams.yaml").exists()
