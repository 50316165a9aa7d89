"""A padded pruned model in vLLM: the same greedy text as in transformers, without any code of ours."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from gguf_files import pruned
from tiny_llm import token_batch
from transformers import AutoModelForCausalLM

PYTHON = "PANGU_VLLM_PYTHON"
"""Environment variable: the Python of an environment with vLLM's CPU build."""

COUNT = 12
PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams

folder, prompts, count = json.loads(sys.argv[1])
engine = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=64, skip_tokenizer_init=True)
sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
found = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling)
print(json.dumps([list(one.outputs[0].token_ids) for one in found]))
"""


@pytest.mark.slow  # needs an engine that the package does not depend on
def test_vllm_continues_a_padded_model_as_transformers_does(tmp_path: Path) -> None:
    python = os.environ.get(PYTHON)
    if python is None:
        pytest.skip(f"needs vLLM's CPU build: {PYTHON} names the Python it is installed for")
    module = pruned(tmp_path, "slimllm", head_dim=64)  # vLLM has kernels for a few widths of heads
    module.export(tmp_path / "out", layout="padded")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    prompts = token_batch(batch=2, seq=10)["input_ids"]
    with torch.no_grad():
        written = model.generate(prompts, max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0)
    wanted = written[:, prompts.shape[1] :].tolist()
    assert len(set(wanted[0])) > 3  # a continuation that says something
    arguments = json.dumps([str(tmp_path / "out"), prompts.tolist(), COUNT])
    program = tmp_path / "continue.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment.pop("PYTHONPATH", None)  # nothing of this library is needed there
    command = [python, str(program), arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == wanted
