"""The client against a real server over HTTP, which fails on purpose."""

import asyncio
import io
import random
import sys

import numpy as np
import pytest
import torch
from openai_server import body, complete, cut_json, dripping, faults, reset, settings, status, truncated

from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.generation.records import IncompleteGenerationError
from pangu_modules.llm.generation.server.calls import score_on_server

CONVERSATION = [{"role": "user", "content": "w3 w4"}]
PROMPTS = ["w1 w2 w3", [9, 10], CONVERSATION, "w7", [11, 12, 13, 14], "w5 w6", [30], "w9 w9 w9", [40, 41], "w2"]
SOON = {"Retry_After": "0"}


def in_process(module, prompts):
    engine = GenerationEngine.Config(max_new_tokens=6).build(model=module.model, tokenizer=module.tokenizer)
    return engine.generate(prompts)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_prompt_gets_the_answer_of_the_engine_in_this_process_whatever_fails(server, module, batch_size):
    """Fails if an order is lost, a fault is not tried again, or a half body passes for an answer."""
    wrong = {
        0: status(503, "busy"),
        1: status(429, "slowly", **SOON),
        3: reset,
        4: truncated,
        6: cut_json,
        7: body(b"<html>"),
        8: status(500),
        10: status(502, "gone", **SOON),
    }
    faults(server, wrong)
    with pytest.warns(UserWarning, match=r"8 further tries \(.*: 2"):  # two that are not JSON
        found = complete(server, PROMPTS, batch_size=batch_size)
    wanted = in_process(module, PROMPTS)
    assert [rollout.token_ids for rollout in found] == [one.token_ids for one in wanted]
    assert [rollout.text for rollout in found] == [one.text for one in wanted]
    assert [rollout.finish_reason for rollout in found] == [one.finish_reason for one in wanted]
    assert len(server.asked) == len(PROMPTS) + len(wrong)
    assert all(rollout.policy_mask == (True,) * len(rollout.token_ids) for rollout in found)
    assert {rollout.model for rollout in found} == {"tiny"}


def test_a_body_that_drips_beyond_the_time_out_is_tried_again(server, module):
    """Fails with a time-out for each byte, which such a body never reaches."""
    faults(server, {0: dripping})
    with pytest.warns(UserWarning, match=r"did not answer within timeout=0\.5 seconds"):
        found = complete(server, ["w1"], timeout=0.5, retries=20)
    assert found[0].token_ids == in_process(module, ["w1"])[0].token_ids


def test_one_failed_prompt_does_not_discard_the_others(server, module):
    server.fault = lambda number, question: status(503, "no") if question.get("prompt") == [9, 10] else None
    with pytest.warns(UserWarning, match="2 further tries"), pytest.raises(IncompleteGenerationError) as caught:
        complete(server, PROMPTS, retries=2, batch_size=3)
    error = caught.value
    assert list(error.failures) == [1]
    assert "503 Service Unavailable: '\"no\"' in each of 3 tries (retries=2)" in error.failures[1]
    wanted = in_process(module, PROMPTS)
    for number, rollout in enumerate(error.rollouts):
        assert (rollout is None) == (number == 1)
        assert rollout is None or rollout.token_ids == wanted[number].token_ids
    assert sum(question["prompt"] == [9, 10] for _, _, question in server.asked if "prompt" in question) == 3


def test_one_prompt_that_is_too_long_is_not_tried_again_and_keeps_the_others(server):
    message = {"error": {"message": "This model's maximum context length is 64 tokens."}}
    server.fault = lambda number, question: status(400, message) if question.get("prompt") == "w7" else None
    with pytest.raises(
        IncompleteGenerationError, match=r"1 of 10 .*400 Bad Request.*shorten the prompt, or lower max_new"
    ):
        complete(server, PROMPTS)
    assert len(server.asked) == len(PROMPTS)


def test_what_fails_everywhere_is_not_asked_for_ever(server):
    server.fault = lambda number, question: status(400, "no such setting")
    with pytest.raises(ConnectionError, match="400 Bad Request for model 'tiny': '\"no such setting\"'"):
        complete(server, [[5 + number] for number in range(60)], batch_size=2)
    assert len(server.asked) <= 9


