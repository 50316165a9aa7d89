"""A model of the openPangu Embedded family as one folder, which stock transformers and vLLM's Pangu class load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pangu_folder import pangu_folder
from quiet_trainer import quiet_trainer
from tiny_llm import tiny_module, token_batch
from tiny_text import TokenBatches
from transformers import AutoModelForCausalLM, AutoTokenizer

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.lora import LoRAConfig

PYTHON = "PANGU_VLLM_PYTHON"
"""Environment variable: the Python of an environment with vLLM's CPU build."""

COUNT = 12
PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams

folder, prompts, count = json.loads(sys.argv[1])
engine = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=64, skip_tokenizer_init=True)
[name] = engine.apply_model(lambda model: type(model).__name__)
sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False, logprobs=0)
found = [one.outputs[0] for one in engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling)]
ids = [list(one.token_ids) for one in found]
logprobs = [[step[number].logprob for number, step in zip(one.token_ids, one.logprobs)] for one in found]
print(json.dumps([name, ids, logprobs]))
"""


def declared(folder: Path) -> tuple[str, list[str], bool]:
    config = json.loads((folder / "config.json").read_text())
    return config["model_type"], config["architectures"], config["attention_bias"]


FAMILY = ("llama", ["PanguEmbeddedForCausalLM"], True)


def test_folder_is_stock_transformers_and_keeps_the_family_s_name(tmp_path: Path) -> None:
    pangu_folder(tmp_path / "released")
    module = CausalLM.Config(model=str(tmp_path / "released")).build().eval()
    module.export(tmp_path / "one")
    module.export(tmp_path / "two")  # catches: saving once takes the name out of the model
    assert declared(tmp_path / "one") == declared(tmp_path / "two") == FAMILY
    assert "auto_map" not in json.loads((tmp_path / "one" / "config.json").read_text())
    assert not list((tmp_path / "one").glob("*.py"))
    batch = token_batch()
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert type(read).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        assert torch.equal(read(**batch).logits, module.compute_outputs(batch)["logits"])
    assert AutoTokenizer.from_pretrained(tmp_path / "one")("he")["input_ids"] == [258]
    again = CausalLM.Config(model=str(tmp_path / "one")).build()
    again.export(tmp_path / "again")
    assert declared(tmp_path / "again") == FAMILY


def test_name_survives_training_and_a_checkpoint_without_the_folder(tmp_path: Path) -> None:
    pangu_folder(tmp_path / "released")
    module = CausalLM.Config(model=str(tmp_path / "released"), lora=LoRAConfig(rank=2)).build()
    trainer = quiet_trainer(tmp_path, [], max_steps=1)
    trainer.fit(module, datamodule=TokenBatches.Config().build())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "released").rename(tmp_path / "gone")
    loaded = CausalLM.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    assert (loaded.config.architecture, loaded.config.model) == ("PanguEmbedded", None)
    loaded.export(tmp_path / "out")
    assert declared(tmp_path / "out") == FAMILY
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    batch = token_batch()
    with torch.no_grad():
        difference = (read(**batch).logits - loaded.compute_outputs(batch)["logits"]).abs().max()
    assert difference < 1e-4  # adapters merged in float32: measured 1e-5 on logits up to 30


def test_only_models_of_the_family_get_its_name(tmp_path: Path) -> None:
    tiny_module(model_args={"attention_bias": True}).export(tmp_path / "plain")
    assert declared(tmp_path / "plain") == ("llama", ["LlamaForCausalLM"], True)


@pytest.mark.slow  # needs an engine that the package does not depend on
def test_vllm_s_pangu_class_writes_the_same_text(tmp_path: Path) -> None:
    python = os.environ.get(PYTHON)
    if python is None:
        pytest.skip(f"needs vLLM's CPU build: {PYTHON} names the Python it is installed for")
    # vLLM has kernels for a few widths of heads.
    pangu_folder(tmp_path / "released", hidden_size=256, intermediate_size=320, rope_theta=16_000_000.0)
    CausalLM.Config(model=str(tmp_path / "released")).build().export(tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    prompts = token_batch(batch=3, seq=10)["input_ids"]
    with torch.no_grad():
        ids = model.generate(prompts, max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0)
        logprobs = model(ids).logits[:, prompts.shape[1] - 1 : -1].log_softmax(-1)
    written = ids[:, prompts.shape[1] :]
    wanted = logprobs.gather(2, written[..., None])[..., 0]
    arguments = json.dumps([str(tmp_path / "out"), prompts.tolist(), COUNT])
    program = tmp_path / "continue.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment.pop("PYTHONPATH", None)  # nothing of this library is needed there
    done = subprocess.run(
        [python, str(program), arguments], capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    name, found, of_vllm = json.loads(done.stdout.splitlines()[-1])
    assert name == "PanguEmbeddedForCausalLM"
    assert found == written.tolist()
    difference = (torch.tensor(of_vllm) - wanted).abs().max()
    print(f"log-probabilities differ by {float(difference):.1e} at most, of {float(wanted.min()):.2f}", file=sys.stderr)
    assert difference < 1e-5
