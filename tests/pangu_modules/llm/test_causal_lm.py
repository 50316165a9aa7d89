import contextlib
import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from pydantic import ValidationError
from tiny_llm import VOCABULARY, tiny_module, token_batch, word_tokenizer
from torch.utils.data import DataLoader

from datamodules.text.running import TextData
from pangu_modules.engine.exact_resume import ExactResume
from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.distillation.teacher import distillation_objective
from pangu_modules.llm.generation.decoding import speculation
from pangu_modules.llm.generation.decoding.speculation import fit_assistant
from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.generation.prompts import prompts_of
from pangu_modules.llm.lora import LoRAConfig, LoRAPlan, has_adapters
from pangu_modules.training.objectives import Objective


def quiet_trainer(folder, **arguments):
    defaults = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False}
    return Trainer(default_root_dir=folder, enable_model_summary=False, **{**defaults, **arguments})


def loader(count=6, seq=10, batch_size=2, seed=0):
    tokens = token_batch(count, seq, seed)["input_ids"]
    return DataLoader([{"input_ids": row} for row in tokens], batch_size=batch_size)


# Configuration and building.


def test_either_model_or_architecture():
    with pytest.raises(ValidationError, match="either model or architecture"):
        CausalLM.Config()
    with pytest.raises(ValidationError, match="either model or architecture"):
        CausalLM.Config(model="smollm2", architecture="llama")
    with pytest.raises(ValidationError, match="model_args build a model from scratch"):
        CausalLM.Config(model="smollm2", model_args={"hidden_size": 2})


def test_seven_billion_parameters_on_the_meta_device():
    with torch.device("meta"):
        module = CausalLM.Config(architecture="llama").build(tokenizer="no/such-tokenizer")
    # LLaMA-7B: 2 * 32000 * 4096 embeddings, 32 * (4 * 4096^2 + 3 * 4096 * 11008 + 2 * 4096) layers, 4096 last norm
    assert sum(parameter.numel() for parameter in module.parameters()) == 6_738_415_616
    assert module.active_parameters() == 6_738_415_616
    batch = module.example_batch(2)
    assert batch["input_ids"].is_meta
    assert module.eval().compute_outputs(batch)["logits"].shape == (2, 512, 32000)


def test_active_parameters_of_a_mixture_of_experts():
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields |= {"vocab_size": 64, "intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2}
    module = CausalLM.Config(architecture="mixtral", model_args=fields).build()
    total = sum(parameter.numel() for parameter in module.parameters())
    unused = 2 * 6 * 3 * 32 * 48  # layers * idle experts * matrices
    assert module.active_parameters() == total - unused


def test_tokenizer_must_fit_the_model(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "tokenizer", words=200)
    with pytest.raises(ValueError, match=r"205 tokens.*128.*vocab_size to at least 205"):
        tiny_module(data_tokenizer=tokenizer)
    small = word_tokenizer(tmp_path / "small", words=20)
    assert len(tiny_module(data_tokenizer=small).tokenizer) == 25  # unused embeddings are fine


# Outputs and losses.


def test_padding_has_no_influence():
    module = tiny_module().eval()
    short = token_batch(1, 6)["input_ids"]
    padded = torch.cat([short, torch.full((1, 4), 9)], 1)
    batch = {"input_ids": padded, "attention_mask": torch.tensor([[1] * 6 + [0] * 4])}
    outputs, alone = module.compute_outputs(batch), module.compute_outputs({"input_ids": short})
    # attention with a mask sums in another order; seen 1e-6
    torch.testing.assert_close(outputs["logits"][:, :6], alone["logits"], rtol=0, atol=1e-5)
    losses = [
        module.objectives["language_modelling"].loss(module, b, o)
        for b, o in ((batch, outputs), ({"input_ids": short}, alone))
    ]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)


def test_training_step_is_the_loss_of_transformers():
    module = tiny_module()
    batch = token_batch()
    module.log = lambda *args, **kwargs: None
    expected = module.model(**batch, labels=batch["input_ids"], use_cache=False).loss
    # sequences of one length: the mean of means is the mean; seen 2e-7 of 7
    torch.testing.assert_close(module.training_step(batch, 0), expected, rtol=1e-6, atol=0)


def test_sample_weights_scale_sequences():
    module = tiny_module()
    batch = token_batch()
    losses = module.objectives["language_modelling"].loss(module, batch, module.compute_outputs(batch))
    module.log = lambda *args, **kwargs: None
    weights = torch.tensor([0.0, 3.0, 1.0])
    loss = module.training_step({**batch, "sample_weight": weights}, 0)
    torch.testing.assert_close(loss, (weights * losses).mean(), rtol=0, atol=1e-6)


