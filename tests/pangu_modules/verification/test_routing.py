"""Verification: routes by label, in workers that survive whatever a model writes."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pangu_modules.common.tasks import Task
from pangu_modules.verification import pool
from pangu_modules.verification.routing import Verification
from pangu_modules.verification.scores import Score

HERE = "own_verifiers"


@pytest.fixture(scope="module", autouse=True)
def _own_verifiers(tmp_path_factory):
    """A user's own module of verifiers, and workers that find it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / f"{HERE}.py").write_text(
        textwrap.dedent(
            """
            import os, signal, time
            from pangu_modules.verification.scores import Score

            def long_enough(text, reference):
                return Score(float(len(text) >= reference["length"]), "length", f"{len(text)} characters")

            def endless(text, reference):
                while text == "loop":
                    pass
                return Score(1.0)

            def broken(text, reference):
                raise KeyError("no such thing")

            def killed(text, reference):
                os.kill(os.getpid(), signal.SIGKILL if text == "kill" else signal.SIGSTOP if text == "stop" else 0)
                return Score(1.0)

            def mad(text, reference):
                return Score(float("nan"), "madness")

            def bare(text, reference):
                return 1.0

            def greedy(text, reference):
                return Score(float(len(bytearray(6 << 30))))

            def talkative(text, reference):
                print("noise" * 100_000)
                return Score(1.0, reason=os.environ.get("SECRET_KEY", "no key"))
            """
        )
    )
    sys.path.insert(0, str(folder))
    pool.WORKERS.close()
    yield
    sys.path.remove(str(folder))
    pool.WORKERS.close()


def own(function, **settings):
    return Verification.Config(verifiers={"own": f"{HERE}:{function}"}, **settings).build()


def task(verifier="math", **reference):
    return Task("t", [], verifier, reference or {"answer": "42"})


