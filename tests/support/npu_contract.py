"""Run by a Python that has torch_npu: makes every call of the dispatch table to the real wheel, on the meta device.

It prints one JSON object: the versions, differences of signatures, and for each operator, and for a whole layer of
Pangu Pro MoE, what went wrong. The folder of this file and the repository's root must be importable.
"""

from __future__ import annotations

import json
import sys

import torch
import torch_npu
from npu_checks import examples, several, through

from pangu_modules.ascend.ops import OPERATORS, schemas

# Its shape function asks the device for a random state first; by then its arguments have been taken.
NEEDS_A_DEVICE = {"npu_fusion_attention": "No NPUs are available"}


class Counting:
    """torch_npu, with the calls counted."""

    def __init__(self):
        self.calls = {}

    def __getattr__(self, symbol):
        function = getattr(torch_npu, symbol)

        def call(*args, **kwargs):
            self.calls[symbol] = self.calls.get(symbol, 0) + 1
            return function(*args, **kwargs)

        return call


def shapes(outputs):
    return [(list(output.shape), str(output.dtype)) for output in several(outputs)]


def problems_of(operator, signatures):
    found = []
    for dtype in operator.dtypes:
        for example in examples(operator, dtype, "meta"):
            where = f"{example.name}, {dtype}: "
            call = operator.call(*example.args, **example.kwargs)
            reason = schemas.misfit(operator.symbol, call.args, call.kwargs, signatures)
            if reason is not None:
                found.append(where + reason)
                continue
            try:
                with torch.no_grad(), through(torch_npu, "meta", "on"):
                    outputs = operator(*example.args, **example.kwargs)
            except RuntimeError as error:
                if NEEDS_A_DEVICE.get(operator.symbol, "\0") not in str(error):
                    found.append(where + str(error).splitlines()[0])
                continue
            wanted = shapes(operator.reference(*example.args, **example.kwargs))
            if shapes(outputs) != wanted:
                found.append(f"{where}{shapes(outputs)}, not {wanted}")
    return found


def whole_layer():
    """The released model's sizes, one layer of it: prefill, without gradients, every operator fused or an error."""
    from pangu_modules.ascend.ops.fusing import fuse
    from pangu_modules.ascend.ops.fusing.seams import fill_seams
    from pangu_modules.llm.moge.configuration import PanguProMoEConfig
    from pangu_modules.llm.moge.modeling import PanguProMoEForCausalLM

    with torch.device("meta"):
        model = PanguProMoEForCausalLM(PanguProMoEConfig(num_hidden_layers=1)).to(torch.bfloat16).eval()
    fuse(model)
    fill_seams("meta")
    library, decoder = Counting(), model.model
    tokens = torch.empty(2, 64, model.config.hidden_size, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), through(library, "meta", "on"):
        places = decoder.rotary_emb(tokens, torch.arange(64, device="meta")[None])
        output = decoder.norm(decoder.layers[0](tokens, position_embeddings=places))
    return {"shape": list(output.shape), "calls": library.calls}


def main():
    signatures = schemas.installed()
    result = {
        "torch": torch.__version__,
        "torch_npu": torch_npu.__version__,
        "differences": schemas.differences(signatures),
        "operators": {name: problems_of(operator, signatures) for name, operator in OPERATORS.items()},
        "layer": whole_layer(),
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
