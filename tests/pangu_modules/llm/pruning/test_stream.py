"""The stream ends where it is needed, with what the layers before pass on, however the first batch misleads."""

from __future__ import annotations

import pytest
import torch

from pangu_modules.llm.pruning.stream import catch_stream, layer_similarities

BATCHES = [
    {"input_ids": torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(seed))} for seed in range(3)
]


@pytest.mark.parametrize("answers", [(0, 0), (2, 2), (1, 3), (3, 1), (4, 4), (2, 0)])
def test_the_stream_is_moved_to_the_layer_that_is_needed(tiny_model, answers):
    model = tiny_model("llama")
    given = iter(answers)  # for the first batch's similarities, then for those of all
    with torch.no_grad():
        stream = catch_stream(model, BATCHES)
        similarities = layer_similarities(model, stream, lambda seen: next(given))
        assert similarities == layer_similarities(model, catch_stream(model, BATCHES))
        for index, batch in enumerate(BATCHES):
            states = model.model(**batch, output_hidden_states=True).hidden_states
            hidden = stream.hidden[index]
            # The last of the model's states is behind the final norm.
            assert torch.equal(model.model.norm(hidden) if answers[1] == 4 else hidden, states[answers[1]])


def test_the_stream_stays_where_it_is_if_nothing_is_asked(tiny_model):
    model = tiny_model("llama")
    stream = catch_stream(model, BATCHES)
    before = [hidden.clone() for hidden in stream.hidden]
    with torch.no_grad():
        layer_similarities(model, stream)
    assert all(torch.equal(a, b) for a, b in zip(stream.hidden, before, strict=True))
