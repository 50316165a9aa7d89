"""Rows of a batch, of every family: what a cache gives equals reading each text again, alone."""

import pytest
import torch
from tiny_families import families, tiny_float64
from tiny_llm import tiny_module

from pangu_modules.llm.generation.decoding.rows import CachedRows, RecomputedRows, holds_rows, order_kept, pad_left
from pangu_modules.llm.generation.engine import GenerationEngine

PROMPTS = [[5, 6, 7], list(range(9, 29)), list(range(30, 37))]
OTHER = list(range(40, 47))  # as long as the last: see `decoding` about padding in float64
CACHED = ("bloom", "deepseek_v3", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "llama", "mistral", "opt", "qwen3_moe")
RECOMPUTED = ("bert", "cpmant", "deepseek_v32", "dory", "jamba", "mamba", "minimax", "roberta", "rwkv", "xlm", "xlnet")
NO_FLOAT64 = ("xglm",)  # its mask holds float32's least number


@torch.no_grad()
def check_family(model_type):
    """Seen: 1e-14 of the logits' deviation, and 1e-7 where eager attention takes its softmax in float32.

    A row that is shifted, or that sees another's keys, differs by 0.01 and more.
    """
    model = tiny_float64(model_type)
    assert holds_rows(model), model_type
    both = CachedRows(model, 4), RecomputedRows(model)
    more = CachedRows(model, 2), RecomputedRows(model)
    longer = CachedRows(model, 1), RecomputedRows(model)
    for rows, others, long in zip(both, more, longer, strict=True):
        rows.read(PROMPTS[:1])
        others.read([PROMPTS[2], OTHER])
        long.read(PROMPTS[1:2])

    def step(count, *tokens):
        for number in range(count):
            for rows in both:
                rows.step([(token + 7 * number) % 64 for token in tokens])
            difference = (both[0].logits - both[1].logits).abs().max() / both[1].logits.std()
            assert difference < 1e-5, f"{model_type}: {difference:.1e}"

    step(1, 8)
    for rows, others, long in zip(both, more, longer, strict=True):
        rows.add(others, [0, 1])
        rows.add(long, [0])
    step(3, 8, 9, 40, 50)
    for rows in both:
        rows.keep([0, 3, 2])
    step(3, 8, 9, 40)
    for rows in both:
        rows.keep([0, 2])
    for rows, long in zip(both, longer, strict=True):
        rows.add(long, [0])
    step(18, 8, 9, 10)


@pytest.mark.parametrize("model_type", CACHED)
def test_rows_that_leave_and_enter_equal_texts_read_alone(model_type):
    check_family(model_type)


@pytest.mark.parametrize("model_type", RECOMPUTED)
def test_families_with_another_state_are_known(model_type):
    assert not holds_rows(tiny_float64(model_type))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted({*families()} - {*CACHED, *RECOMPUTED, *NO_FLOAT64}))
def test_every_other_family_with_rows_gives_the_same(model_type):
    if holds_rows(tiny_float64(model_type)):
        check_family(model_type)


def test_a_model_with_another_state_writes_the_same_one_by_one_and_says_so():
    model = tiny_float64("mamba")
    engine = GenerationEngine.Config(max_new_tokens=4, batch_size=2).build(model=model)
    with pytest.warns(UserWarning, match="a mamba keeps a state that cannot be moved between batches"):
        found = engine.generate(PROMPTS)
    for prompt, rollout in zip(PROMPTS, found, strict=True):
        text = list(prompt)
        for _ in rollout.token_ids:
            with torch.no_grad():
                text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
        assert list(rollout.token_ids) == text[len(prompt) :]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_prompts_of_unequal_length_are_padded(model_type):
    """Catches padding that is read, in float32; seen: 2e-6 of the logits' deviation."""
    model = tiny_float64(model_type).float()
    rows = CachedRows(model, 3)
    with torch.no_grad():
        rows.read(PROMPTS)
        wanted = torch.cat([model(torch.tensor([prompt])).logits[:, -1] for prompt in PROMPTS])
    assert (rows.logits - wanted).abs().max() / wanted.std() < 1e-4


@torch.no_grad()
def test_long_texts_outgrow_their_buffers_and_later_ones_outgrow_the_batch():
    """Catches keys that are lost when a buffer grows, and stale ones left of a longer text."""
    model = tiny_module(model_args={"max_position_embeddings": 512}).model.eval().double()
    both = CachedRows(model, 3), RecomputedRows(model)
    generator = torch.Generator().manual_seed(0)

    def add(length):
        prompt = torch.randint(128, (length,), generator=generator).tolist()
        for rows, kind in zip(both, (lambda: CachedRows(model, 3), lambda: RecomputedRows(model)), strict=True):
            group = kind()
            group.read([prompt])
            rows.add(group, [0])

    def step(count):
        for _ in range(count):
            tokens = torch.randint(128, (len(both[0].logits),), generator=generator).tolist()
            for rows in both:
                rows.step(tokens)
            torch.testing.assert_close(both[0].logits, both[1].logits, rtol=0, atol=1e-10)

    add(3)
    step(150)
    add(20)
    step(5)
    for rows in both:
        rows.keep([1])  # the short text is left, and its columns begin far to the right
    add(190)
    step(70)
    for rows in both:
        rows.keep([])
    add(5)
    add(300)
    step(3)


def test_few_rows_move_when_some_leave():
    assert order_kept(5, {0, 3}) == [4, 1, 2]
    assert order_kept(4, {2, 3}) == [0, 1]
    assert order_kept(3, {0, 1, 2}) == []
    for leaving in ({1}, {0, 4}, {1, 2, 3}, set()):
        assert sorted(order_kept(5, leaving)) == sorted(set(range(5)) - leaving)


def test_padding_is_on_the_left():
    input_ids, mask = pad_left([[5, 6, 7], [8]])
    assert input_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
