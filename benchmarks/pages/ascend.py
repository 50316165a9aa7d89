"""Writes docs/ascend_operators.md: the dispatch table, what each model would run fused, and predictions.

``python -m benchmarks.pages.ascend`` writes it, ``--check`` only tells whether it is current. Models are run on the
meta device, in bfloat16 and with one layer of their family's default sizes; what the page says is what `explain` says.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks.methods.ascend import prediction
from benchmarks.pages.whole_page import write_or_check
from pangu_modules.ascend.ops import OPERATORS, Explanation, recorded
from pangu_modules.ascend.ops.fusing import fuse
from pangu_modules.ascend.ops.fusing.seams import empty_seams, fill_seams
from pangu_modules.report.markdown import markdown_table
from pangu_modules.report.tables import table_of

PAGE = Path("docs/ascend_operators.md")
FAMILIES = ("llama", "qwen3", "mistral", "gemma", "gemma2", "phi3", "cohere", "olmoe", "PanguProMoE")
TOKENS = 8
GRADIENTS = {
    "own": "torch_npu's",
    "recomputed": "the reference's, computed anew",
    "none": "none: a call that needs them is refused",
}
INTRODUCTION = """# Fused operators on Ascend NPUs

No figure on this page, or anywhere in this project, was measured on an NPU: none was at hand. What was tested is that
every call fits the real torch_npu 2.14.0 and 2.13.0, and computes what torch_npu's documents say of it
(`.ci/npu-contract`).

```python
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pangu_modules.ascend.ops import explain, fused_ops
from pangu_modules.ascend.ops.fusing import fuse

sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes))
print(fuse(model))  # a LightningModule around a model will do too

x, weight = torch.randn(2, 32), torch.ones(32)
print(explain("rms_norm", x, weight))  # here: reference, because a tensor is on cpu

with fused_ops("off"):  # auto: where it can be; on: or an error with the remedy; off: never
    model(torch.arange(5)[None])
```

`FusedOperators()` of `pangu_modules.ascend.ops.callback` does so in any Lightning Trainer. Weights and checkpoints do
not change. Off the NPU every operator is its reference in stock torch. Rotary functions are replaced in transformers'
own modules, for all models of a family in the process, and call the old function off the NPU.

`python -m pangu_modules.ascend.ops.schemas` compares the functions of an installed torch_npu with the tested ones.

This page is written by `make tables`.
"""


def operator_rows() -> list[dict[str, str]]:
    """Return a row for each operator of the dispatch table."""
    return [
        {
            "operator": name,
            "torch_npu": operator.symbol,
            "types": ", ".join(str(dtype).removeprefix("torch.") for dtype in operator.dtypes),
            "gradients": GRADIENTS[operator.gradients],
        }
        for name, operator in OPERATORS.items()
    ]


def model_rows(family: str) -> list[dict[str, str]]:
    """Return what a family's model would run fused in training and inference, and why not."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import pangu_modules.llm.moge.modeling  # noqa: F401  its model types

    with torch.device("meta"):
        config = AutoConfig.for_model(family, num_hidden_layers=1, vocab_size=256, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    fusion = fuse(model)
    inputs = {
        "input_ids": torch.zeros(1, TOKENS, dtype=torch.int64, device="meta"),
        "attention_mask": torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool, device="meta"),
        "use_cache": False,
    }
    phases: dict[str, dict[str, str]] = {}
    for phase, gradients in (("training", True), ("inference", False)):
        with torch.set_grad_enabled(gradients), recorded() as records:
            model.train(gradients)(**inputs)
        phases[phase] = said(records)
    names = sorted({name for found in phases.values() for name in found})
    rows = [
        {"model": family, "what": name, **{phase: found.get(name, "") for phase, found in phases.items()}}
        for name in names
    ]
    left = [{"model": family, "what": what, "training": why, "inference": why} for what, why in fusion.left.items()]
    return rows + [{**row, "training": f"left: {row['training']}", "inference": "left"} for row in left]


def said(records: list[Explanation]) -> dict[str, str]:
    """Return for each operator that it is fused, or the reasons why not."""
    found: dict[str, list[str]] = {}
    for record in records:
        text = "fused" if record.fused else f"not: {record.reason}"
        texts = found.setdefault(record.operator, [])
        if text not in texts:
            texts.append(text)
    return {name: "; ".join(texts) for name, texts in found.items()}


def page() -> str:
    """Return the text of the page."""
    fill_seams("meta")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models: list[dict[str, Any]] = [row for family in FAMILIES for row in model_rows(family)]
    finally:
        empty_seams("meta")
    return "\n".join(
        (
            INTRODUCTION,
            "## What each model would run fused",
            "",
            "Families of transformers with their default sizes, and the released Pangu Pro MoE: one layer,",
            f"{TOKENS} tokens, bfloat16. The loss of this library's language models takes `cross_entropy` too.",
            "",
            markdown_table(table_of(models)),
            "",
            "## Predictions for the 800I A2",
            "",
            "**Predictions, not measurements**: a roofline from the card's data sheet, for one layer of Pangu Pro MoE",
            f"72B and {prediction.TOKENS} tokens on one device; see `benchmarks/methods/ascend/prediction.py`.",
            "",
            markdown_table(table_of(prediction.rows())),
            "",
            "## Operators",
            "",
            markdown_table(table_of(operator_rows())),
            "",
        )
    )


def main(arguments: list[str]) -> int:
    """Write or check the page; return 0, or 1 if a check finds it out of date."""
    return write_or_check("python -m benchmarks.pages.ascend", __doc__, PAGE, page, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
