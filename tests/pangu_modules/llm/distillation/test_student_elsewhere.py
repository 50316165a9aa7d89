"""A distilled student outside of this library: transformers, lm-evaluation-harness, llama.cpp, vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from distilled import FIRST, distilled
from llama_cpp_engine import continue_greedily
from local_tasks import PICK, questions, slow_scores, write_task
from tiny_llm import TINY_LLAMA, byte_tokenizer

from pangu_modules import CausalLM
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.llm.generation.server.serving import VLLM_PYTHON

pytestmark = pytest.mark.slow  # a recipe of five stages, and engines that the package does not depend on

# vLLM's kernels for a CPU want heads of 32 channels or more; of 258 tokens two are special.
SIZES = {**TINY_LLAMA, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 259}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 256}
COUNT = 8
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pangu_modules", "callbacks", "datamodules", "recipes"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""


class Student(NamedTuple):
    module: CausalLM
    folder: Path
    gguf: Path


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Distil by the recipe, and export by the command line."""
    folder = tmp_path_factory.mktemp("student")
    words = str(byte_tokenizer(folder / "bytes"))
    changed: dict[str, Any] = {"module": {"model_args": {**SIZES, **ENDS}}}
    recipe = distilled(folder, steps=10)
    trained = {name: {**changed, "data": {"words": words}} for name in ("teacher", "sft", "sample")}
    recipe = recipe.derive(**trained, score=changed, distill=changed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv(RUN_DIR_VARIABLE, raising=False)
        patch.setattr(sys, "argv", ["toy.py"])
        main(recipe, ["fit"])
        checkpoint = folder / FIRST / "distill/checkpoints/last.ckpt"
        main(recipe, ["export", "--stage", "distill", "--ckpt_path", str(checkpoint)])
        main(recipe, ["export", "--stage", "distill", "--ckpt_path", str(checkpoint), "--format", "gguf"])
    module = CausalLM.load_from_checkpoint(checkpoint, weights_only=True).eval()
    (exported,), (file,) = ((folder / "runs").rglob(name) for name in ("model.safetensors", "*.gguf"))
    return Student(module, exported.parent, file)


def test_folder_is_stock_transformers_with_tokenizer_template_and_settings(student: Student) -> None:
    module, folder, _ = student
    ids = module.tokenizer.apply_chat_template([{"role": "user", "content": "he"}], add_generation_prompt=True)
    prompt = list(ids["input_ids"])
    assert greedy(module.model, prompt) == run(
        f"""{BLOCKED}
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(folder)!r})
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "he"}}], add_generation_prompt=True, return_tensors="pt")["input_ids"]
assert prompt.tolist() == [{prompt!r}], prompt
settings = model.generation_config
assert (settings.eos_token_id, settings.pad_token_id) == (1, 1), settings
print(json.dumps(model.generate(prompt, max_new_tokens={COUNT}, min_new_tokens={COUNT}, do_sample=False)[0].tolist()))
"""
    )


def test_llama_cpp_writes_the_same_tokens(student: Student) -> None:
    module, _, file = student
    prompt = [258, 77, 80]
    assert continue_greedily(file, prompt, COUNT) == greedy(module.model, prompt)[len(prompt) :]


def test_lm_eval_runs_a_local_task_on_the_folder(student: Student, tmp_path: Path) -> None:
    """Would fail if weights or the tokenizer of the folder were others than the module's."""
    module, folder, _ = student
    rows = questions()
    tasks = write_task(tmp_path / "tasks", PICK, rows)
    program = f"{BLOCKED}\nfrom lm_eval.__main__ import cli_evaluate\ncli_evaluate()"
    arguments = ["--model", "hf", "--model_args", f"pretrained={folder},dtype=float32", "--tasks", "pick"]
    arguments += ["--include_path", str(tasks), "--device", "cpu", "--output_path", str(tmp_path / "out")]
    command = [sys.executable, "-c", program, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["pick"]
    assert (found["acc,none"], found["acc_norm,none"]) == slow_scores(module.model, module.tokenizer, rows)


def test_vllm_writes_the_same_tokens(student: Student, tmp_path: Path) -> None:
    python = os.environ.get(VLLM_PYTHON)
    if python is None:
        pytest.skip(f"needs vLLM's CPU build: {VLLM_PYTHON} names the Python of its environment")
    module, folder, _ = student
    prompts = [[258, 77, 80], [0, 9, 33, 12, 5]]
    program = tmp_path / "continue.py"
    program.write_text(
        f"""
import json
from vllm import LLM, SamplingParams
engine = LLM({str(folder)!r}, dtype="float32", enforce_eager=True, max_model_len=64)
sampling = SamplingParams(temperature=0.0, max_tokens={COUNT}, ignore_eos=True)
found = engine.generate([{{"prompt_token_ids": prompt}} for prompt in {prompts!r}], sampling)
print(json.dumps([list(one.outputs[0].token_ids) for one in found]))
"""
    )
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment.pop("PYTHONPATH", None)  # nothing of this library is needed there
    command = [python, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    wanted = [greedy(module.model, prompt)[len(prompt) :] for prompt in prompts]
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    """Return the prompt and the likeliest tokens after it, one at a time."""
    ids = list(prompt)
    for _ in range(COUNT):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def run(program: str) -> Any:
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
