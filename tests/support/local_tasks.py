"""Tasks of lm-evaluation-harness over local files, and their scores from a slow loop over a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

PICK = """
task: pick
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
CONTINUE = """
task: continue
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{max_gen_toks: 3, until: ["</s>"], do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def write_task(folder: Path, form: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a task and its rows; return the folder, for ``include_path``."""
    name = form.split()[1]
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(form.format(rows=file))
    return folder


def questions(count: int = 12) -> list[dict[str, Any]]:
    """Return questions of two words with four answers of one to three words, so that lengths count in acc_norm."""
    rows = []
    for row in range(count):
        choices = [
            " ".join(f"w{(11 * row + 7 * one + two) % 90 + 10}" for two in range(1 + one % 3)) for one in range(4)
        ]
        rows.append({"question": f"w{row} w{row + 1}", "choices": choices, "answer": row % 4})
    return rows


@torch.no_grad()
def slow_scores(model: Any, tokenizer: Any, rows: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Return acc and acc_norm, one token of one answer at a time."""
    right = {"acc": 0, "acc_norm": 0}
    rows = list(rows)
    for row in rows:
        start = tokenizer(row["question"])["input_ids"]
        sums = []
        for choice in row["choices"]:
            ids, total = list(start), 0.0
            for number in tokenizer(" " + choice)["input_ids"]:
                total += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)[number])
                ids.append(number)
            sums.append(total)
        shares = [total / len(choice) for total, choice in zip(sums, row["choices"], strict=True)]
        for name, values in (("acc", sums), ("acc_norm", shares)):
            best, second = sorted(values, reverse=True)[:2]
            assert best - second > 1e-4  # so that rounding decides no answer
            right[name] += values.index(best) == row["answer"]
    return right["acc"] / len(rows), right["acc_norm"] / len(rows)


@torch.no_grad()
def slow_continuation(model: Any, tokenizer: Any, text: str, count: int = 3) -> str:
    """Return the likeliest next tokens of a text, one at a time, as text."""
    ids = tokenizer(text)["input_ids"]
    start = len(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[start:]))
