"""SampledAccuracy: the shares and divergences that it logs, against one answer at a time."""

from __future__ import annotations

import pytest
import torch
from quiet_trainer import quiet_trainer

from callbacks import SampledAccuracy
from datamodules import ColumnSums
from pangu_modules import CausalLM
from pangu_modules.verification.scores import Score

TINY = {
    "vocab_size": 18,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.6,  # answers of many kinds
    "tie_word_embeddings": True,
    "eos_token_id": 16,
}
GENERATION = {"max_new_tokens": 12, "batch_size": 4}


class OddSums(ColumnSums):
    """Calls an answer right if its length is odd, which answers of an untrained model sometimes are."""

    def verify(self, task, text):
        return Score(float(len(text) % 2))


def data_of(**fields) -> OddSums:
    config = ColumnSums.Config(**{"num_train": 24, "num_test": 10, "batch_size": 8, **fields})
    return OddSums(config)


def module_of(data, seed: int = 0, **fields) -> CausalLM:
    torch.manual_seed(seed)
    config = CausalLM.Config(architecture="llama", model_args={**TINY, **fields}, loss_per="token")
    return config.build(**data.module_arguments())


def metrics_of(folder, module, source, /, **fields) -> dict[str, float]:
    callback = SampledAccuracy.Config(**{"generation": GENERATION, "limit": None, **fields}).build(name="answers")
    trainer = quiet_trainer(folder, [callback], max_epochs=1)
    (metrics,) = trainer.test(module, datamodule=source, verbose=False)
    return metrics


def one_at_a_time(module, task, steps: int) -> list[int]:
    ids = module.tokenizer.apply_chat_template(task.messages, add_generation_prompt=True, return_dict=False)
    written = []
    with torch.no_grad():
        for _ in range(steps):
            token = int(module.model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
            written.append(token)
            if token == module.tokenizer.eos_token_id:
                break
    return written


def test_accuracies_are_those_of_answers_written_one_at_a_time(tmp_path):
    data = data_of()
    module = module_of(data)
    metrics = metrics_of(tmp_path, module, data)
    right = {"thinking": [], "fast": []}
    for task in data.tasks("test"):
        text = module.tokenizer.decode(one_at_a_time(module, task, 12), skip_special_tokens=True)
        right[task.labels["mode"]].append(len(text) % 2)
    for mode, values in right.items():
        assert metrics[f"test/accuracy_{mode}"] == pytest.approx(sum(values) / 10)
    assert 0 < sum(map(sum, right.values())) < 20  # else all groupings would be the same


def test_limit_and_label_choose_the_tasks_and_their_groups(tmp_path):
    data = data_of()
    metrics = metrics_of(tmp_path, module_of(data), data, limit=3, by="level")
    levels = {task.labels["level"] for task in data.tasks("test")[:3]}
    assert {name for name in metrics if "accuracy" in name} == {f"test/accuracy_{level}" for level in levels}
    assert "test/accuracy_all" in metrics_of(tmp_path, module_of(data), data, by=None)


def test_the_divergence_is_that_of_full_softmaxes_on_the_models_own_samples(tmp_path):
    data = data_of(modes=("fast",))
    module, teacher = module_of(data), module_of(data, seed=1, hidden_size=24)
    file = tmp_path / "teacher.ckpt"
    trainer = quiet_trainer(tmp_path, [], max_epochs=1)
    trainer.fit(teacher, datamodule=data)
    trainer.save_checkpoint(file)
    metrics = metrics_of(tmp_path, module, data, teacher=str(file))

    engine = module.config.generation.derive(**GENERATION, temperature=1.0).build(
        model=module.model, tokenizer=module.tokenizer
    )
    total, tokens = 0.0, 0
    for rollout in engine.generate([task.messages for task in data.tasks("test")]):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        with torch.no_grad():
            theirs, ours = (each.model(input_ids=ids).logits[0].double().log_softmax(-1) for each in (teacher, module))
        for place in range(len(rollout.prompt_ids) - 1, ids.shape[1] - 1):
            total += float((theirs[place].exp() * (theirs[place] - ours[place])).sum())
            tokens += 1
    # float32 against float64: 3e-7 was seen
    assert metrics["test/kl_fast"] == pytest.approx(total / tokens, rel=1e-5)
    same = metrics_of(tmp_path, module_of(data, seed=1, hidden_size=24), data, teacher=None)
    assert "test/kl_fast" not in same


def test_target_tokens_are_those_learned_from_also_after_a_resume(tmp_path):
    data = data_of(thinking_share=0.0)
    callback = SampledAccuracy.Config(generation=GENERATION, limit=2).build(name="answers")
    trainer = quiet_trainer(tmp_path, [callback], max_epochs=1)
    trainer.fit(module_of(data), datamodule=data)
    assert callback.state_dict() == {"tokens": 24 * 4}
    again = SampledAccuracy.Config(generation=GENERATION, limit=2).build(name="answers")
    again.load_state_dict(callback.state_dict())
    trainer = quiet_trainer(tmp_path, [again], max_epochs=1)
    trainer.fit(module_of(data), datamodule=data)
    assert again.state_dict() == {"tokens": 2 * 24 * 4}


def test_what_cannot_be_answered_is_refused_before_training(tmp_path):
    data = data_of()
    with pytest.raises(ValueError, match="by='colour' is no label of task"):
        metrics_of(tmp_path, module_of(data), data, by="colour")
    with pytest.raises(ValueError, match="no such file"):
        metrics_of(tmp_path, module_of(data), data, teacher="nowhere.ckpt")
    with pytest.raises(ValueError, match=r"unknown datamodules 'ColumnSum'.*ColumnSums"):
        metrics_of(tmp_path, module_of(data), data, data="ColumnSum")
    bare = CausalLM.Config(architecture="llama", model_args=TINY).build()
    with pytest.raises(ValueError, match="tokenizer"):
        metrics_of(tmp_path, bare, data)


def test_other_tasks_than_the_datas_are_found_by_name(tmp_path):
    data = data_of()
    metrics = metrics_of(
        tmp_path, module_of(data), data, data="ColumnSums", data_fields={"num_test": 3, "modes": ["fast"]}
    )
    assert {name for name in metrics if "accuracy" in name} == {"test/accuracy_fast"}
