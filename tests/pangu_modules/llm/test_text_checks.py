"""The model's own tokenizer is the default; data, teacher and drafter with other tokens are refused."""

import lightning
import pytest
import torch
from tiny_llm import TINY_LLAMA, byte_tokenizer, tiny_module, token_batch, word_tokenizer
from tiny_text import TokenBatches
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from callbacks.distillation import Distillation
from datamodules import TextData
from pangu_modules import CausalLM, GenerationEngine, distillation_loss
from pangu_modules.llm.distillation.teacher import distillation_objective
from pangu_modules.llm.text_checks import check_positions
from pangu_modules.llm.tokenizers import difference

TEXT = "\n\n".join(f"he said the {word} is there, and w{word} too, {word} times" for word in range(400))


@pytest.fixture
def source(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def data(source, **fields):
    return TextData.Config(source=source, sequence_length=16, overlap_ngram=0, split_by="block", **fields).build()


def with_tokenizer(folder, make, **sizes):
    """Save a tiny Llama with a tokenizer of its own."""
    tiny_module(data_tokenizer=make(folder / "t"), model_args={"vocab_size": 300, **sizes}).export(folder / "m")
    return str(folder / "m")


def fit(module, datamodule, folder):
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = lightning.Trainer(default_root_dir=folder, accelerator="cpu", max_steps=1, **settings)
    trainer.fit(module, datamodule=datamodule)


def test_data_without_a_tokenizer_take_the_models_own(source, tmp_path):
    model = with_tokenizer(tmp_path, byte_tokenizer)
    text = data(source)
    module = CausalLM.Config(model=model).build(**text.module_arguments())
    fit(module, text, tmp_path)
    assert text.tokenizer is module.tokenizer
    first = module.tokenizer.decode(text.train_dataset.tokens[0])
    assert first.removesuffix("</s>")[:8] in TEXT
    module.export(tmp_path / "again")
    read = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert difference(read, AutoTokenizer.from_pretrained(model), with_special_tokens=True) is None


def test_other_data_are_refused_with_both_names(source, tmp_path):
    model, other = with_tokenizer(tmp_path, byte_tokenizer), str(word_tokenizer(tmp_path / "words"))
    text = data(source, tokenizer=other)
    with pytest.raises(ValueError, match=rf"{other}' is not that of model='{model}': token 2 .*data\.tokenizer empty"):
        CausalLM.Config(model=model).build(**text.module_arguments())
    with pytest.raises(ValueError, match=r"is not the model's: token 2 is"):
        fit(CausalLM.Config(model=model).build(), text, tmp_path)
    new_tokens = CausalLM.Config(model=model, tokenizer=other).build(**text.module_arguments())
    assert len(new_tokens.tokenizer) == 125  # asked for by name in both places
    with pytest.raises(ValueError, match=r"is not module\.tokenizer='.*words'"):
        CausalLM.Config(model=model, tokenizer=other).build(tokenizer=str(tmp_path / "t"))


def test_a_model_without_a_tokenizer_needs_the_datas(source, tmp_path):
    tiny_module().model.save_pretrained(tmp_path / "bare")
    text = data(source)
    module = CausalLM.Config(model=str(tmp_path / "bare")).build(**text.module_arguments())
    with pytest.raises(ValueError, match=r"no tokenizer of its own: name one in data\.tokenizer"):
        fit(module, text, tmp_path)


def test_a_models_own_tokenizer_may_be_longer_than_its_embedding(tmp_path):
    model = with_tokenizer(tmp_path, byte_tokenizer, vocab_size=259)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(model)
    module = CausalLM.Config(model=model).build()
    assert len(module.tokenizer) == 260 > module.model.config.vocab_size
    assert CausalLM.Config(model=model).build(tokenizer=model).tokenizer.pad_token == "<pad>"


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_windows_longer_than_a_table_of_positions_are_refused(source, tmp_path, kind):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}
    if kind == "opt":
        sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"max_position_embeddings": 12, "word_embed_proj_dim": 16}
    config = AutoConfig.for_model(kind, vocab_size=300, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    byte_tokenizer(tmp_path / "m")
    module = CausalLM.Config(model=str(tmp_path / "m")).build()
    with pytest.raises(ValueError, match=r"data\.sequence_length=16 is longer than the model's 12 positions .*or less"):
        fit(module, data(source), tmp_path)
    check_positions(module.model, 12)


def test_windows_beyond_rotary_positions_are_said():
    model = tiny_module(model_args={"max_position_embeddings": 12}).model
    with pytest.warns(UserWarning, match="16 is longer than the model's 12 positions"):
        check_positions(model, 16)


# Teachers and drafters.


def test_a_teacher_padded_to_another_length_teaches_the_tokens_that_both_have(tmp_path):
    words = word_tokenizer(tmp_path / "words")
    tiny_module(seed=1, data_tokenizer=words, model_args={"vocab_size": 160}).export(tmp_path / "teacher")
    module = tiny_module(data_tokenizer=words)
    callback = Distillation.Config(teacher=str(tmp_path / "teacher")).build(name="kd")
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_steps=1, logger=False, callbacks=[callback],
        enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=TokenBatches.Config().build())
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    batch = token_batch()
    for student in (module, tiny_module(seed=2, model_args={"vocab_size": 192})):
        outputs = student.compute_outputs(batch)
        with torch.no_grad():
            common = min(160, outputs["logits"].shape[-1])
            taught = teacher(batch["input_ids"]).logits[..., :common]
            wanted = distillation_loss(outputs["logits"][..., :common], taught, batch["input_ids"])
        torch.testing.assert_close(distillation_objective(teacher, padded=True)(student, batch, outputs), wanted)


