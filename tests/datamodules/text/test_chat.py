import json

import pytest
import torch
from tiny_llm import tiny_module, word_tokenizer

from datamodules.text.chat import ChatData, chat_sample, pad_right
from pangu_modules.llm.generation.prompts import prompts_of
from pangu_modules.llm.losses import count_targets


class Marks:
    """A tokenizer of letters whose template writes 90 and 91 around a question and 92 and 93 around an answer."""

    chat_template = "marks"
    pad_token_id = 0
    eos_token_id = 93

    def apply_chat_template(self, messages, add_generation_prompt, tokenize, return_dict):
        assert tokenize
        assert not return_dict
        tokens = []
        for message in messages:
            start, end = (92, 93) if message["role"] == "assistant" else (90, 91)
            tokens += [start, *self.content(message, messages), end]
        return [*tokens, 92] if add_generation_prompt else tokens

    def content(self, message, messages):
        return [ord(letter) - 96 for letter in message["content"]]


class Forgetful(Marks):
    """Its template drops the answers before the last one, as templates of reasoning models do with thoughts."""

    def content(self, message, messages):
        kept = message["role"] != "assistant" or message is messages[-1]
        return super().content(message, messages) if kept else []


def conversation(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def write_conversations(path, conversations):
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return str(path)


def test_answers_and_their_end_are_labels_and_prompts_are_not():
    sample = chat_sample(Marks(), conversation("ab", "c", "d", "ef"))
    assert sample["input_ids"] == [90, 1, 2, 91, 92, 3, 93, 90, 4, 91, 92, 5, 6, 93]
    no = -100
    assert sample["labels"] == [no, no, no, no, no, 3, 93, no, no, no, no, 5, 6, 93]
    unanswered = chat_sample(Marks(), conversation("a", "b", "c"))
    assert unanswered["labels"] == [no, no, no, no, 2, 93, no, no, no]


def test_conversations_without_answers_or_with_rewritten_ones_are_refused():
    with pytest.raises(ValueError, match="no message with role 'assistant'"):
        chat_sample(Marks(), conversation("a"))
    assert chat_sample(Forgetful(), conversation("a", "b"))["labels"] == [-100] * 4 + [2, 93]
    with pytest.raises(ValueError, match="rewrites earlier tokens around message 1"):
        chat_sample(Forgetful(), conversation("a", "b", "c", "d"))
    without = Marks()
    without.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        chat_sample(without, conversation("a", "b"))


def test_batches_are_padded_on_the_right():
    samples = [chat_sample(Marks(), conversation("a", "b")), chat_sample(Marks(), conversation("a", "bcd"))]
    batch = pad_right(samples, 0)
    assert batch["input_ids"].tolist() == [[90, 1, 91, 92, 2, 93, 0, 0], [90, 1, 91, 92, 2, 3, 4, 93]]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0] * 2, [1] * 8]
    assert batch["labels"].tolist() == [[-100] * 4 + [2, 93, -100, -100], [-100] * 4 + [2, 3, 4, 93]]
    assert count_targets(batch["labels"]).tolist() == [2, 4]
    assert prompts_of(batch) == [[90, 1, 91, 92], [90, 1, 91, 92]]


def chat_data(source, **fields):
    defaults = {"batch_size": 2, "eval_batch_size": 3, "overlap_ngram": 0}
    shares = {"val_share": 0.2, "test_share": 0.2, "calibration_share": 0.0}
    return ChatData.Config(source=source, **{**defaults, **shares, **fields}).build(tokenizer=Marks())


def test_conversations_are_split_and_loaded(tmp_path):
    letters = "abcdefghijklmnopqrst"
    conversations = [conversation(letter, letter * (1 + number % 3)) for number, letter in enumerate(letters)]
    data = chat_data(write_conversations(tmp_path / "chat.jsonl", conversations))
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    rows = [
        tuple(sample["input_ids"])
        for dataset in (data.train_dataset, data.val_dataset, data.test_dataset)
        for sample in dataset.samples
    ]
    assert len(set(rows)) == len(rows) == 20
    assert data.calibration_dataset is None
    assert data.too_long == 0
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape[0] == 2
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert len(next(iter(data.test_dataloader()))["labels"]) == 3


def test_long_conversations_and_answers_seen_before_are_left_out(tmp_path):
    answer = "xyxxyxyyxyxyxxxyyxyxyyyyx"
    letters = "abcdefghijklmno"
    conversations = [conversation(letter, letter + answer) for letter in letters]
    conversations += [conversation(letter, letter * 5) for letter in letters]
    conversations += [conversation("a", "b" * 100)]
    source = write_conversations(tmp_path / "chat.jsonl", conversations)
    data = chat_data(source, sequence_length=50, overlap_ngram=16)
    data.setup()
    assert data.too_long == 1
    assert sum(data.removed.values()) > 0
    holds = [
        any(answer.startswith("".join(chr(96 + t) for t in sample["labels"] if 0 < t < 90)[1:8]) for sample in part)
        for part in (data.test_dataset.samples, data.train_dataset.samples)
    ]
    assert holds.count(True) <= 1  # the answer is in one split alone
    with pytest.raises(ValueError, match="all 31 conversations have more than sequence_length=3 tokens"):
        chat_data(source, sequence_length=3).setup()
    with pytest.raises(ValueError, match="test: none of 1 conversations is left"):
        chat_data(write_conversations(tmp_path / "one.jsonl", [conversation("a", "b")])).setup()
    with pytest.raises(ValueError, match=r"conversation 1 of .*bad.jsonl: it has no message with role 'assistant'"):
        chat_data(write_conversations(tmp_path / "bad.jsonl", [conversation("a", "b"), conversation("a")])).setup()


def test_real_template_and_a_model(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "tokenizer")
    conversations = [conversation(f"w{number} w1", f"w2 w{number}") for number in range(12)]
    source = write_conversations(tmp_path / "chat.jsonl", conversations)
    shares = {"val_share": 0.0, "test_share": 0.2, "calibration_share": 0.0}
    data = ChatData.Config(source=source, tokenizer=str(tokenizer), batch_size=3, **shares).build()
    data.setup()
    module = tiny_module(data_tokenizer=data.module_arguments()["tokenizer"])
    batch = next(iter(data.train_dataloader()))
    # <s> user a b </s> <s> assistant c d </s>
    assert batch["labels"][0, :7].tolist() == [-100] * 7
    assert batch["labels"][0, 7:].tolist() == batch["input_ids"][0, 7:].tolist()
    assert batch["labels"][0, 9] == 1
    losses = module.objectives["language_modelling"].loss(module, batch, module.compute_outputs(batch))
    assert losses.shape == (3,)
    assert torch.isfinite(losses).all()
