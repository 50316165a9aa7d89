"""Log-probabilities of given texts, of every family, against whole logits of each text alone."""

import numpy as np
import pytest
import torch
from tiny_families import families, tiny_float64
from tiny_llm import tiny_module

from pangu_modules.llm.generation.decoding.rows import arguments_of
from pangu_modules.llm.generation.engine import GenerationEngine

SEQUENCES = [[5, 6, 7], list(range(9, 29)), [3], list(range(30, 37))]
# Caps, scales, biases, projections around the head, and bodies within bodies.
COMMON = ("bart", "cohere", "gemma2", "gpt2", "granite", "llama", "mamba", "minicpm3", "opt", "phi", "qwen3_moe")
WHOLE = ("cpmant", "prophetnet")
NO_FLOAT64 = ("xglm",)


@torch.no_grad()
def reference(model, sequence, top_k):
    """The log-probabilities of a text from all its logits."""
    logprobs = model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0, :-1].log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(sequence[1:], dtype=torch.long)[:, None])[:, 0]
    return own, *logprobs.topk(top_k)


def check_scores(model, **settings):
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # far into a family's cap
    engine = GenerationEngine.Config(batch_size=2, chunk_tokens=5, **settings).build(model=model)
    for sequence, scores in zip(SEQUENCES, engine.score(SEQUENCES, top_k=3), strict=True):
        own, values, tokens = reference(model, sequence, 3)
        # Scores are float32, and so are the logits of some heads: 1e-7 of the largest log-probability.
        rounding = 4e-7 * float(torch.cat([torch.ones(1), own.abs(), values.abs().flatten()]).max())
        np.testing.assert_allclose(scores.logprobs, own.numpy(), rtol=3e-7, atol=rounding)
        np.testing.assert_allclose(scores.top_logprobs, values.numpy(), rtol=3e-7, atol=rounding)
        assert scores.top_ids.tolist() == tokens.tolist()
        types = (scores.logprobs.dtype, scores.top_ids.dtype, scores.top_logprobs.dtype)
        assert types == (np.float32, np.int32, np.float32)


@pytest.mark.parametrize("model_type", COMMON)
def test_scores_equal_those_of_whole_logits(model_type):
    """Catches a head without its family's scale, cap or projection, and targets that are shifted."""
    check_scores(tiny_float64(model_type))


@pytest.mark.parametrize("model_type", WHOLE)
def test_families_whose_head_cannot_be_split_say_so(model_type):
    with pytest.warns(UserWarning, match=f"a {model_type} gives no hidden states apart from its head"):
        check_scores(tiny_float64(model_type))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted({*families()} - {*COMMON, *WHOLE, *NO_FLOAT64}))
def test_scores_of_every_other_family_equal_those_of_whole_logits(model_type):
    check_scores(tiny_float64(model_type))


def test_logits_exist_for_few_tokens_at_a_time():
    """Catches a body that also runs the head over the whole batch."""
    model = tiny_module().model.eval()
    rows = []
    model.lm_head.register_forward_hook(lambda head, args, output: rows.append(output[..., 0].numel()))
    GenerationEngine.Config(batch_size=4, chunk_tokens=6).build(model=model).score(SEQUENCES * 3, top_k=2)
    assert max(rows) == 6
    tokens = 3 * sum(len(sequence) - 1 for sequence in SEQUENCES)
    assert tokens <= sum(rows) < tokens + 10  # and one to find the body with, for each batch


def test_scores_do_not_depend_on_the_batch():
    """Seen: equal to float32's last digit; padding that is read moves them by 0.01 and more."""
    model = tiny_module().model.eval().double()
    found = [
        GenerationEngine.Config(batch_size=size, chunk_tokens=chunk).build(model=model).score(sequences, top_k=4)
        for size, chunk, sequences in ((1, 1, SEQUENCES), (3, 7, SEQUENCES), (8, 1024, SEQUENCES[::-1]))
    ]
    for one, two, three in zip(found[0], found[1], found[2][::-1], strict=True):
        for other in (two, three):
            np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=3e-7)
            np.testing.assert_array_equal(one.top_ids, other.top_ids)


def test_generated_log_probabilities_are_those_of_scoring():
    model = tiny_module().model.eval().double()
    engine = GenerationEngine.Config(temperature=0.8, max_new_tokens=9, logprobs=True, samples=2).build(model=model)
    rollouts = engine.generate([[5, 6, 7], [9]])
    scores = engine.score([[*rollout.prompt_ids, *rollout.token_ids] for rollout in rollouts])
    for rollout, score in zip(rollouts, scores, strict=True):
        np.testing.assert_allclose(score.logprobs[len(rollout.prompt_ids) - 1 :], rollout.logprobs, rtol=3e-7)


def test_a_body_with_a_forward_pass_of_its_own_gets_it_back():
    model = tiny_module().model.eval()
    original = model.model.forward
    model.model.forward = original  # as hooks of accelerate set it
    engine = GenerationEngine.Config().build(model=model)
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        engine.score([[5], []])
    engine.score(SEQUENCES)
    assert model.model.forward is original
    assert "input_ids" in arguments_of(model.model)


def test_texts_that_cannot_be_scored_are_named():
    engine = GenerationEngine.Config().build(model=tiny_module().model)
    with pytest.raises(ValueError, match="sequence 0 has token 128: the model's tokens are 0 to 127"):
        engine.score([[128, 5]])
    with pytest.raises(ValueError, match="top_k=129: the model has 128 tokens; give 0 to 128"):
        engine.score([[5, 6]], top_k=129)
    assert engine.score([]) == []
    assert engine.score([[5]], top_k=2)[0].top_ids.shape == (0, 2)