def test_a_teacher_with_other_tokens_is_refused_by_the_first(tmp_path):
    tiny_module(data_tokenizer=byte_tokenizer(tmp_path / "b"), model_args={"vocab_size": 260}).export(tmp_path / "t")
    module = tiny_module(data_tokenizer=word_tokenizer(tmp_path / "w"), model_args={"vocab_size": 260})
    callback = Distillation.Config(teacher=str(tmp_path / "t")).build(name="kd")
    trainer = lightning.Trainer(accelerator="cpu", logger=False, callbacks=[callback], enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"has other tokens than the model: token 2 is '<unk>' in the one and"):
        trainer.fit(module, datamodule=TokenBatches.Config().build())


@pytest.mark.parametrize("rows", [160, 126])
def test_a_drafter_padded_to_another_length_writes_the_same(tmp_path, rows):
    words = word_tokenizer(tmp_path / "words")
    module = tiny_module(data_tokenizer=words).eval()
    tiny_module(seed=1, data_tokenizer=words, model_args={"vocab_size": rows}).export(tmp_path / "drafter")
    prompts = [[5, 6, 7], [9]]
    settings = {"max_new_tokens": 12, "temperature": 0}

    def written(**more):
        config = GenerationEngine.Config(**settings, **more)
        return config.build(model=module.model, tokenizer=module.tokenizer).generate(prompts)

    assert written(assistant=str(tmp_path / "drafter"), assistant_confidence=0) == written()


def test_a_drafter_with_other_tokens_is_refused(tmp_path):
    module = tiny_module(data_tokenizer=word_tokenizer(tmp_path / "w"), model_args={"vocab_size": 260}).eval()
    tiny_module(data_tokenizer=byte_tokenizer(tmp_path / "b"), model_args={"vocab_size": 260}).export(tmp_path / "d")
    engine = GenerationEngine.Config(assistant=str(tmp_path / "d")).build(
        model=module.model, tokenizer=module.tokenizer
    )
    with pytest.raises(ValueError, match=r"assistant=.* has other tokens than the model: token 2"):
        engine.generate([[5]])


# Adapters and what a configuration asks for.


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_a_shared_weight_are_refused(target):
    lora = {"targets": ("q_proj", target)}
    tied = {**TINY_LLAMA, "tie_word_embeddings": True}
    with pytest.raises(ValueError, match=rf"{target} shares its weight with .*leave '{target}' out"):
        CausalLM.Config(architecture="llama", model_args=tied, lora=lora).build()


def test_the_router_loss_that_a_configuration_asks_for_is_in_the_loss():
    sizes = {"vocab_size": 128, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    asked = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
    module = CausalLM.Config(architecture="mixtral", model_args={**sizes, **asked}).build()
    batch = token_batch()
    theirs = module.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    torch.testing.assert_close(module.training_step(batch, 0), theirs)  # equal lengths, so means agree
    with pytest.warns(UserWarning, match="router_aux_loss_coef=0.5, which its code in transformers does not use"):
        silent = CausalLM.Config(
            architecture="mixtral", model_args={**sizes, **asked, "output_router_logits": False}
        ).build()
    assert set(silent.objectives) == {"language_modelling"}
