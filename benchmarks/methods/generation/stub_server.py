"""A server in the OpenAI protocol that waits a while and repeats the prompt: a process, for the race of clients."""

from __future__ import annotations

import asyncio
import json
import sys


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Answer the requests of one connection until it ends."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            body = await reader.readexactly(int(headers.get(b"content-length", 0)))
            content: dict[str, object] = {"data": [{"id": "stub", "owned_by": "nobody"}]}
            if body:
                await asyncio.sleep(delay)
                choice = {"index": 0, "text": f"after {json.loads(body)['prompt']}", "finish_reason": "length"}
                content = {"model": "stub", "choices": [choice]}
            data = json.dumps(content).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
            writer.write(head + data)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def serve(delay: float) -> None:
    """Serve on a free port, whose number is printed."""
    server = await asyncio.start_server(lambda reader, writer: answer(reader, writer, delay), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
