import copy

import pytest
import torch
from pydantic import ValidationError
from tiny_llm import tiny_module, word_tokenizer

from pangu_modules.llm.generation.engine import GenerationEngine, pad_left
from pangu_modules.llm.generation.speculation import load_assistant


@pytest.fixture
def module(tmp_path):
    return tiny_module(data_tokenizer=word_tokenizer(tmp_path / "tokenizer")).eval()


def engine(module, **fields):
    return GenerationEngine.Config(**{"max_new_tokens": 6, **fields}).build(
        model=module.model, tokenizer=module.tokenizer
    )


def greedy(model, prompt, count, ends):
    """One token at a time, without a cache."""
    written = []
    while len(written) < count and not (written and written[-1] in ends):
        tokens = torch.tensor([[*prompt, *written]])
        written.append(int(model(tokens).logits[0, -1].argmax()))
    return written


def test_greedy_equals_one_token_at_a_time_with_prompts_of_unequal_length(module):
    prompts = [[5, 6, 7], [9], [11, 12, 13, 14, 15], [20, 21]]
    completions = engine(module, batch_size=3).generate(prompts)
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = greedy(module.model, prompt, 6, ends=[1, 2])
        assert list(completion.token_ids) == expected
        assert completion.text == module.tokenizer.decode(expected, skip_special_tokens=True)


def test_end_of_text_stops_one_row_and_not_the_others(module):
    prompts = [[5, 6, 7], [9]]
    free = engine(module).generate(prompts)
    module.model.generation_config.eos_token_id = [1, free[0].token_ids[1]]
    assert free[0].token_ids[1] not in free[1].token_ids
    stopped = engine(module).generate(prompts)
    assert stopped[0].token_ids == free[0].token_ids[:2]
    assert stopped[0].finish_reason == "stop"
    assert stopped[1] == free[1]
    assert free[1].finish_reason == "length"


