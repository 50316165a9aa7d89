"""What no further try can mend, and what a server may not do: one sentence with field, value and remedy."""

import socket
import threading
import warnings

import pytest
from openai_server import OpenAIServer, body, complete, faults, settings, status

from pangu_modules.llm.generation.records import IncompleteGenerationError
from pangu_modules.llm.generation.server import client
from pangu_modules.llm.generation.server.calls import score_on_server

CONVERSATION = [{"role": "user", "content": "w3 w4"}]
PROMPTS = ["w1 w2 w3", [9, 10], CONVERSATION, "w7", [11, 12, 13, 14]]
BEYOND = "Mon, 1 Jan 99999999999 00:00:00"


def test_a_key_is_sent_if_asked_for_and_never_shown(server, monkeypatch):
    complete(server, ["w1"])
    assert "Authorization" not in server.asked[0][1]
    monkeypatch.setenv("TEST_KEY", "opensesame'12345")
    complete(server, ["w1"], api_key_variable="TEST_KEY")
    assert server.asked[1][1]["Authorization"] == "Bearer opensesame'12345"
    for fault in (
        status(400, "x" * 290 + "opensesame'12345"),
        status(503, "opensesame'12345"),
        body(b"opensesame'12345"),
    ):
        server.fault = lambda number, question, fault=fault: fault
        with warnings.catch_warnings(record=True) as said, pytest.raises(ConnectionError) as caught:
            complete(server, ["w1"], api_key_variable="TEST_KEY", retries=1)
        assert "open" not in str(caught.value)
        assert not any("open" in str(one.message) for one in said)
    server.fault = lambda number, question: status(401, "wrong key opensesame'12345")
    with pytest.raises(
        ConnectionError, match="answered 401 Unauthorized: the value of TEST_KEY is not the server's key"
    ):
        complete(server, ["w1"] * 20, api_key_variable="TEST_KEY", batch_size=1)
    with pytest.raises(ConnectionError, match="answered 401 Unauthorized: api_key_variable names its key"):
        complete(server, ["w1"])


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"])
def test_what_cannot_be_a_key_is_refused_without_showing_it(server, monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(ValueError, match=r"'TEST_KEY' is empty, or holds spaces or characters that no key has$"):
        complete(server, ["w1"], api_key_variable="TEST_KEY")
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ValueError, match="no environment variable 'TEST_KEY'"):
        complete(server, ["w1"], api_key_variable="TEST_KEY")
    assert not server.asked


def test_a_wrong_model_name_is_answered_with_those_that_there_are(server, plain):
    with pytest.raises(ConnectionError, match=r"has no model 'other'; set model to one that it offers: 'tiny'"):
        complete(server, PROMPTS, model="other")
    assert not server.asked  # vLLM lists all that it serves
    with pytest.raises(
        ConnectionError, match=r"404 Not Found for model 'other'.*set model to one that it offers: 'tiny'"
    ):
        complete(plain, PROMPTS, model="other", batch_size=1)
    assert len(plain.asked) == 1


def test_an_absent_server_is_said_at_once(monkeypatch):
    """Fails by its time where an absent server is tried again."""
    monkeypatch.setattr(client, "FIRST_DELAY", 600.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        for function in (lambda: complete(address, PROMPTS), lambda: score_on_server(settings(address), [[5, 6]], 1)):
            with pytest.raises(
                ConnectionError, match=rf"^no server at base_url='{address}' .*: start it, or leave base_url"
            ):
                function()


def test_a_server_that_goes_away_keeps_what_it_answered(module):
    with OpenAIServer(module.model, module.tokenizer) as server:

        def last(handler, good):
            handler.answer(200, good)
            handler.close_connection = True
            threading.Thread(target=server.shutdown).start()
            server.socket.close()

        faults(server, {2: last})
        with pytest.warns(UserWarning, match="further tries"), pytest.raises(IncompleteGenerationError) as caught:
            complete(server, PROMPTS * 5, batch_size=1, retries=2)
    assert [number for number, rollout in enumerate(caught.value.rollouts) if rollout is not None] == [0, 1, 2]
    assert len(set(caught.value.failures.values())) == 1  # the rest was not asked
    assert "in each of 3 tries (retries=2)" in caught.value.failures[3]


def test_a_redirect_is_not_followed(server, plain):
    faults(server, {0: status(307, "", Location=f"{plain.base_url}/completions")})
    with pytest.raises(
        ConnectionError, match=r"answered 307 Temporary Redirect and points elsewhere.*correct base_url="
    ):
        complete(server, ["w1"])
    assert not plain.asked


def test_no_proxy_stands_before_this_machine(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert len(complete(server, ["w1"])) == 1


def test_a_server_may_not_ask_for_a_longer_wait_than_the_longest(server, monkeypatch):
    monkeypatch.setattr(client, "LONGEST_DELAY", 0.01)
    faults(server, {0: status(429, "", Retry_After="3600")})
    with pytest.warns(UserWarning, match="429 Too Many Requests: 1"):
        complete(server, ["w1"])


def test_retry_after_is_a_number_or_a_date():
    assert client.retry_after("7") == 7
    assert client.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert client.retry_after("Wed, 21 Oct 2499 07:28:00 GMT") > 1e9
    assert [client.retry_after(text) for text in (None, "", "soon", "-3", "1e9", "21 Oct", BEYOND)] == [None] * 7


@pytest.mark.parametrize("prompt", ["", [], "\ud800", [{"role": "user", "content": "\udc00"}]])
def test_prompts_that_are_no_text_are_refused_before_the_first_request(server, prompt):
    with pytest.raises(ValueError, match=r"^prompt 1 (is empty|holds half a character)"):
        complete(server, ["w1", prompt])
    assert not server.asked
    with pytest.raises(ValueError, match=r"^sequence 1 is empty"):
        score_on_server(settings(server), [[5], []], 0)


def test_control_characters_of_a_server_do_not_reach_the_terminal(server):
    faults(server, {0: status(400, b"\x1b[31mred\x1b[0m \xff")})
    with pytest.raises(ConnectionError) as caught:
        complete(server, ["w1"])
    assert str(caught.value).isprintable()