def test_gradient_checkpointing_computes_layers_twice_and_changes_no_gradient():
    batch = token_batch()
    gradients, calls = [], []
    for checkpointing in (False, True):
        module = tiny_module(gradient_checkpointing=checkpointing)
        module.log = lambda *args, **kwargs: None
        counted = []
        module.model.model.layers[0].self_attn.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        module.training_step(batch, 0).backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
        calls.append(len(counted))
    assert calls == [1, 2]
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


# Evaluation.


def test_perplexity_is_over_all_tokens_of_the_set(tmp_path):
    module = tiny_module()
    rows = []
    for number, length in enumerate((10, 4, 7, 10, 2)):  # batches of unequal numbers of targets
        tokens = token_batch(1, 10, seed=number)["input_ids"][0]
        labels = torch.where(torch.arange(10) < length, tokens, -100)
        rows.append({"input_ids": tokens, "labels": labels})
    trainer = quiet_trainer(tmp_path)
    (metrics,) = trainer.validate(module, DataLoader(rows, batch_size=2), verbose=False)
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = module.model(row["input_ids"][None]).logits[0].double()
        for position, label in enumerate(row["labels"][1:].tolist()):
            if label != -100:
                total -= float(logits[position].log_softmax(-1)[label])
                count += 1
    assert count == 9 + 3 + 6 + 9 + 1
    assert metrics["val/loss"] == pytest.approx(total / count, rel=1e-6)  # float32 logits; seen 1e-8
    assert metrics["val/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    (tested,) = trainer.test(module, DataLoader(rows, batch_size=5), verbose=False)
    assert tested["test/loss"] == pytest.approx(metrics["val/loss"], rel=1e-6)


# Training, checkpoints, resume.


def fit(folder, module, max_steps, ckpt_path=None):
    trainer = quiet_trainer(folder, max_steps=max_steps, max_epochs=-1)
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


class SaveAt(Callback):
    """Save in the middle of an epoch, then be gone."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def test_resume_gives_the_weights_of_the_run_that_was_not_stopped(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "tokenizer")
    lines = [json.dumps({"text": " ".join(f"w{(7 * n + k * k) % 120}" for k in range(40))}) for n in range(20)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    fields = {"sequence_length": 16, "batch_size": 4, "overlap_ngram": 0}

    def run(callbacks=(), ckpt_path=None):
        torch.manual_seed(0 if ckpt_path is None else 9)  # a resumed run must not profit from the same seed
        data = TextData.Config(source=str(tmp_path / "text.jsonl"), tokenizer=str(tokenizer), **fields).build()
        lora = LoRAConfig(rank=2, dropout=0.5)
        module = tiny_module(seed=0, lora=lora, data_tokenizer=data.module_arguments()["tokenizer"])
        resume = ExactResume(ExactResume.Config(), name="exact_resume")
        trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[resume, *callbacks], enable_checkpointing=False)
        with contextlib.suppress(SystemExit):
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return trainer.global_step, module

    steps, whole = run()
    stopped, half = run([SaveAt(steps // 2 + 1, tmp_path / "half.ckpt")])
    assert stopped == steps // 2 + 1
    resumed_steps, resumed = run(ckpt_path=tmp_path / "half.ckpt")
    assert resumed_steps == steps
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert not torch.equal(half.state_dict()[name], whole.state_dict()[name]) or "lora" not in name


def test_checkpoint_loads_in_a_process_that_imports_the_library_alone(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "tokenizer")
    source = tiny_module(data_tokenizer=tokenizer)
    source.model.generation_config.eos_token_id = [1, 7]
    source.export(tmp_path / "folder")
    module = CausalLM.Config(model=str(tmp_path / "folder"), lora=LoRAConfig(rank=2, targets=("q_proj",))).build()
    assert module.config.model is None
    trainer = fit(tmp_path, module, 2)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    batch = token_batch()
    torch.save({"logits": module.eval().compute_outputs(batch)["logits"].detach(), **batch}, tmp_path / "expected.pt")
    for folder in ("folder", "tokenizer"):
        (tmp_path / folder).rename(tmp_path / f"gone-{folder}")
    program = f"""
import sys, torch
from pangu_modules.llm.causal_lm import CausalLM
module = CausalLM.load_from_checkpoint({str(tmp_path / "model.ckpt")!r}, weights_only=True).eval()
expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
logits = module.compute_outputs({{"input_ids": expected["input_ids"]}})["logits"]
assert torch.equal(logits, expected["logits"])
assert module.model.lm_head.weight is module.model.model.embed_tokens.weight
assert module.tokenizer("w1 w2")["input_ids"] == [6, 7]
assert module.model.generation_config.eos_token_id == [1, 7]
trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
assert trainable and all("lora" in name for name in trainable)
assert not {{"callbacks", "datamodules", "recipes"}} & set(sys.modules)
print("same")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "same", result.stderr


def test_tied_weights_stay_one_parameter_after_loading_and_training(tmp_path):
    module = tiny_module()
    trainer = fit(tmp_path, module, 2)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = CausalLM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    untied = tiny_module(model_args={"tie_word_embeddings": False})
    trainer = fit(tmp_path, untied, 2)
    trainer.save_checkpoint(tmp_path / "untied.ckpt")
    loaded = CausalLM.load_from_checkpoint(tmp_path / "untied.ckpt", weights_only=True)
    assert not torch.equal(loaded.model.lm_head.weight, loaded.model.model.embed_tokens.weight)
    assert torch.equal(loaded.model.lm_head.weight, untied.model.lm_head.weight)


def test_a_stage_starts_from_the_checkpoint_of_another(tmp_path):
    first = tiny_module(lora=LoRAConfig(rank=2))
    fit(tmp_path, first, 2).save_checkpoint(tmp_path / "first.ckpt")
    second = tiny_module(seed=3, init_checkpoint=str(tmp_path / "first.ckpt"))
    assert [plan.kind for plan in second.config.structure] == ["lora"]
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    with pytest.raises(ValueError, match="merge them first"):
        tiny_module(init_checkpoint=str(tmp_path / "first.ckpt"), lora=LoRAConfig(rank=4))


# LoRA.


def test_adapters_start_silent_train_alone_and_merge_exactly(tmp_path):
    plain = tiny_module()
    batch = token_batch()
    before = plain.eval().compute_outputs(batch)["logits"]
    module = tiny_module(lora=LoRAConfig(rank=2, alpha=8.0))
    assert torch.equal(module.eval().compute_outputs(batch)["logits"], before)
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    # two layers; each adapter has rank * (in + out): q, o 32+32; k, v 32+16; gate, up, down 32+64
    assert trainable == 2 * 2 * (2 * 64 + 2 * 48 + 3 * 96)
    fit(tmp_path, module.train(), 3)
    frozen = {name: value for name, value in module.named_parameters() if not value.requires_grad}
    original = dict(plain.named_parameters())
    for name, value in frozen.items():
        assert torch.equal(value, original[name.replace(".base_layer", "")]), name
    by_hand = copy.deepcopy(plain.model).eval()
    for name, layer in module.model.named_modules():
        if hasattr(layer, "lora_A"):
            delta = 8.0 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            by_hand.get_submodule(name).weight.data += delta.detach()
    trained = module.eval().compute_outputs(batch)["logits"]
    assert (trained - before).abs().max() > 1e-4
    module.merge_lora()
    merged = module.compute_outputs(batch)["logits"]
    assert not has_adapters(module.model)
    assert module.config.structure == ()
    assert module.config.lora is None
    torch.testing.assert_close(merged, by_hand(**batch).logits, rtol=0, atol=1e-5)  # float32 sums; seen 1e-6
    torch.testing.assert_close(merged, trained, rtol=0, atol=1e-5)
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(parameter.requires_grad for parameter in module.parameters())
    with pytest.raises(ValueError, match="no LoRA adapters to merge"):
        module.merge_lora()


def test_adapters_as_a_plan_of_a_callback():
    module = tiny_module()
    module.restructure(LoRAPlan(lora=LoRAConfig(rank=2, targets=("down_proj",)), source="recovery"))
    assert has_adapters(module.model)
    with pytest.raises(ValueError, match="adapters already"):
        module.restructure(LoRAPlan(source="again"))
    with pytest.raises(ValueError, match=r"no layer 'q_porj'. Did you mean 'q_proj'.*Linear layers: down_proj"):
        tiny_module(lora=LoRAConfig(targets=("q_porj",)))


# Distillation.


def test_distillation_is_zero_for_an_identical_teacher_and_falls_in_training(tmp_path):
    student, teacher = tiny_module().eval(), tiny_module().eval()
    batch = token_batch()
    loss = distillation_objective(teacher, temperature=2.0)
    assert loss(student, batch, student.compute_outputs(batch)).abs().max() == 0
    other = tiny_module(seed=9)
    other.objectives = {"distillation": Objective(loss)}
    before = loss(other, batch, other.compute_outputs(batch)).mean()
    trainer = quiet_trainer(tmp_path, max_steps=20, max_epochs=-1)
    trainer.fit(other, loader())
    held = loss(other.eval(), batch, other.compute_outputs(batch)).mean()
    assert held < 0.9 * before
    for name, value in tiny_module().state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value), name


