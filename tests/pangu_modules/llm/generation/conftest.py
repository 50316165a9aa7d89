"""Servers of our own over a tiny model."""

import pytest
from openai_server import OpenAIServer
from tiny_llm import tiny_module, word_tokenizer

from pangu_modules.llm.generation.server import client


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return tiny_module(data_tokenizer=word_tokenizer(tmp_path_factory.mktemp("tokenizer"))).eval()


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(client, "FIRST_DELAY", 0.002)


@pytest.fixture
def server(module):
    with OpenAIServer(module.model, module.tokenizer) as running:
        yield running


@pytest.fixture
def plain(module):
    """A server without vLLM's additions."""
    with OpenAIServer(module.model, module.tokenizer, owner="somebody") as running:
        yield running
