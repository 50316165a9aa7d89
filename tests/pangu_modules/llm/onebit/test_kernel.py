"""The compiled kernel against loops, and what happens without a compiler, with a broken one, and in two processes."""

from __future__ import annotations

import multiprocessing
import shutil
import warnings

import pytest
import torch

from pangu_modules.llm.onebit import kernel
from pangu_modules.llm.onebit.packed_linear import pack_signs

# Rows that are no multiple of the 4 that share loads, columns that are none of 16 and 64.
SHAPES = [(1, 8), (3, 24), (4, 64), (7, 72), (13, 144), (64, 576)]
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in kernel.COMPILERS), reason="there is no C compiler"
)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and a kernel that is not loaded yet."""
    monkeypatch.setenv("PANGU_CACHE", str(tmp_path))
    kernel.load.cache_clear()
    yield tmp_path
    kernel.load.cache_clear()


def example(rows: int, columns: int, tokens: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(tokens, columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator)
    return x, weight, torch.rand(rows, generator=generator) + 0.5, torch.randn(rows, generator=generator)


def slow_product(x, weight, scale, bias) -> torch.Tensor:
    """Loops in float64."""
    result = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for token, values in enumerate(x.tolist()):
        for row, weights in enumerate(weight.tolist()):
            total = sum(value if w >= 0 else -value for value, w in zip(values, weights, strict=True))
            result[token, row] = scale[row].double() * total + bias[row].double()
    return result


def check() -> None:
    for rows, columns in SHAPES:
        for tokens in (1, 3):
            x, weight, scale, bias = example(rows, columns, tokens)
            packed = pack_signs(weight)
            expected = slow_product(x, weight, scale, bias)
            found = kernel.packed_linear(x, packed, scale, bias)
            # The sum of n numbers of size 1 in float32: n * 6e-8, times a scale of at most 1.5.
            assert (found - expected).abs().max() < columns * 1e-7 + 1e-6
            without = kernel.packed_linear(x, packed, scale, None)
            assert (without + bias - expected).abs().max() < columns * 1e-7 + 1e-6
            dense = torch.where(weight >= 0, scale[:, None], -scale[:, None])
            for in_features in (columns, columns - 5):
                assert torch.equal(kernel.unpack(packed, scale, in_features), dense[:, :in_features])


@needs_compiler
@pytest.mark.parametrize("flags", [*kernel.FLAGS[::2], ("-mno-avx512f",)])
def test_equals_loops(fresh, monkeypatch, flags):
    """With every set of flags that this compiler knows: that is with AVX-512, where there is, and without."""
    monkeypatch.setattr(kernel, "FLAGS", (flags,))
    with warnings.catch_warnings(record=True) as caught:
        library = kernel.load()
    if library is None:
        assert "does not compile kernel.c" in str(caught[0].message)
        pytest.skip(f"this compiler does not know {flags}")
    check()
    (file,) = fresh.iterdir()
    assert file.name.startswith("packed-linear-")


@needs_compiler
def test_threads_share_the_rows(fresh):
    threads = torch.get_num_threads()
    x, weight, scale, bias = example(2051, 2056, 1)
    packed = pack_signs(weight)
    try:
        torch.set_num_threads(1)
        alone = kernel.packed_linear(x, packed, scale, bias)
        torch.set_num_threads(3)
        assert torch.equal(kernel.packed_linear(x, packed, scale, bias), alone)
        dense = torch.where(weight >= 0, scale[:, None], -scale[:, None])
        assert torch.equal(kernel.unpack(packed, scale, 2050), dense[:, :2050])
    finally:
        torch.set_num_threads(threads)


@needs_compiler
def test_compiles_once_and_again_for_another_source_or_compiler(fresh, monkeypatch):
    kernel.load()
    (first,) = fresh.iterdir()
    stamp = first.stat().st_mtime_ns
    kernel.load.cache_clear()
    kernel.load()
    assert [path.stat().st_mtime_ns for path in fresh.iterdir()] == [stamp]
    changed = fresh / "other.c"
    changed.write_bytes(kernel.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(kernel, "SOURCE", changed)
    monkeypatch.setenv("CC", f"{kernel._compiler()[0]} -w")
    kernel.load.cache_clear()
    assert kernel.load() is not None
    assert len(list(fresh.glob("packed-linear-*"))) == 2


def test_without_a_compiler_one_warning_says_what_to_do(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.warns(UserWarning, match=r"without their compiled kernel.*no C compiler.*install a C compiler \(cc"):
        assert kernel.load() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, weight, scale, bias = example(4, 8, 1)
        assert kernel.packed_linear(x, pack_signs(weight), scale, bias) is None
        assert kernel.unpack(pack_signs(weight), scale, 8) is None


@needs_compiler
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(fresh, monkeypatch):
    broken = fresh / "bad.c"
    broken.write_text("no C at all")
    monkeypatch.setattr(kernel, "SOURCE", broken)
    with pytest.warns(UserWarning, match=r"does not compile bad\.c: .*error"):
        assert kernel.load() is None
    assert list(fresh.iterdir()) == [broken]


def test_a_named_compiler_that_is_absent_is_named(fresh, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with pytest.warns(UserWarning, match="no-such-compiler is not installed"):
        assert kernel.load() is None


@needs_compiler
def test_two_processes_may_compile_at_once(fresh):
    context = multiprocessing.get_context("fork")  # torch is loaded already; one thread each
    children = [context.Process(target=load_and_compute) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert len(list(fresh.iterdir())) == 1


def load_and_compute() -> None:
    bits = torch.full((1, 1), 255, dtype=torch.uint8)
    assert kernel.packed_linear(torch.ones(1, 8), bits, torch.ones(1), None).item() == 8
