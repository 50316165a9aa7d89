"""The stream ends where it is needed, with what the layers before pass on, and holds no more than it needs."""

from __future__ import annotations

import pytest
import torch

from pangu_modules.llm.calibration.stream import catch_stream, layer_similarities

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


def test_sublayers_keep_their_values_in_the_same_memory(tiny_model):
    stream = catch_stream(tiny_model("llama"), BATCHES)
    wide = [torch.full((2, 12, 48), float(index)) for index in range(3)]
    kept = [stream.keep(index, values.double()) for index, values in enumerate(wide)]
    assert all(torch.equal(a, b.double()) for a, b in zip(kept, wide, strict=True))
    narrow = [torch.full((2, 12, 24), -1.0 - index) for index in range(3)]
    again = [stream.keep(index, values.double()) for index, values in enumerate(narrow)]
    assert all(torch.equal(a, b.double()) for a, b in zip(again, narrow, strict=True))
    assert len({values.untyped_storage().data_ptr() for values in kept + again}) == 1
    assert len({hidden.untyped_storage().data_ptr() for hidden in stream.hidden}) == 1


def test_rotary_embeddings_of_equal_batches_are_held_once(tiny_model):
    short = {"input_ids": BATCHES[0]["input_ids"][:, :7]}
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:] = 0
    padded = BATCHES[1] | {"attention_mask": mask}
    stream = catch_stream(tiny_model("qwen2"), [BATCHES[0], BATCHES[1], padded, short])
    for kind in set(stream.kinds):
        first, second, third, fourth = (named[kind] for named in stream.arguments)
        assert first["position_embeddings"] is second["position_embeddings"] is third["position_embeddings"]
        assert fourth["position_embeddings"][0].shape[1] == 7
        assert third["attention_mask"] is not second["attention_mask"]
