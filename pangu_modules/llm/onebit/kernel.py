"""The compiled kernel of packed binary layers: kernel.c, built by the system's C compiler when it is first needed.

It adds the inputs up by the packed bits themselves (with AVX-512, otherwise by a table of the sums of 8 inputs), so
that a token reads 1/32 of the memory that float32 weights take. The library is kept in ``$PANGU_CACHE``, or else in
``~/.cache/pangu-recipes``, under a name made of the source, the compiler and the processor. Without a compiler the
layers still compute, slowly, and say so once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pangu_modules.common.cache import cache_folder
from pangu_modules.common.files import atomic_file

SOURCE = Path(__file__).with_name("kernel.c")
COMPILERS = ("cc", "gcc", "clang")
# From the best to what any compiler takes: not all know -march=native on Arm, and Apple's has no OpenMP.
FLAGS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())


def packed_linear(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return ``x @ (scale * signs).T + bias`` from the packed signs, or None where the kernel cannot be built.

    Args:
        x: (..., columns) float32, contiguous, on the CPU; columns = 8 * bytes of a row, zeros where rows are padded.
        packed: (rows, columns / 8) uint8, contiguous; bit j % 8 of byte j // 8 is column j, 1 for plus.
        scale: (rows,) float32, contiguous.
        bias: (rows,) float32, contiguous, or None.

    Returns:
        (..., rows) float32, without gradient.
    """
    library = load()
    if library is None:
        return None
    columns, rows = x.shape[-1], packed.shape[0]
    tokens = x.numel() // columns
    y = torch.empty((*x.shape[:-1], rows))
    failed = library.packed_linear(
        packed.data_ptr(),
        scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        x.data_ptr(),
        y.data_ptr(),
        rows,
        columns,
        tokens,
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for the tables of {tokens} tokens of {columns} inputs")
    return y


def unpack(packed: Tensor, scale: Tensor, in_features: int) -> Tensor | None:
    """Return the weight (rows, in_features) float32, or None where the kernel cannot be built; see `packed_linear`."""
    library = load()
    if library is None:
        return None
    rows, stride = packed.shape
    weight = torch.empty(rows, in_features)
    sizes = (rows, 8 * stride, in_features, torch.get_num_threads())
    library.unpack(packed.data_ptr(), scale.data_ptr(), weight.data_ptr(), *sizes)
    return weight


@functools.cache
def load() -> Any:
    """Return the library, compiled if it is not in the cache, or None after a warning that says why not."""
    try:
        library = ctypes.CDLL(str(_built()))
    except (OSError, CompilationError) as error:
        warnings.warn(
            f"packed binary layers run without their compiled kernel, unpacking weights at every step ({error}): "
            f"install a C compiler ({', '.join(COMPILERS)}) or name one in CC",
            stacklevel=2,
        )
        return None
    pointer, number, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.packed_linear.argtypes = [*[pointer] * 5, *[number] * 3, threads]
    library.packed_linear.restype = ctypes.c_int
    library.unpack.argtypes = [*[pointer] * 3, *[number] * 3, threads]
    library.unpack.restype = None
    return library


class CompilationError(RuntimeError):
    """There is no C compiler, or it does not compile the kernel."""


def _built() -> Path:
    """Return the path of the library in the cache; two processes may build it at once, each puts a whole file there."""
    compiler = _compiler()
    folder = cache_folder()
    library = folder / f"packed-linear-{_fingerprint(compiler)}.so"
    if not library.is_file():
        with atomic_file(library) as temporary:
            _compile(compiler, temporary)
    return library


def _compiler() -> list[str]:
    """Return the command of the C compiler: CC, which may hold options, or the first that is installed."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise CompilationError(f"no C compiler: {named[0] if named else 'none'} is not installed")


def _compile(compiler: Sequence[str], library: Path) -> None:
    for flags in FLAGS:
        command = [*compiler, "-O3", *flags, "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0:
            return
    lines = result.stderr.splitlines() or [f"exit code {result.returncode}"]
    reason = next((line for line in lines if "error" in line), lines[-1])
    raise CompilationError(f"{compiler[0]} does not compile {SOURCE.name}: {reason}")


def _fingerprint(compiler: Sequence[str]) -> str:
    """Return a name for this source, compiler and processor: code for one processor may be illegal on another."""
    version = subprocess.run([*compiler, "--version"], capture_output=True).stdout
    parts = (SOURCE.read_bytes(), repr((compiler, FLAGS)).encode(), version, _processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """Return the processor's name and abilities."""
    names = ("model name", "flags", "Features", "CPU part")  # x86, and Arm
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(names)}))
