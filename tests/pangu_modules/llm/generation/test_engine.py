import copy
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from tiny_llm import tiny_module, word_tokenizer

from pangu_modules.llm.generation.decoding.speculation import load_assistant
from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.generation.weights_hash import weights_hash


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
    sampler = engine(module, temperature=1.0, samples=5)
    first, again, other = (sampler.generate([[5, 6, 7]], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert not {rollout.token_ids for rollout in first} & {rollout.token_ids for rollout in other}
    assert len({rollout.token_ids for rollout in first}) > 1
    modes = [layer.training for layer in module.model.model.layers]
    assert modes == [False, True]
    assert module.model.training


def test_samples_follow_the_distribution(module):
    """Frequencies of 4000 first tokens against the softmax, and what top_k and top_p leave of it."""
    prompt = [5, 6, 7]
    with torch.no_grad():
        probabilities = (module.model(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    settings = {"temperature": 0.7, "max_new_tokens": 1, "batch_size": 4000}

    def first_tokens(samples, **limits):
        return [r.token_ids[0] for r in engine(module, **settings, **limits).generate([prompt], samples=samples)]

    frequencies = torch.tensor(first_tokens(4000)).bincount(minlength=128) / 4000
    deviation = (probabilities * (1 - probabilities) / 4000).sqrt()
    # five standard deviations over 128 tokens: one false alarm in about 10000 seeds, and the seed is fixed
    assert ((frequencies - probabilities).abs() <= 5 * deviation + 1e-3).all()
    best = probabilities.topk(2).indices.tolist()
    assert set(first_tokens(200, top_k=2)) == set(best)
    assert set(first_tokens(200, top_p=float(probabilities.max()) * 0.9)) == {best[0]}


MANY = [[5, 6, 7], [9], [11, 12, 13, 14, 15], [20, 21], [9, 8, 7, 6], [30]]


@pytest.fixture
def exact(module):
    """In float64 a batch rounds too little to change a token."""
    module.model.double()
    return module


@pytest.mark.parametrize("limits", [{}, {"top_p": 0.9, "top_k": 40}])
def test_a_completion_depends_on_seed_prompt_and_sample_alone(exact, limits):
    """Catches a generator that the batch shares or that is seeded by the place in it, and rows that mix in the cache.

    The end tokens make rows leave and others enter in another order for each batch size.
    """
    exact.model.generation_config.eos_token_id = list(range(40, 50))
    settings = {"temperature": 1.0, "max_new_tokens": 12, "samples": 4, "logprobs": True, **limits}
    wanted = engine(exact, batch_size=1, **settings).generate(MANY)
    assert len({rollout.token_ids for rollout in wanted}) > 20
    assert {rollout.finish_reason for rollout in wanted} == {"stop", "length"}
    assert len({len(rollout.token_ids) for rollout in wanted}) > 5
    for size in (3, 8, 24):
        check_same(engine(exact, batch_size=size, **settings).generate(MANY), wanted)
    by_prompt = {prompt: wanted[4 * row : 4 * row + 4] for row, prompt in enumerate(map(tuple, MANY))}
    sampler = engine(exact, batch_size=3, **settings)
    shuffled = [MANY[row] for row in (4, 0, 5, 2, 1, 3)]
    check_same(sampler.generate(shuffled), [each for prompt in shuffled for each in by_prompt[tuple(prompt)]])
    later = sampler.generate(MANY, samples=2, first_sample=2)
    check_same(later, [each for prompt in MANY for each in by_prompt[tuple(prompt)][2:]])
    check_same(sampler.generate([MANY[2]], samples=1, first_sample=3), [by_prompt[tuple(MANY[2])][3]])


def check_same(found, wanted):
    """Equal but for the rounding of log-probabilities; seen: 1e-14 in float64."""
    assert [replace(each, logprobs=None, sampled_logprobs=None) for each in found] == [
        replace(each, logprobs=None, sampled_logprobs=None) for each in wanted
    ]
    for one, other in zip(found, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-10)
        assert one.sampled_logprobs == pytest.approx(other.sampled_logprobs, abs=1e-10)


def test_samples_share_one_reading_of_their_prompt(module):
    """Catches a prompt that is read again for samples that did not fit into the first batch."""
    read = []
    module.model.register_forward_pre_hook(
        lambda model, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    engine(module, temperature=1.0, max_new_tokens=3, batch_size=4).generate([[5, 6, 7, 8], [9, 10]], samples=6)
    assert [shape for shape in read if shape[1] > 1] == [(1, 4), (1, 2)]


def test_rows_leave_at_once_and_others_take_their_places(module):
    """Catches rows that are computed after their end, and places that stay empty while prompts wait."""
    rows = []
    module.model.register_forward_pre_hook(
        lambda model, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    free = engine(module, batch_size=1, max_new_tokens=9).generate(MANY)
    rows.clear()
    module.model.generation_config.eos_token_id = [token for rollout in free[::2] for token in rollout.token_ids[1:3]]
    ended = engine(module, batch_size=2, max_new_tokens=9).generate(MANY)
    assert len({len(rollout.token_ids) for rollout in ended}) > 2
    steps = [shape[0] for shape in rows if shape[1] == 1 and shape != (1, 1)] + [1] * rows.count((1, 1))
    written = sum(len(rollout.token_ids) for rollout in ended)
    # A token of each completion comes from reading the prompt, and the last one is never read. Prompts of one token
    # are read in a pass of one column too.
    short = sum(len(prompt) == 1 for prompt in MANY)
    assert sum(steps) == written - len(MANY) + short


def test_a_rollout_tells_all_about_its_making(module):
    """Log-probabilities against one pass over the whole text; at temperature 0.5 with top_k 9 the likeliest nine."""
    module.model.double()
    settings = {"temperature": 0.5, "top_k": 9, "logprobs": True, "seed": 11}
    rollouts = engine(module, **settings).generate([[5, 6, 7], [9]], samples=2, first_sample=3)
    assert [(rollout.prompt_ids, rollout.sample) for rollout in rollouts] == [
        ((5, 6, 7), 3),
        ((5, 6, 7), 4),
        ((9,), 3),
        ((9,), 4),
    ]
    for rollout in rollouts:
        text = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        with torch.no_grad():
            logits = module.model(text).logits[0, len(rollout.prompt_ids) - 1 : -1]
        for row, token, own, sampled in zip(
            logits, rollout.token_ids, rollout.logprobs, rollout.sampled_logprobs, strict=True
        ):
            assert own == pytest.approx(float(row.log_softmax(-1)[token]), abs=1e-10)
            kept = row.topk(9)
            chosen = float((kept.values / 0.5).log_softmax(-1)[kept.indices == token])
            assert sampled == pytest.approx(chosen, abs=1e-10)
        assert rollout.policy_mask == (True,) * len(rollout.token_ids)
        assert rollout.seed == 11
        assert rollout.model == weights_hash(module.model)
    (greedy_one,) = engine(module, logprobs=True).generate([[5]])
    assert set(greedy_one.sampled_logprobs) == {0.0}
    assert engine(module).generate([[5]])[0].logprobs is None


def test_a_stop_string_ends_a_completion(module):
    (free,) = engine(module).generate([[5, 6, 7]])
    words = free.text.split()
    (stopped,) = engine(module, stop=(f"{words[2]} {words[3]}",)).generate([[5, 6, 7]])
    assert (stopped.finish_reason, stopped.token_ids) == ("stop_string", free.token_ids[:4])
    assert stopped.text == f"{words[0]} {words[1]} "
    (by_token,) = engine(module, stop_token_ids=(free.token_ids[2],)).generate([[5, 6, 7]])
    assert (by_token.finish_reason, by_token.token_ids) == ("stop", free.token_ids[:3])


def test_the_weights_hash_follows_training_and_nothing_else(module):
    before = weights_hash(module.model)
    assert weights_hash(copy.deepcopy(module.model)) == before
    assert weights_hash(tiny_module(seed=1).model) != before
    assert engine(module).generate([[5]])[0].model == before
    with torch.no_grad():
        module.model.model.norm.weight.add_(1e-6)  # an engine is not built anew for each step of training
    assert engine(module).generate([[5]])[0].model not in ("", before)
    assert weights_hash(copy.deepcopy(module.model).bfloat16()) != weights_hash(module.model)


def test_texts_conversations_and_tokens_are_prompts(module):
    conversation = [{"role": "user", "content": "w1 w2"}]
    by_chat, by_text, by_tokens = engine(module).generate(
        [conversation, "<s> user w1 w2 </s> <s> assistant", [0, 3, 6, 7, 1, 0, 4]]
    )
    assert by_chat == by_text == by_tokens


def test_mistakes_in_prompts_are_named(module):
    with pytest.raises(ValueError, match="a prompt is empty"):
        engine(module).generate([[5], []])
    with pytest.raises(ValueError, match="the prompt ' ' has no tokens"):
        engine(module).generate([" "])
    with pytest.raises(ValueError, match="prompt 1 has token 128: the model's tokens are 0 to 127"):
        engine(module).generate([[5], [128]])
    with pytest.raises(ValueError, match=r"prompt 0 has 64 tokens, of the model's 64 positions .*give at most 63"):
        engine(module).generate([[5] * 64])
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


def test_settings_that_do_not_fit_the_model_are_named(module):
    with pytest.raises(ValueError, match=r"top_k=129: the model has 128 tokens; give at most that, or 0"):
        engine(module, temperature=1.0, top_k=129).generate([[5]])
    with pytest.raises(ValueError, match=r"stop_token_ids=128: the model's tokens are 0 to 127"):
        engine(module, stop_token_ids=(128,)).generate([[5]])
    with pytest.raises(ValueError, match=r"samples=0 from first_sample=0: give at least 1"):
        engine(module).generate([[5]], samples=0)
    with pytest.raises(ValidationError, match=r"assistant='x' gives no log-probabilities: leave logprobs off"):
        GenerationEngine.Config(assistant="x", logprobs=True)


def test_a_completion_ends_with_the_positions_and_says_so(module):
    prompts = [[5] * 60, [5, 6]]
    with pytest.warns(
        UserWarning, match="1 of 2 prompts leave fewer than max_new_tokens=6 of the model's 64 positions"
    ):
        short, whole = engine(module).generate(prompts)
    assert (len(short.token_ids), short.finish_reason) == (4, "length")
    assert len(whole.token_ids) == 6


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
    with pytest.raises(ValueError, match="stop='</s>' can never occur"):
        engine(module, assistant=drafter, stop=("</s>",)).generate(PROMPTS)
    counts = fast.speculation
    assert counts.written == sum(len(completion.token_ids) for completion in plain)
    assert 0 < counts.accepted < counts.drafted
    assert counts.passes == counts.written - counts.accepted < counts.written
    assert counts.acceptance_rate == counts.accepted / counts.drafted


def test_speculative_decoding_stops_as_the_loop_does(module, drafter):
    plain = engine(module, max_new_tokens=20).generate(PROMPTS)
    stop = (" ".join(plain[0].text.split()[2:4]),)
    wanted = engine(module, max_new_tokens=20, stop=stop).generate(PROMPTS)
    assert wanted[0].finish_reason == "stop_string"
    assert engine(module, max_new_tokens=20, stop=stop, assistant=drafter).generate(PROMPTS) == wanted


def test_speculative_samples_depend_on_seed_prompt_and_sample_alone(module, drafter):
    sampler = engine(module, max_new_tokens=8, temperature=1.0, assistant=drafter)
    wanted = sampler.generate(PROMPTS, samples=2)
    assert len({rollout.token_ids for rollout in wanted}) > 4
    assert sampler.generate(PROMPTS[::-1], samples=2) == [*wanted[4:], *wanted[2:4], *wanted[:2]]
    assert sampler.generate(PROMPTS[1:2], samples=1, first_sample=1) == wanted[3:4]


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