def test_a_label_chooses_the_verifier():
    verification = own("long_enough")
    assert verification.judge(task("own", length=3), "abc") == Score(1.0, "length", "3 characters")
    assert verification.judge(task(), "Answer: 42").value == 1
    assert verification.judge(task(), "<think>Answer: 41</think>Answer: 42").value == 1
    assert verification.judge(task(), "<think>Answer: 42").reason == "the thought does not end"
    assert verification.counts == {"right": 3, "unfinished": 1}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Task("row 7", [], "maths", {"answer": "1"}), r"'row 7': unknown verifier 'maths'. Did you mean 'math'\?"),
        (Task("row 7", [], "", {}), "unknown verifier ''"),
        (Task("row 7", [], "math", {}), "'row 7': the verifier 'math' needs 'answer'"),
        (Task("row 7", [], "math", {"answer": " "}), "needs 'answer'"),
        (Task("row 7", [], "math", {"answer": r"\frac{1}{"}), "'row 7': the verifier 'math' cannot use answer="),
        (Task("row 7", [], "own", {}), "'own' cannot be loaded: AttributeError"),
    ],
)
def test_tasks_that_cannot_be_judged_are_refused_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        own("missing").check([task(), wrong])


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    """Catches scoring every answer as wrong where math-verify is not installed."""
    (tmp_path / "math_verify.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(tmp_path)
    pool.WORKERS.close()
    try:
        for ask in (lambda each: each.check([task()]), lambda each: each.judge(task(), "Answer: 42")):
            with pytest.raises(ValueError, match=r"needs math-verify: pip install 'pangu-recipes\[rl\]'"):
                ask(Verification.Config().build())
    finally:
        pool.WORKERS.close()


@pytest.mark.parametrize(
    ("function", "text", "reason"),
    [
        ("endless", "loop", "TimeoutError: no verdict after 0.3 s"),
        ("broken", "", "KeyError: 'no such thing'"),
        ("killed", "kill", "the worker died with exit code -9"),
        ("killed", "stop", "TimeoutError"),  # catches waiting for a process that no longer reads
        ("greedy", "", "MemoryError"),
        ("mad", "", "madness has the score nan, which is not from 0 to 1"),
        ("bare", "", "TypeError"),
    ],
)
def test_a_failed_verifier_is_wrong_with_its_reason_and_the_next_one_works(function, text, reason):
    verification = own(function, deadline=0.3)
    score = verification.judge(task("own", x=1), text)
    assert score.value == 0
    assert score.reason.startswith(reason)
    assert verification.counts == {"failed": 1}
    assert reason in verification.first_failure
    assert Verification.Config(deadline=60).build().judge(task(), "Answer: 42").value == 1


def test_a_failed_verifier_may_drop_the_answer():
    verification = own("broken", on_error="drop")
    assert verification.judge(task("own", x=1), "") is None
    assert verification.judge(task(), "Answer: 43").value == 0  # catches dropping what is merely wrong
    assert verification.counts == {"failed": 1, "wrong": 1}


GIANTS = {
    "tower": r"\boxed{10^{10^{10}}}",
    "parentheses": "Answer: " + "(" * 100_000 + "1" + ")" * 100_000,
    "boxes": r"\boxed{" * 100_000,
    "one megabyte": "x" * 1_000_000,
    "digits": "Answer: " + "9" * 1_000_000,
    "short parentheses": "Answer: " + "(" * 450 + "1" + ")" * 450,
}


@pytest.mark.parametrize("giant", GIANTS)
def test_giant_answers_are_wrong_in_the_end(giant):
    verification = Verification.Config(deadline=0.5).build()
    score = verification.judge(task(), GIANTS[giant])
    assert score.value == 0
    assert score.reason
    assert verification.judge(task(), "Answer: 7").value == 0


def test_output_is_no_verdict_and_keys_stay_outside(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    pool.WORKERS.close()
    assert own("talkative").judge(task("own", x=1), "").reason == "no key"


def test_threads_share_the_workers():
    verification = Verification.Config(deadline=60).build()
    with ThreadPoolExecutor(8) as threads:
        scores = list(
            threads.map(lambda i: verification.judge(task(answer=str(i // 2)), f"Answer: {i / 2}"), range(80))
        )
    assert [score.value for score in scores] == [1 - i % 2 for i in range(80)]  # catches answers that are mixed up
    assert verification.counts == {"right": 40, "wrong": 40}
    assert len(pool.WORKERS._all) <= pool.SIZE


def in_child(verification):
    return verification.judge(task(), "Answer: 42").value + verification.judge(task(), "Answer: 43").value


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_child_processes_have_workers_of_their_own(method):
    """Catches children that read the answers of their parent's workers."""
    verification = Verification.Config(deadline=60).build()
    assert in_child(verification) == 1
    context = multiprocessing.get_context(method)
    with context.Pool(2) as children:  # daemons, which multiprocessing allows no children
        results = [children.apply_async(in_child, (verification,)) for _ in range(4)]
        assert [in_child(verification) for _ in range(10)] == [1] * 10
        assert [result.get(timeout=120) for result in results] == [1] * 4


def test_it_travels_to_other_processes():
    verification = own("long_enough")
    assert pickle.loads(pickle.dumps(verification)).config == verification.config


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)"])
def test_no_worker_outlives_its_parent(end):
    script = f"""
        import os
        from pangu_modules.common.tasks import Task
        from pangu_modules.verification import pool
        from pangu_modules.verification.routing import Verification
        Verification.Config(deadline=60).build().judge(Task("t", [], "math", {{"answer": "1"}}), "Answer: 1")
        print(*(worker.process.pid for worker in pool.WORKERS._all), flush=True)
        {end}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    (number,) = map(int, done.stdout.split())
    for _ in range(200):
        if not running(number):
            return
        time.sleep(0.05)
    raise AssertionError(f"worker {number} is still there: {done.stderr}")


def running(number):
    status = Path(f"/proc/{number}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_endless_worker_ends_by_itself_when_its_parent_is_gone():
    """Catches a worker that only notices the closed socket once it has finished."""
    script = f"""
        import os, sys, threading
        sys.path.insert(0, {sys.path[0]!r})
        from pangu_modules.common.tasks import Task
        from pangu_modules.verification import pool
        from pangu_modules.verification.routing import Verification
        verification = Verification.Config(deadline=1, verifiers={{"own": "{HERE}:endless"}}).build()
        task = Task("t", [], "own", {{"x": 1}})
        verification.judge(task, "")
        print(*(worker.process.pid for worker in pool.WORKERS._all), flush=True)
        threading.Timer(0.3, lambda: os.kill(os.getpid(), 9)).start()
        verification.judge(task, "loop")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    (number,) = map(int, done.stdout.split())
    for _ in range(400):
        if not running(number):
            return
        time.sleep(0.05)
    raise AssertionError(f"worker {number} is still there: {done.stderr}")


def test_ended_workers_leave_no_zombie():
    verification = own("endless", deadline=0.2)
    verification.judge(task("own", x=1), "")
    numbers = [worker.process.pid for worker in pool.WORKERS._all]
    for _ in numbers:
        verification.judge(task("own", x=1), "loop")
    pool.WORKERS.close()
    assert not any(Path(f"/proc/{number}").exists() for number in numbers if number != os.getpid())
