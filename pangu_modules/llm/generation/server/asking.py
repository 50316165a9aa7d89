"""Many requests: so many under way at a time, a bar, and what becomes of the others when one fails."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from pangu_modules.llm.generation.server.answers import ServerError

GIVE_UP_AFTER = 8
"""Failed requests without a single success after which the rest is not asked, or as many as are under way."""

T = TypeVar("T")


async def ask_each(
    count: int, width: int, ask: Callable[[int], Awaitable[T]], title: str
) -> tuple[list[T | None], dict[int, str]]:
    """Return the outcome of each request, and the reason of each that failed.

    Args:
        count: requests.
        width: requests under way at the same time.
        ask: makes one of them, by its number.
        title: of the bar.
    """
    outcomes: list[T | None] = [None] * count
    failures: dict[int, str] = {}
    numbers = iter(range(count))
    over = ""  # why no further request is made

    async def work(advance: Callable[[], None]) -> None:
        nonlocal over
        for number in numbers:
            if over:
                failures[number] = over
                continue
            try:
                outcomes[number] = await ask(number)
            except ServerError as error:
                failures[number] = str(error)
                if error.everywhere or (len(failures) >= max(width, GIVE_UP_AFTER) and not any(outcomes)):
                    over = str(error)
            advance()

    with _bar(title, count, width) as advance:
        workers = [asyncio.ensure_future(work(advance)) for _ in range(min(width, count))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
    return outcomes, dict(sorted(failures.items()))


@contextmanager
def _bar(title: str, count: int, width: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, unless all requests are under way at once; yield what moves it by one."""
    if count <= width or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=count)
        yield lambda: bar.advance(task)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(main())).result()
