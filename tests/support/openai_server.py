"""A server in the OpenAI protocol over a model in this process, which can be made to fail at chosen requests."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import torch

from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.generation.records import Rollout
from pangu_modules.llm.generation.server.calls import complete_on_server
from pangu_modules.llm.generation.settings import GenerationSettings

Question = dict[str, Any]
Fault = Callable[["Handler", bytes], None]
"""Answers in place of the server; it gets the body of the good answer."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OpenAIServer  # type: ignore[assignment]

    def do_GET(self):
        self.server.gets.append(self.path)
        self.answer(200, {"data": [{"id": name, "owned_by": self.server.owner} for name in self.server.served]})

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append((self.path, dict(self.headers), question))
            if question["model"] not in self.server.served:
                self.answer(404, {"error": {"message": f"The model `{question['model']}` does not exist."}})
                return
            body = json.dumps(self.server.complete(self.path, question)).encode()
        fault = self.server.fault(number, question)
        if fault is None:
            self.answer(200, body)
        else:
            fault(self, body)

    def answer(
        self, status: int, body: Any, headers: Mapping[str, str] | None = None, length: int | None = None
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(length or len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class OpenAIServer(ThreadingHTTPServer):
    """Serves a causal language model on a free port within a with block.

    Attributes:
        asked: path, headers and question of every completion asked for, in the order of arrival.
        gets: paths of the other requests.
        fault: returns what goes wrong with a request, by its number and question; None for nothing.
        owner: "vllm" has the additions of vLLM's protocol, anything else ignores them.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, model: torch.nn.Module, tokenizer: Any, *, owner: str = "vllm", name: str = "tiny") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer = model, tokenizer
        self.owner, self.served = owner, [name]
        self.asked: list[tuple[str, dict[str, str], Question]] = []
        self.gets: list[str] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.fault: Callable[[int, Question], Fault | None] = lambda number, question: None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # these are made on purpose
            super().handle_error(request, client_address)

    def complete(self, path: str, question: Question) -> dict[str, Any]:
        is_chat = path.endswith("/chat/completions")
        prompt = question["messages"] if is_chat else question["prompt"]
        if is_chat:
            tokens = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        else:
            tokens = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        written, logprobs, finish_reason, stop_reason = self._write(list(tokens), question)
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        if isinstance(stop_reason, str) and self.owner == "vllm":
            text = text[: text.index(stop_reason)]
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        answer = {"model": question["model"], "choices": [choice]}
        if self.owner == "vllm":
            self._add(answer, choice, question, tokens, written, logprobs, is_chat)
            choice["stop_reason"] = stop_reason
        return answer

    def _write(self, tokens: list[int], question: Question) -> tuple[list[int], list[float], str, Any]:
        """One token at a time, without a cache; the random numbers come from the request's seed alone."""
        generator = torch.Generator().manual_seed(question.get("seed", 0))
        written: list[int] = []
        logprobs: list[float] = []
        while len(written) < question["max_tokens"]:
            rows = self.log_softmax([*tokens, *written])[-1]
            if question.get("temperature"):
                probabilities = (rows / question["temperature"]).softmax(-1)
                written.append(int(torch.multinomial(probabilities, 1, generator=generator)))
            else:
                written.append(int(rows.argmax()))
            logprobs.append(float(rows[written[-1]]))
            if written[-1] == self.tokenizer.eos_token_id:
                return written, logprobs, "stop", None
            if self.owner == "vllm" and written[-1] in question.get("stop_token_ids", ()):
                return written, logprobs, "stop", written[-1]
            text = self.tokenizer.decode(written, skip_special_tokens=True)
            for stop in question.get("stop", ()):
                if stop in text:
                    return written, logprobs, "stop", stop
        return written, logprobs, "length", None

    def _add(self, answer, choice, question, tokens, written, logprobs, is_chat) -> None:
        if question.get("return_token_ids"):
            choice["token_ids"] = written
            (answer if is_chat else choice)["prompt_token_ids"] = tokens
        if is_chat and question.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": "", "logprob": value} for value in logprobs]}
        elif not is_chat and question.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": logprobs}
        if question.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs(tokens, question["prompt_logprobs"])

    def _prompt_logprobs(self, tokens: list[int], top_k: int) -> list[dict[str, Any] | None]:
        rows: list[dict[str, Any] | None] = [None]
        for values, token in zip(self.log_softmax(tokens)[:-1], tokens[1:], strict=True):
            order = values.argsort(descending=True).tolist()
            listed = [token, *(other for other in order[:top_k] if other != token)]  # a token's own entry is first
            rows.append({str(one): {"logprob": float(values[one]), "rank": order.index(one) + 1} for one in listed})
        return rows

    def log_softmax(self, tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def status(code: int, body: Any = "", **headers: str) -> Fault:
    """Another status; an underscore in a header's name is a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, good: handler.answer(code, body, named)


def body(content: Any) -> Fault:
    """Another body."""
    return lambda handler, good: handler.answer(200, content)


def reset(handler: Handler, good: bytes) -> None:
    """Half of the body, then a reset connection."""
    handler.answer(200, good[: len(good) // 2], length=len(good))
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def truncated(handler: Handler, good: bytes) -> None:
    """Half of the body, then an orderly end."""
    handler.answer(200, good[: len(good) // 2], length=len(good))
    handler.close_connection = True


def cut_json(handler: Handler, good: bytes) -> None:
    """Half of the body, as if it were the whole."""
    handler.answer(200, good[: len(good) // 2])


def dripping(handler: Handler, good: bytes) -> None:
    """A body that comes byte by byte, never silent for long, until the server ends."""
    handler.answer(200, b"", length=len(good))
    for place in range(len(good)):
        if handler.server.released.wait(0.05):
            break
        try:
            handler.wfile.write(good[place : place + 1])
        except OSError:
            break
    handler.close_connection = True


def settings(server: OpenAIServer | str, **fields: Any) -> GenerationSettings:
    address = server if isinstance(server, str) else server.base_url
    return GenerationEngine.Config(**{"base_url": address, "model": "tiny", "max_new_tokens": 6, **fields})


def complete(server, prompts, seed=0, samples=1, first_sample=0, **fields) -> list[Rollout]:
    return complete_on_server(settings(server, **fields), prompts, seed, samples, first_sample)


def faults(server: OpenAIServer, by_number: Mapping[int, Fault]) -> None:
    """Let requests of these numbers fail."""
    server.fault = lambda number, question: by_number.get(number)
