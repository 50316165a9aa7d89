"""StructuredPruning in a Trainer: calibration, plan, resume, LoRA, export, and what it refuses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from tiny_llm import tiny_module, token_batch
from torch.utils.data import DataLoader, Dataset

from callbacks.calibration import calibration_windows
from callbacks.pruning.structured import LayerDropping, StructuredPruning
from pangu_modules.llm.calibration.windows import CalibrationConfig
from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.lora import LoRAConfig
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning.short_gpt import ShortGPTConfig
from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm

CALIBRATION = CalibrationConfig(num_samples=6, sequence_length=12, batch_size=4)
METHOD = SlimLLMConfig(base_share=0.5, pruned_layers=1, calibration=CALIBRATION)


class Sequences(Dataset):
    """Sequences of 8 to 20 tokens; the shorter ones are padded to 20."""

    def __init__(self, size=40):
        self.tokens = token_batch(size, 20, seed=5)["input_ids"]

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        length = 8 + index % 13
        mask = (torch.arange(20) < length).long()
        return {"input_ids": self.tokens[index] * mask, "attention_mask": mask}


class Data(lightning.LightningDataModule):
    def __init__(self, size=40):
        super().__init__()
        self.size = size

    def train_dataloader(self):
        return DataLoader(Sequences(self.size), batch_size=5, shuffle=True)


class DataWithMethod(Data):
    """A stream in another order for every number of sequences, as the project's datamodules do."""

    def calibration_sequences(self, seed, *, expected=1):
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed + expected)).tolist()
        return (Sequences()[index] for index in order)


def fit(module, callback, tmp_path, data=None, **arguments):
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=2,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False} | arguments,
    )
    trainer.fit(module, datamodule=data or Data())
    return trainer


def pruning(method=METHOD, **fields):
    return StructuredPruning.Config(method=method, progress_folder=None, **fields).build(name="prune")


def shapes_of(module):
    return [decoder.layer_shape(layer) for layer in decoder.decoder_layers(module.model)]


@pytest.mark.parametrize("data", [Data(), DataWithMethod()])
def test_windows_are_full_and_do_not_move_training_randomness(data):
    trainer = SimpleNamespace(datamodule=data)
    state = torch.get_rng_state()
    batches = calibration_windows(trainer, CALIBRATION)
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 12), (2, 12)]
    assert int((torch.cat([batch["input_ids"] for batch in batches]) == 0).sum()) == 0  # no padding
    again = calibration_windows(trainer, CALIBRATION)
    other = calibration_windows(trainer, CALIBRATION.derive(seed=1))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0]["input_ids"], other[0]["input_ids"])


def test_every_window_is_part_of_another_sequence():
    windows = torch.cat([b["input_ids"] for b in calibration_windows(SimpleNamespace(datamodule=Data()), CALIBRATION)])
    texts = [" ".join(map(str, row.tolist())) for row in Sequences().tokens]
    sources = [next(i for i, text in enumerate(texts) if " ".join(map(str, w.tolist())) in text) for w in windows]
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("kind", [Data, DataWithMethod])
def test_too_little_text_is_named(kind):
    with pytest.raises(
        ValueError, match=r"6 windows of 64 tokens, the training data has 0 .*the longest has 20 tokens"
    ):
        calibration_windows(SimpleNamespace(datamodule=kind()), CALIBRATION.derive(sequence_length=64))
    with pytest.raises(ValueError, match="datamodule"):
        calibration_windows(SimpleNamespace(), CALIBRATION)


def test_the_callback_prunes_as_the_function_does_then_trains(tmp_path):
    module, alone = tiny_module(), tiny_module()
    callback = pruning()
    batches = calibration_windows(SimpleNamespace(datamodule=Data()), CALIBRATION)
    report = prune_slimllm(alone.model, METHOD, batches)
    with pytest.warns(
        UserWarning, match=rf"1 of the {len(report.layers)} layers that stay lost heads or channels, and "
    ):
        trainer = fit(module, callback, tmp_path, logger=lightning.pytorch.loggers.CSVLogger(tmp_path))
    assert callback.report == report
    assert shapes_of(module) == shapes_of(alone)
    assert len(set(shapes_of(module))) == 2
    assert [plan.kind for plan in module.config.structure] == ["shape"]
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.parameters()}
    stored = json.loads((tmp_path / "lightning_logs/version_0/prune.json").read_text())
    assert stored["parameters_after"] == report.parameters_after