def test_samples_depend_on_seed_prompt_and_number_alone(server):
    """Fails where a request's seed counts requests, or samples share a seed."""
    choice = {"temperature": 1.0, "logprobs": True}
    found = complete(server, PROMPTS[:4], 7, 3, batch_size=1, **choice)
    assert [rollout.sample for rollout in found] == [0, 1, 2] * 4
    assert {rollout.seed for rollout in found} == {7}
    assert len({rollout.token_ids for rollout in found}) == 12
    assert complete(server, PROMPTS[:4], 7, 3, batch_size=5, **choice) == found
    backwards = complete(server, PROMPTS[:4][::-1], 7, 2, first_sample=1, **choice)
    assert backwards == [found[number] for number in (10, 11, 7, 8, 4, 5, 1, 2)]
    assert complete(server, PROMPTS[:4], 8, 3, **choice) != found
    assert all(0 <= question.get("seed", 0) < 2**31 for _, _, question in server.asked)


def test_the_engine_reaches_the_server(server, module):
    remote = settings(server).build()
    assert [one.token_ids for one in remote.generate(PROMPTS)] == [one.token_ids for one in in_process(module, PROMPTS)]


def test_random_numbers_of_the_process_are_not_used(server):
    faults(server, {0: status(503)})
    before = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    with pytest.warns(UserWarning, match="further tries"):
        complete(server, ["w1"], temperature=1.0)
    assert before == (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())


def test_a_running_event_loop_is_no_hindrance(server):
    async def notebook():
        return complete(server, ["w1"])

    assert asyncio.run(notebook()) == complete(server, ["w1"])


def test_nothing_to_ask_asks_nothing(server):
    assert complete(server, []) == []
    assert score_on_server(settings(server), [], 2) == []
    assert not server.asked


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_shown_on_a_terminal_alone(server, monkeypatch, capsys):
    complete(server, PROMPTS, batch_size=2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    complete(server, PROMPTS, batch_size=2)
    assert "answers of tiny" in sys.stderr.getvalue()
    assert "10/10" in sys.stderr.getvalue()


# How an answer ends.


def ends_of(server, **fields):
    (rollout,) = complete(server, ["w1 w2 w3"], **fields)
    return rollout


def test_stop_strings_and_tokens_end_a_text_and_say_so(server, plain):
    whole = ends_of(plain, max_new_tokens=20)
    third = whole.text.split()[2]
    before = whole.text[: whole.text.index(third)]
    for one in (server, plain):  # one leaves the string out and names it, the other leaves it in
        stopped = ends_of(one, max_new_tokens=20, stop=(third,))
        assert (stopped.text, stopped.finish_reason) == (before, "stop_string")
    tokens = ends_of(server, max_new_tokens=20).token_ids
    stopped = ends_of(server, max_new_tokens=20, stop_token_ids=(tokens[2],))
    assert (stopped.token_ids, stopped.finish_reason) == (tokens[: tokens.index(tokens[2]) + 1], "stop")
    assert ends_of(server, max_new_tokens=2).finish_reason == "length"


def test_a_prompt_of_tokens_is_not_answered_for_other_tokens(server):
    choice = {"text": "w1", "finish_reason": "stop", "token_ids": [5], "prompt_token_ids": [0, 9]}
    faults(server, {0: body({"choices": [choice]})})
    with pytest.raises(ConnectionError, match="continued other tokens than those of the prompt"):
        complete(server, [[9]])


GOOD = {"text": "w1", "finish_reason": "stop", "token_ids": [5], "logprobs": {"token_logprobs": [-0.5]}}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"finish_reason": "content_filter"}, "ended a completion with finish_reason 'content_filter'"),
        ({"finish_reason": None}, "ended a completion with finish_reason null"),
        ({"text": None}, r"answered not as agreed \(choices.0.text: "),
        ({"text": 5}, r"answered not as agreed \(choices.0.text: "),
        ({"token_ids": [5, 6]}, "gave 2 tokens with 1 log-probabilities"),
        ({"token_ids": list(range(7))}, "gave 7 tokens, asked for max_new_tokens=6 at most"),
        ({"token_ids": [-1]}, r"choices.0.token_ids.0: Input should be greater than or equal to 0"),
        ({"token_ids": [2**31]}, r"choices.0.token_ids.0: Input should be less than 2147483648"),
        ({"token_ids": ["5"]}, r"choices.0.token_ids.0: Input should be a valid integer"),
        ({"logprobs": {"token_logprobs": [float("nan")]}}, "token_logprobs.0: Input should be"),
        ({"logprobs": {"token_logprobs": [2.0]}}, r"token_logprobs.0: Input should be less than or equal to 0\.001"),
        ({"logprobs": {"token_logprobs": [None]}}, "token_logprobs.0: Input should be a valid number"),
    ],
)
def test_answers_that_contradict_themselves_are_refused_at_once(server, choice, message):
    answer = {"choices": [GOOD | choice]}
    server.fault = lambda number, question: body(answer) if number == 1 else None  # 0 asks for tokens
    with pytest.raises(ConnectionError, match=message):
        complete(server, ["w1"], logprobs=True)
    assert len(server.asked) == 2


