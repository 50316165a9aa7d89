"""What llama.cpp computes from a GGUF file, where one of its builds is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

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


NODE_PROGRAM = """
import {writeFileSync} from "node:fs";
const [folder, modelPath, tokens, texts, out] = JSON.parse(process.argv[2]);
const {getLlama} = await import(`file://${folder}/node_modules/node-llama-cpp/dist/index.js`);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath});
const cut = texts.map((text) => [...model.tokenize(text, false)]);
const context = await model.createContext({contextSize: 256});
const options = {generateNext: {probabilities: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}};
const found = await context.getSequence().controlledEvaluate(tokens.map((token) => [token, options]));
writeFileSync(out, JSON.stringify([cut, found.map((one) => [...one.next.probabilities])]));
process.exit(0);
"""


def evaluate(model: Path, tokens: list[int], texts: list[str], vocabulary: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Return the probabilities after each token, (tokens, vocabulary), and how the texts are cut, without ends.

    The test is skipped where node's build of llama.cpp is missing.
    """
    folder = os.environ.get(NODE_FOLDER)
    if folder is None or shutil.which("node") is None:
        pytest.skip(f"needs the npm package node-llama-cpp 3.21.1 in the folder {NODE_FOLDER} names")
    program = model.with_name("evaluate.mjs")
    program.write_text(NODE_PROGRAM)
    out = model.with_name("evaluated.json")  # a pipe would be cut off where the program ends before it is read
    arguments = json.dumps([str(Path(folder).absolute()), str(model), tokens, texts, str(out)])
    command = ["node", str(program), arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    cut, rows = json.loads(out.read_text())
    found = torch.zeros(len(tokens), vocabulary)
    for position, row in enumerate(rows):
        for token, probability in row:
            found[position, token] = probability
    return found, cut