def test_sampling_repeats_itself_follows_the_seed_and_leaves_training_alone(module):
    module.train()
    module.model.model.layers[0].eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prompts = [[5, 6, 7]] * 5
    sampler = engine(module, temperature=1.0)
    first, again, other = sampler.generate(prompts), sampler.generate(prompts), sampler.generate(prompts, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert first != other
    assert len(set(first)) > 1  # repeated prompts are samples of their own
    modes = [layer.training for layer in module.model.model.layers]
    assert modes == [False, True]
    assert module.model.training


def test_samples_follow_the_distribution(module):
    """Frequencies of 4000 first tokens against the softmax, and what top_k and top_p leave of it."""
    prompt = [5, 6, 7]
    with torch.no_grad():
        probabilities = (module.model(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    settings = {"temperature": 0.7, "max_new_tokens": 1, "batch_size": 4000}
    drawn = torch.tensor([c.token_ids[0] for c in engine(module, **settings).generate([prompt] * 4000)])
    frequencies = drawn.bincount(minlength=128) / 4000
    deviation = (probabilities * (1 - probabilities) / 4000).sqrt()
    # five standard deviations over 128 tokens: one false alarm in about 10000 seeds, and the seed is fixed
    assert ((frequencies - probabilities).abs() <= 5 * deviation + 1e-3).all()
    best = probabilities.topk(2).indices.tolist()
    limited = engine(module, **settings, top_k=2).generate([prompt] * 200)
    assert {c.token_ids[0] for c in limited} == set(best)
    nucleus = engine(module, **settings, top_p=float(probabilities.max()) * 0.9).generate([prompt] * 200)
    assert {c.token_ids[0] for c in nucleus} == {best[0]}


def test_texts_conversations_and_tokens_are_prompts(module):
    conversation = [{"role": "user", "content": "w1 w2"}]
    by_chat, by_text, by_tokens = engine(module).generate(
        [conversation, "<s> user w1 w2 </s> <s> assistant", [0, 3, 6, 7, 1, 0, 4]]
    )
    assert by_chat == by_text == by_tokens


def test_mistakes_in_prompts_are_named(module):
    with pytest.raises(ValueError, match="a prompt is empty"):
        engine(module).generate([[5], []])
    bare = GenerationEngine.Config().build(model=module.model)
    with pytest.raises(ValueError, match="no tokenizer"):
        bare.generate(["w1"])
    module.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        engine(module).generate([[{"role": "user", "content": "w1"}]])
    with pytest.raises(ValueError, match="needs a model in this process, or base_url"):
        GenerationEngine.Config().build()
    with pytest.raises(ValidationError, match="both or neither"):
        GenerationEngine.Config(base_url="http://127.0.0.1:1/v1")
    assert engine(module).generate([]) == []


def test_padding_is_on_the_left():
    input_ids, mask = pad_left([[5, 6, 7], [8]], 2)
    assert input_ids.tolist() == [[5, 6, 7], [2, 2, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.fixture
def drafter(module, tmp_path):
    """The model with its last layer gone, which often agrees with it."""
    small = copy.deepcopy(module.model)
    del small.model.layers[1]
    small.config.num_hidden_layers = 1
    small.save_pretrained(tmp_path / "drafter")
    load_assistant.cache_clear()
    return str(tmp_path / "drafter")


PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15]]


def test_speculative_decoding_writes_the_same(module, drafter):
    plain = engine(module, max_new_tokens=20).generate(PROMPTS)
    fast = engine(module, max_new_tokens=20, assistant=drafter, assistant_confidence=0)
    assert fast.generate(PROMPTS) == plain
    counts = fast.speculation
    assert counts.written == sum(len(completion.token_ids) for completion in plain)
    assert 0 < counts.accepted < counts.drafted
    assert counts.passes == counts.written - counts.accepted < counts.written
    assert counts.acceptance_rate == counts.accepted / counts.drafted


def test_accepted_tokens_are_those_the_drafter_gets_right(module, drafter):
    """Drafting and verifying by hand, without caches, for one prompt."""
    small, prompt, limit, drafts = load_assistant(drafter, torch.float32, torch.device("cpu")), [5, 6, 7], 20, 5
    written, passes, drafted = [], 0, 0
    while len(written) < limit:
        count = min(drafts, limit - len(written) - 1)
        proposed = greedy(small, [*prompt, *written], count, ends=[1, 2]) if count else []
        own = greedy(module.model, [*prompt, *written], count + 1, ends=[1, 2])
        right = next((i for i, (a, b) in enumerate(zip(proposed, own, strict=False)) if a != b), len(proposed))
        written += own[: right + 1]
        passes, drafted = passes + 1, drafted + len(proposed)
    fast = engine(module, max_new_tokens=limit, assistant=drafter, assistant_tokens=drafts, assistant_confidence=0)
    assert list(fast.generate([prompt])[0].token_ids) == written
    assert (fast.speculation.passes, fast.speculation.drafted) == (passes, drafted)


def test_a_drafter_equal_to_the_model_is_always_right(module, tmp_path):
    module.model.save_pretrained(tmp_path / "same")
    settings = {"assistant_tokens": 3, "assistant_confidence": 0}
    fast = engine(module, max_new_tokens=12, assistant=str(tmp_path / "same"), **settings)
    fast.generate([[5, 6, 7]])
    assert fast.speculation.acceptance_rate == 1
    assert fast.speculation.tokens_per_pass == 4


def test_drafters_that_do_not_fit_are_refused(module, tmp_path):
    tiny_module(model_args={"vocab_size": 64}).model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"vocabulary of 64, the model of 128"):
        engine(module, assistant=str(tmp_path / "other")).generate([[5]])
    with pytest.raises(ValidationError, match="assistant='x' drafts for a model in this process"):
        GenerationEngine.Config(assistant="x", base_url="http://127.0.0.1:1/v1", model="m")