@pytest.mark.parametrize("answer", [{"choices": []}, {"choices": [GOOD, GOOD]}, {"unexpected": 1}, [], 3, None, {}])
def test_answers_of_another_shape_are_refused_at_once(server, answer):
    faults(server, {0: body(answer)})
    with pytest.raises(ConnectionError, match=r"completions answered not as agreed"):
        complete(server, ["w1"])


def test_a_conversation_without_a_text_is_no_empty_answer(server):
    faults(server, {0: body({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]})})
    with pytest.raises(ConnectionError, match="gave no text"):
        complete(server, [CONVERSATION])


def test_an_answer_has_a_longest_size(server):
    faults(server, {0: body(b" " * (1 << 21))})
    with pytest.raises(ConnectionError, match=r"gave more than the [0-9,]+ bytes"):
        complete(server, ["w1"])


# Tokens and log-probabilities.


def reference(module, tokens):
    with torch.no_grad():
        return module.model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("prompt", ["w1 w2 w3", [9, 10], CONVERSATION], ids=["text", "tokens", "conversation"])
def test_log_probabilities_belong_to_their_tokens(server, module, prompt):
    """Fails where they are shifted by one."""
    (rollout,) = complete(server, [prompt], 3, logprobs=True, temperature=1.0)
    rows = reference(module, [*rollout.prompt_ids, *rollout.token_ids])[len(rollout.prompt_ids) - 1 : -1]
    wanted = rows[range(len(rollout.token_ids)), list(rollout.token_ids)].tolist()
    assert rollout.logprobs == pytest.approx(wanted, abs=1e-5)  # float32; seen 5e-7
    assert rollout.sampled_logprobs == rollout.logprobs
    (cooler,) = complete(server, [prompt], 3, logprobs=True, temperature=0.5)
    assert cooler.sampled_logprobs is None  # the server tells those of the model alone
    (likeliest,) = complete(server, [prompt], 3, logprobs=True)
    assert likeliest.sampled_logprobs == (0.0,) * len(likeliest.token_ids)