def test_teacher_is_in_no_checkpoint_and_shared_by_copies(tmp_path):
    module, teacher = tiny_module(), tiny_module(seed=1)
    names = set(module.state_dict())
    loss = distillation_objective(teacher)
    module.objectives["distillation"] = Objective(loss, 0.5)
    assert set(module.state_dict()) == names
    assert not any(part is teacher.model for part in module.modules())
    assert copy.deepcopy(module).objectives["distillation"].loss.teacher is teacher.model
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training


def test_distillation_refuses_other_vocabularies_and_itself():
    module = tiny_module()
    batch = token_batch()
    outputs = module.compute_outputs(batch)
    smaller = tiny_module(model_args={"vocab_size": VOCABULARY + 1})
    with pytest.raises(ValueError, match="one vocabulary"):
        distillation_objective(smaller)(module, batch, outputs)
    with pytest.raises(ValueError, match="same object"):
        distillation_objective(module.model)(module, batch, outputs)
    with pytest.raises(ValueError, match="temperature must be positive, got -1"):
        distillation_objective(smaller, temperature=-1)


# Prediction.


def test_prompts_end_where_the_labels_begin():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 7, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    assert prompts_of(batch) == [[5, 6, 7, 8], [5, 6, 7]]
    labels = torch.tensor([[-100, -100, 7, 8], [5, 6, 7, -100]])
    assert prompts_of({**batch, "labels": labels}) == [[5, 6], [5, 6, 7]]


