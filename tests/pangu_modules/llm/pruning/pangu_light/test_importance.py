"""Scores of every axis against loops over single tokens, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from pangu_modules.llm.pruning.pangu_light.importance import ImportanceCollector, collect_importance

HEADS, HEAD_DIM, LAYERS = 6, 8, 4  # of the tiny models in conftest.py
SEQUENCES = [torch.randint(1, 61, (length,), generator=torch.Generator().manual_seed(length)) for length in (9, 5, 7)]


def padded(sequences, side: str = "right"):
    width = max(len(ids) for ids in sequences)
    ids, mask = torch.zeros(2, len(sequences), width, dtype=torch.long)
    for row, tokens in enumerate(sequences):
        where = slice(len(tokens)) if side == "right" else slice(width - len(tokens), width)
        ids[row, where], mask[row, where] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}


def capture(model, ids):
    """Return one sequence's norm outputs, o_proj inputs, down_proj inputs, and layer inputs and outputs."""
    norms, heads, channels, stream = [], [], [], []
    handles = [model.model.norm.register_forward_hook(lambda m, a, out: norms.append(out[0]))]
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            handles.append(norm.register_forward_hook(lambda m, a, out: norms.append(out[0])))
        handles.append(layer.self_attn.o_proj.register_forward_hook(lambda m, a, out: heads.append(a[0][0])))
        handles.append(layer.mlp.down_proj.register_forward_hook(lambda m, a, out: channels.append(a[0][0])))
        handles.append(layer.register_forward_hook(lambda m, a, out: stream.append((a[0][0], out[0]))))
    with torch.no_grad():
        model(ids[None])
    for handle in handles:
        handle.remove()
    return norms, heads, channels, stream


def aggregate(per_token_by_sequence, agg_batch, agg_seq):
    """Combine one scalar per token; sequences count by their tokens."""
    lengths = [len(values) for values in per_token_by_sequence]
    per_sequence = []
    for values in per_token_by_sequence:
        power = 2 if agg_seq == "l2" else 1
        per_sequence.append((sum(value**power for value in values) / len(values)) ** (1 / power))
    power = 2 if agg_batch == "l2" else 1
    total = sum(length * value**power for length, value in zip(lengths, per_sequence, strict=True))
    return (total / sum(lengths)) ** (1 / power)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(("agg_batch", "agg_seq"), itertools.product(("mean", "l2"), repeat=2))
@pytest.mark.parametrize("head_score", ["norm", "contribution"])
def test_scores_equal_loops_over_single_tokens(tiny_model, family, agg_batch, agg_seq, head_score):
    model = tiny_model(family)
    got = collect_importance(model, [padded(SEQUENCES)], agg_batch=agg_batch, agg_seq=agg_seq, head_score=head_score)
    raw = [capture(model, ids) for ids in SEQUENCES]

    def score(values_of_sequence):
        return aggregate([[float(v) for v in values_of_sequence(sequence)] for sequence in raw], agg_batch, agg_seq)

    hidden_channel, channel, layer, head = 5, 11, 2, 4
    want = sum(
        score(lambda sequence, n=norm: [token[hidden_channel].abs() for token in sequence[0][n]])
        for norm in range(2 * LAYERS + 1)
    )
    assert float(got.hidden[hidden_channel]) == pytest.approx(want, rel=1e-12)
    want = score(lambda sequence: [token[channel].abs() for token in sequence[2][layer]])
    assert float(got.channels[layer, channel]) == pytest.approx(want, rel=1e-12)

    columns = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    weight = model.model.layers[layer].self_attn.o_proj.weight.detach()[:, columns]

    def head_norm(token):
        output = token[columns]
        return (output if head_score == "norm" else weight @ output).norm()

    want = score(lambda sequence: [head_norm(token) for token in sequence[1][layer]])
    # the contribution is computed through a Gram matrix: 1e-14 measured
    assert float(got.heads[layer, head]) == pytest.approx(want, rel=1e-12)

    cosines = [float(x @ y / x.norm() / y.norm()) for _, _, _, s in raw for x, y in zip(*s[layer], strict=True)]
    assert float(got.layers[layer]) == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-12)


def test_shapes(tiny_model):
    scores = collect_importance(tiny_model("llama"), [padded(SEQUENCES)])
    assert (scores.hidden.shape, scores.heads.shape) == ((24,), (LAYERS, HEADS))
    assert (scores.channels.shape, scores.layers.shape) == ((LAYERS, 28), (LAYERS,))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("aggregation", ["mean", "l2"])
def test_padding_and_batching_change_nothing(tiny_model, side, aggregation):
    model = tiny_model("llama")
    options = {"agg_batch": aggregation, "agg_seq": aggregation}
    whole = collect_importance(model, [padded(SEQUENCES, side)], **options)
    single = collect_importance(model, [{"input_ids": ids[None]} for ids in SEQUENCES], **options)
    for name in ("hidden", "heads", "channels", "layers"):
        # rotary positions shift under left padding, and rounding to float32 inside the norms with them: 1e-7 measured
        torch.testing.assert_close(getattr(whole, name), getattr(single, name), rtol=1e-6, atol=1e-7)


def test_hooks_change_no_output_and_leave_nothing_behind(tiny_model):
    model = tiny_model("llama").train()
    ids = SEQUENCES[0][None]
    with torch.no_grad():
        before = model(ids).logits
        with ImportanceCollector(model):
            during = model(ids).logits
    assert torch.equal(before, during)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    collect_importance(model, [{"input_ids": ids}])
    assert model.training


def test_bfloat16_scores_are_close_to_float64(tiny_model):
    model = tiny_model("llama")
    exact = collect_importance(model, [padded(SEQUENCES)])
    rough = collect_importance(model.to(torch.bfloat16), [padded(SEQUENCES)])
    assert rough.hidden.dtype == torch.float64
    # bfloat16 keeps 8 bits; 2 % measured after four layers
    torch.testing.assert_close(rough.hidden, exact.hidden, rtol=0.06, atol=0)


def test_the_first_module_that_is_not_finite_is_named(tiny_model):
    model = tiny_model("llama")
    model.model.layers[1].self_attn.v_proj.weight.data[3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.o_proj are not finite"):
        collect_importance(model, [padded(SEQUENCES)])


def test_layer_norm_is_refused_by_name(tiny_model):
    model = tiny_model("llama")
    model.model.layers[2].input_layernorm = torch.nn.LayerNorm(24).double()
    with pytest.raises(ValueError, match=r"layers\.2\.input_layernorm is LayerNorm"):
        ImportanceCollector(model)


def test_uneven_layers_are_refused(tiny_model):
    from pangu_modules.llm.pruning.surgery import keep_channels

    model = tiny_model("llama")
    keep_channels(model.model.layers[1], range(20))
    with pytest.raises(ValueError, match="2 different shapes"):
        ImportanceCollector(model)


def test_nothing_to_calibrate_on_is_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="calibration has no tokens"):
        collect_importance(model, [])
    with ImportanceCollector(model) as collector:
        pass
    with pytest.raises(ValueError, match="no batch passed through"):
        collector.importance()
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(batch, seq\)"), ImportanceCollector(model):
        model(SEQUENCES[0][None], attention_mask=torch.zeros(1, 1, 9, 9, dtype=torch.float64))