def test_scores_are_those_of_the_model(server, module):
    """Fails where the own token, listed beside the likeliest, is counted among them, or places are shifted."""
    sequences = [[9, 10, 11, 12, 13], [7], [40, 41, 42]]
    found = score_on_server(settings(server), sequences, 3)
    for sequence, scores in zip(sequences, found, strict=True):
        rows = reference(module, sequence)[:-1]
        best = rows.topk(3, -1)
        assert scores.logprobs == pytest.approx(rows[range(len(sequence) - 1), sequence[1:]].numpy(), abs=1e-5)
        assert scores.top_ids.tolist() == best.indices.tolist()
        assert scores.top_logprobs.shape == (len(sequence) - 1, 3)
        assert scores.top_logprobs == pytest.approx(best.values.numpy(), abs=1e-5)
        assert (scores.logprobs.dtype, scores.top_ids.dtype) == (np.float32, np.int32)
    assert score_on_server(settings(server), sequences, 0)[0].top_ids.shape == (4, 0)


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"stop_token_ids": (5,)}])
@pytest.mark.parametrize("prompt", ["w1", [5], CONVERSATION], ids=["text", "tokens", "conversation"])
def test_a_server_without_tokens_is_refused_before_the_first_completion(plain, fields, prompt):
    with pytest.raises(ConnectionError, match=f"answered without token_ids, only '.*; {next(iter(fields))}=.* needs "):
        complete(plain, [prompt] * 5, **fields)
    assert len(plain.asked) == 1
    assert plain.asked[0][2]["max_tokens"] == 1


def test_a_server_that_refuses_the_question_is_quoted(plain):
    plain.fault = lambda number, question: status(422, {"detail": "Unexpected fields"})
    with pytest.raises(ConnectionError, match=r"answered 422 Unproc.*Unexpected fields.*; logprobs=True needs "):
        complete(plain, ["w1"] * 5, logprobs=True)
    with pytest.raises(ConnectionError, match=r"Unexpected fields.*; scoring needs "):
        score_on_server(settings(plain), [[5, 6]], 2)


def test_a_server_without_scores_is_refused_after_one_request(plain):
    with pytest.raises(ConnectionError, match=r"gave no log-prob.* \(prompt_logprobs\).*; scoring needs .*vLLM"):
        score_on_server(settings(plain), [[5, 6], [7, 8], [9, 10]], 2)
    assert len(plain.asked) == 1


SCORES = [None, {"6": {"logprob": -0.5, "rank": 1}, "9": {"logprob": -2.0, "rank": 2}}]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (SCORES[:1], "gave log-probabilities of 1 tokens for a sequence of 2"),
        ([None, None], "gave no log-probability of token 1"),
        ([None, {"9": {"logprob": -2.0}, "8": {"logprob": -1.0}}], "gave no log-probability of token 1"),
        ([None, {"6": {"logprob": -0.5}}], "or fewer than top_k=2 others"),
        ([None, SCORES[1] | {"-1": {"logprob": -3.0}}], "Input should be greater than or equal to 0"),
        ([None, SCORES[1] | {str(2**40): {"logprob": -3.0}}], "Input should be less than 2147483648"),
        (
            [None, SCORES[1] | {"\x1b[31m" * 500: {"logprob": -3.0}}],
            "answered not as agreed .*Input should be a valid int",
        ),
    ],
)
def test_scores_of_something_else_are_refused(server, scores, message):
    faults(server, {0: body({"choices": [{"text": "", "prompt_logprobs": scores}]})})
    with pytest.raises(ConnectionError, match=message) as caught:
        score_on_server(settings(server), [[5, 6], [5, 6]], 2)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1200


def test_sequences_after_the_first_are_named_where_they_fail(server):
    server.fault = lambda number, question: status(400, "no") if question["prompt"] == [7, 8] else None
    with pytest.raises(ConnectionError, match=r"1 of 3 sequences have no scores; 2: .*400 Bad Request"):
        score_on_server(settings(server), [[5, 6], [6, 7], [7, 8]], 2)


def test_only_vllm_is_asked_for_what_others_do_not_know(server, plain):
    (known,) = complete(plain, ["w1 w2"])
    assert (known.token_ids, known.prompt_ids, known.logprobs) == ((), (), None)
    question = {key: value for key, value in plain.asked[0][2].items() if key != "seed"}
    openai = {"model": "tiny", "prompt": "w1 w2", "max_tokens": 6, "temperature": 0.0, "top_p": 1.0}
    assert question == openai
    complete(plain, ["w1 w2"], top_k=3)
    assert plain.asked[1][2]["top_k"] == 3
    complete(server, ["w1 w2"])
    # Else vLLM takes them from the folder of the model, without a word.
    assert server.asked[0][2].items() >= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}.items()
