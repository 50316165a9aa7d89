"""Servers of others, started by our own command: they answer as the engine in this process does."""

import os
import re
import sys

import numpy as np
import pytest
import torch
from server_processes import serving
from tiny_llm import byte_tokenizer, tiny_module

from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.generation.server import complete_on_server, score_on_server
from pangu_modules.llm.generation.serving import VLLM_PYTHON, engine_command, main, vllm_python

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
        with pytest.raises(ConnectionError, match=r"logprobs=True needs a server that gives tokens.*return_token_ids"):
            complete_on_server(config.derive(logprobs=True), PROMPTS, 0, 1, 0)
        with pytest.raises(ConnectionError, match=r"scoring needs a server .*prompt_logprobs"):
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
    """In float32. Seen: 5e-6 at most between log-probabilities of both."""
    if VLLM_PYTHON not in os.environ:
        pytest.skip(f"needs vLLM 0.32.0 for the CPU: {VLLM_PYTHON} names the Python of its environment")
    sequences = [[258, 77, 77, 80, 9, 33], [5, 6, 7, 8, 9, 10, 11, 12], [200], list(range(2, 120))]
    with serving("vllm", folder, tmp_path / "log") as base_url:
        config = GenerationEngine.Config(base_url=base_url, model=str(folder), max_new_tokens=24, logprobs=True)
        prompts = [*PROMPTS, [5, 6, 7]]
        found = complete_on_server(config, prompts, 0, 1, 0)
        wanted = in_process(module, prompts, max_new_tokens=24)
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
        assert [one.finish_reason for one in found] == [one.finish_reason for one in wanted]
        sampling = config.derive(temperature=1.0)
        samples = complete_on_server(sampling, prompts, 3, 2, 0)
        assert complete_on_server(sampling, prompts[::-1], 3, 1, 1) == samples[1::2][::-1]
        for one in (*found, *samples):
            rows = reference(module, [*one.prompt_ids, *one.token_ids])[len(one.prompt_ids) - 1 : -1]
            own = rows[range(len(one.token_ids)), list(one.token_ids)].tolist()
            assert one.logprobs == pytest.approx(own, abs=1e-4)
        for sequence, scores in zip(sequences, score_on_server(config, sequences, 32), strict=True):
            rows = reference(module, sequence)[:-1]
            assert np.abs(scores.logprobs - rows[range(len(rows)), sequence[1:]].numpy()).max(initial=0) < 1e-4
            assert np.abs(scores.top_logprobs - rows.topk(32).values.numpy()).max(initial=0) < 1e-4
            taken = rows.gather(1, torch.from_numpy(scores.top_ids).long()).numpy()
            assert np.abs(scores.top_logprobs - taken).max(initial=0) < 1e-4
        with pytest.raises(ConnectionError, match=r"prompt logprobs of 65.*max allowed: 64"):
            score_on_server(config, sequences, 65)
        with pytest.raises(ConnectionError, match=r"max_model_len=128.*lower max_new_tokens=1000"):
            complete_on_server(config.derive(max_new_tokens=1000), ["hello"], 0, 1, 0)
        (stopped,) = complete_on_server(config.derive(stop_token_ids=(found[0].token_ids[2],)), ["hello"], 0, 1, 0)
        assert (stopped.token_ids, stopped.finish_reason) == (found[0].token_ids[:3], "stop")
        text = "".join(character for character in found[0].text if character.isascii())
        (cut,) = complete_on_server(config.derive(stop=(text[-1],)), ["hello"], 0, 1, 0)
        assert (cut.text, cut.finish_reason) == (found[0].text[: found[0].text.index(text[-1])], "stop_string")


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