def test_predict_continues_prompts_greedily(tmp_path):
    settings = GenerationEngine.Config(max_new_tokens=4)
    module = tiny_module(data_tokenizer=word_tokenizer(tmp_path / "tokenizer"), generation=settings)
    (first, second) = quiet_trainer(tmp_path).predict(module, loader(count=4, seq=5))
    prompt = next(iter(loader(count=4, seq=5)))["input_ids"][:1]
    expected = []
    for _ in range(4):
        token = int(module.model(prompt).logits[0, -1].argmax())
        expected.append(token)
        prompt = torch.cat([prompt, torch.tensor([[token]])], 1)
        if token == 1:
            break
    assert first[0]["token_ids"] == tuple(expected)
    assert first[0]["text"] == module.tokenizer.decode(expected, skip_special_tokens=True)
    assert len(first) == len(second) == 2


def test_predict_compares_the_drafter_once_and_later_ones_again(tmp_path, monkeypatch):
    words = word_tokenizer(tmp_path / "tokenizer")
    tiny_module(seed=1, data_tokenizer=words).export(tmp_path / "drafter")
    settings = GenerationEngine.Config(max_new_tokens=2, assistant=str(tmp_path / "drafter"))
    module = tiny_module(data_tokenizer=words, generation=settings)
    compared = []

    def counted(*args):
        compared.append(args)
        fit_assistant(*args)

    monkeypatch.setattr(speculation, "fit_assistant", counted)
    assert len(quiet_trainer(tmp_path).predict(module, loader(count=6, seq=5))) == 3
    assert len(compared) == 1
    module.config = module.config.derive(generation=settings.derive(max_new_tokens=1, assistant=None))
    answers = quiet_trainer(tmp_path).predict(module, loader(count=4, seq=5))
    assert [len(answer["token_ids"]) for batch in answers for answer in batch] == [1] * 4
    assert len(module.predict_step(next(iter(loader(count=2, seq=5))), 0)) == 2


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france_and_reads_prose(tmp_path):
    module = CausalLM.Config(model="smollm2").build()
    assert sum(parameter.numel() for parameter in module.parameters()) == 134_515_008
    assert module.model.lm_head.weight is module.model.model.embed_tokens.weight
    assert module.config.architecture == "llama"
    assert module.config.model_args["num_key_value_heads"] == 3
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = module.generation_engine().generate([question])
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "stop"
    data = TextData.Config(sequence_length=512).build()
    (metrics,) = quiet_trainer(tmp_path, limit_test_batches=1).test(module, datamodule=data, verbose=False)
    # 4096 tokens of technical prose, seen 16.0; a broken rotary order or norm gives thousands
    assert 10 < metrics["test/perplexity"] < 25