def test_a_checkpoint_rebuilds_the_pruned_model_and_is_not_pruned_again(tmp_path):
    module = tiny_module()
    trainer = fit(module, pruning(), tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = CausalLM.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert shapes_of(loaded) == shapes_of(module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    callback = pruning()
    fit(loaded, callback, tmp_path)
    assert callback.report is None
    assert shapes_of(loaded) == shapes_of(module)
    assert len(loaded.config.structure) == 1


def test_adapters_come_after_pruning_and_are_all_that_trains(tmp_path):
    module = tiny_module()
    fit(module, pruning(lora=LoRAConfig(rank=2)), tmp_path)
    assert [plan.kind for plan in module.config.structure] == ["shape", "lora"]
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    trainer_free = tiny_module().config.derive(structure=module.config.structure).build()
    trainer_free.load_state_dict(module.state_dict())


def test_the_pruned_module_exports_a_folder(tmp_path):
    from transformers import AutoModelForCausalLM

    module = tiny_module()
    fit(module, pruning(METHOD.derive(alpha=0, pruned_layers=2), layout="uniform"), tmp_path)
    module.export(tmp_path / "folder")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    tokens = token_batch()["input_ids"]
    with torch.no_grad():
        # measured 0: the same operations on the same weights
        assert torch.equal(plain(tokens).logits, module.model.eval()(tokens).logits)


def test_dropping_layers_is_a_method_too(tmp_path):
    module = tiny_module(model_args={"num_hidden_layers": 4})
    influence_first = module.model.model.layers[0]
    method = ShortGPTConfig(dropped_layers=2, protect_layers=(0,), calibration=CALIBRATION)
    fit(module, LayerDropping.Config(method=method).build(name="drop"), tmp_path)
    assert len(decoder.decoder_layers(module.model)) == 2
    assert decoder.decoder_layers(module.model)[0] is influence_first
    assert module.config.structure[0].kept_layers[0] == 0


def test_a_killed_pruning_goes_on_in_the_progress_folder(tmp_path, monkeypatch):
    from pangu_modules.llm.pruning.slimllm import walk as slimllm

    def config():
        return StructuredPruning.Config(method=METHOD, progress_folder=str(tmp_path / "progress"))

    original = slimllm._prune_layer
    seen = []

    def killed(layer, index, *rest):
        seen.append(index)
        if seen == [0, 1]:
            raise KeyboardInterrupt
        return original(layer, index, *rest)

    monkeypatch.setattr(slimllm, "_prune_layer", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tiny_module(), config().build(name="prune"), tmp_path)
    callback = config().build(name="prune")
    fit(tiny_module(), callback, tmp_path)
    assert seen == [0, 1, 1]
    whole = pruning()
    fit(tiny_module(), whole, tmp_path)
    assert callback.report == whole.report


def test_what_does_not_compose_is_refused(tmp_path):
    module = tiny_module()
    fit(module, pruning(), tmp_path)
    second = StructuredPruning.Config(method=METHOD).build(name="again")
    with pytest.raises(ValueError, match=r"'again': the model was already pruned by callback 'prune'"):
        fit(module, second, tmp_path)
    with pytest.raises(ValueError, match="LoRA adapters, and pruning must come first"):
        fit(tiny_module(lora=LoRAConfig(rank=2)), pruning(), tmp_path)
    with pytest.raises(TypeError, match="needs a PanguModule"):
        fit(BoringModel(), pruning(), tmp_path)


def test_the_configuration_survives_plain_data():
    for config in (LayerDropping.Config(method={"dropped_layers": 3}), StructuredPruning.Config(layout="padded")):
        assert type(config).model_validate(config.plain()) == config


class FewLong(DataWithMethod):
    """20 sequences in batches of five, of which 14 are long enough."""

    def __init__(self):
        super().__init__(size=20)


@pytest.mark.parametrize("wanted", [1, 5, 8, 12, 14])
def test_enough_text_is_not_refused(wanted):
    long_enough = sum(int(Sequences(20)[index]["attention_mask"].sum()) >= 11 for index in range(20))
    assert long_enough == 14
    trainer = SimpleNamespace(datamodule=FewLong())
    batches = calibration_windows(trainer, CALIBRATION.derive(num_samples=wanted, sequence_length=11))
    assert sum(len(batch["input_ids"]) for batch in batches) == wanted
    with pytest.raises(ValueError, match="the training data has 14 sequences of that length"):
        calibration_windows(trainer, CALIBRATION.derive(num_samples=15, sequence_length=11))
