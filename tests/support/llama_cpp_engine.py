"""Greedy continuations by llama.cpp, where one of its builds is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

NODE_FOLDER = "PANGU_NODE_LLAMA_CPP"
"""Environment variable: the folder that `npm install --ignore-scripts node-llama-cpp@3.21.1` was run in."""

PROGRAM = """
const [folder, modelPath, tokens, count] = JSON.parse(process.argv[2]);
const {getLlama} = await import(`file://${folder}/node_modules/node-llama-cpp/dist/index.js`);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 64});
const written = [];
for await (const token of context.getSequence().evaluate(tokens, {temperature: 0, yieldEogToken: true})) {
    written.push(token);
    if (written.length === count) break;
}
console.log(JSON.stringify(written));
process.exit(0);
"""


def continue_greedily(model: Path, tokens: list[int], count: int) -> list[int]:
    """Return the next `count` tokens after `tokens`; skip the test where llama.cpp is missing."""
    folder = os.environ.get(NODE_FOLDER)
    if folder is not None and shutil.which("node") is not None:
        arguments = json.dumps([str(Path(folder).absolute()), str(model), tokens, count])
        program = model.with_name("continue.mjs")  # a file: the engine starts processes that inherit node's options
        program.write_text(PROGRAM)
        command = ["node", str(program), arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        written: list[int] = json.loads(done.stdout.splitlines()[-1])
        return written
    if importlib.util.find_spec("llama_cpp") is not None:
        from itertools import islice

        from llama_cpp import Llama

        engine = Llama(str(model), n_ctx=64, verbose=False)
        return list(islice(engine.generate(tokens, temp=0.0), count))
    pytest.skip(
        f"needs llama.cpp: the npm package node-llama-cpp 3.21.1 in the folder {NODE_FOLDER} names, or llama-cpp-python"
    )
