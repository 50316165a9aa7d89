"""Servers of others, started by our own command: they answer as the engine in this process does."""

import os
import re
import sys

import numpy as np
import pytest
import torch
from server_processes import serving
from tiny_llm import byte_tokenizer, tiny_module

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.generation.server.calls import complete_on_server, score_on_server
from pangu_modules.llm.generation.server.serving import VLLM_PYTHON, engine_command, main, vllm_python

PROMPTS = ["hello", "the shell", "x", [{"role": "user", "content": "he said"}], "hehehehehe"]
# vLLM's kernels for a CPU want heads of 32 channels or more.
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 259}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return byte_tokenizer(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def module(folder):
    module = tiny_module(model_args=SHAPE | ENDS, data_tokenizer=folder).eval()
    module.model.save_pretrained(folder)
    return module


def in_process(module, prompts, **fields):
    engine = GenerationEngine.Config(**fields).build(model=module.model, tokenizer=module.tokenizer)
    return engine.generate(prompts)


def test_transformers_serve_answers_as_we_do_and_is_refused_where_tokens_are_needed(folder, module, tmp_path):
    with serving("transformers", folder, tmp_path / "log", "--device", "cpu") as base_url:
        fields = {"max_new_tokens": 12, "batch_size": 2}
        config = GenerationEngine.Config(base_url=base_url, model=str(folder), **fields)
        found = complete_on_server(config, PROMPTS, 0, 1, 0)
        wanted = in_process(module, PROMPTS, **fields)
        assert [one.text for one in found] == [one.text for one in wanted]
        assert [one.finish_reason for one in found] == [one.finish_reason for one in wanted]
        assert all(one.token_ids == () and one.logprobs is None for one in found)
        with pytest.raises(
            ConnectionError, match=r"return_token_ids.*; logprobs=True needs a server that gives tokens"
        ):
            complete_on_server(config.derive(logprobs=True), PROMPTS, 0, 1, 0)
        with pytest.raises(
            ConnectionError, match=r"Unexpected fields.*; scoring needs a server that gives prompt_logprobs"
        ):
            score_on_server(config, [[5, 6]], 2)
        with pytest.raises(ConnectionError, match=r"model 'other'.*set model to one that it offers: '.*served"):
            complete_on_server(config.derive(model="other"), PROMPTS, 0, 1, 0)
        with pytest.raises(ConnectionError, match="prompt must be a string"):
            complete_on_server(config, [[5, 6]], 0, 1, 0)
        stopped = complete_on_server(config.derive(stop=(found[0].text[3],)), PROMPTS[:1], 0, 1, 0)[0]
        assert (stopped.text, stopped.finish_reason) == (
            found[0].text[: found[0].text.index(found[0].text[3])],
            "stop_string",
        )


@pytest.mark.slow
def test_vllm_answers_and_scores_as_we_do(folder, module, tmp_path):
    need_vllm()
    prompts = [*PROMPTS, [5, 6, 7]]
    sequences = [[258, 77, 77, 80, 9, 33], [5, 6, 7, 8, 9, 10, 11, 12], [200], list(range(2, 120))]
    with serving("vllm", folder, tmp_path / "log") as base_url:
        config = GenerationEngine.Config(base_url=base_url, model=str(folder), max_new_tokens=24, logprobs=True)
        found = assert_agreement(module, config, prompts, sequences)
        sampling = config.derive(temperature=1.0)
        samples = complete_on_server(sampling, prompts, 3, 2, 0)
        assert complete_on_server(sampling, prompts[::-1], 3, 1, 1) == samples[1::2][::-1]
        assert_logprobs(module, samples)
        with pytest.raises(ConnectionError, match=r"prompt logprobs of 65.*max allowed: 64"):
            score_on_server(config, sequences, 65)
        with pytest.raises(ConnectionError, match=r"max_model_len=128.*lower max_new_tokens=1000"):
            complete_on_server(config.derive(max_new_tokens=1000), ["hello"], 0, 1, 0)
        (stopped,) = complete_on_server(config.derive(stop_token_ids=(found[0].token_ids[2],)), ["hello"], 0, 1, 0)
        assert (stopped.token_ids, stopped.finish_reason) == (found[0].token_ids[:3], "stop")
        letter = [character for character in found[0].text if character.isascii()][-1]
        (cut,) = complete_on_server(config.derive(stop=(letter,)), ["hello"], 0, 1, 0)
        assert (cut.text, cut.finish_reason) == (found[0].text[: found[0].text.index(letter)], "stop_string")


@pytest.mark.slow
def test_vllm_agrees_on_smollm2(tmp_path):
    need_vllm()
    module = CausalLM.Config(model="smollm2").build().eval()
    folder = tmp_path / "model"
    module.model.save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)
    prompts = ["The capital of France is", "def add(a, b):", [{"role": "user", "content": "What is 3 plus 4?"}]]
    sequences = [module.tokenizer("The quick brown fox jumps over the lazy dog. " * 8)["input_ids"], [5, 6, 7]]
    with serving("vllm", folder, tmp_path / "log", "--max-model-len", "512") as base_url:
        config = GenerationEngine.Config(base_url=base_url, model=str(folder), max_new_tokens=24, logprobs=True)
        assert_agreement(module, config, prompts, sequences)


def need_vllm():
    if VLLM_PYTHON not in os.environ:
        pytest.skip(f"needs vLLM 0.32.0 for the CPU: {VLLM_PYTHON} names the Python of its environment")


def assert_agreement(module, config, prompts, sequences):
    """Same tokens at temperature 0, the same log-probabilities of them, and of the 32 likeliest of given sequences."""
    found = complete_on_server(config, prompts, 0, 1, 0)
    wanted = in_process(module, prompts, max_new_tokens=config.max_new_tokens)
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    assert [one.finish_reason for one in found] == [one.finish_reason for one in wanted]
    assert_logprobs(module, found)
    for sequence, scores in zip(sequences, score_on_server(config, sequences, 32), strict=True):
        rows = reference(module, sequence)[:-1]
        taken = rows.gather(1, torch.from_numpy(scores.top_ids).long()).numpy()
        assert_close(scores.logprobs, rows[range(len(rows)), sequence[1:]].numpy())
        assert_close(scores.top_logprobs, rows.topk(32).values.numpy())
        assert_close(scores.top_logprobs, taken)
    return found


def assert_logprobs(module, rollouts):
    for one in rollouts:
        rows = reference(module, [*one.prompt_ids, *one.token_ids])[len(one.prompt_ids) - 1 : -1]
        assert_close(np.array(one.logprobs), rows[range(len(one.token_ids)), list(one.token_ids)].numpy())


def assert_close(found, wanted):
    """Two implementations in float32: seen 1.6e-5 for the tiny model, 6.5e-5 for SmolLM2."""
    assert np.abs(found - wanted).max(initial=0) < 1e-4


def reference(module, tokens):
    with torch.no_grad():
        return module.model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)


def test_the_command_serves_this_machine_alone(monkeypatch):
    monkeypatch.setenv(VLLM_PYTHON, sys.executable)
    for engine in ("vllm", "transformers"):
        command = engine_command(engine, "folder", 8001)
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert command[command.index("--port") + 1] == "8001"
        assert not any("trust" in word for word in command)


def test_what_cannot_be_served_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(VLLM_PYTHON, str(tmp_path / "python"))
    (tmp_path / "config.json").write_text("{}")
    for arguments, message in (
        (["vllm", str(tmp_path / "none")], "holds no config.json; name a folder"),
        (["vllm", ""], "holds no config.json; name a folder"),
        (["other", str(tmp_path)], "invalid choice: 'other'"),
        (["vllm", str(tmp_path)], f"{VLLM_PYTHON}='.*' is no file"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert re.search(message, capsys.readouterr().err)


def test_a_named_python_is_taken_and_nothing_is_installed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VLLM_PYTHON, sys.executable)
    assert str(vllm_python()) == sys.executable
    assert not list(tmp_path.iterdir())
