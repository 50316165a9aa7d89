"""Stand-ins for the CANN libraries that torch_npu links to, so that the real wheel imports on any Linux machine.

``python cann_standins.py FOLDER``, run by the Python that has torch and torch_npu, compiles them into FOLDER; then
``import torch, torch_npu`` works under TORCH_DEVICE_BACKEND_AUTOLOAD=0, LD_LIBRARY_PATH=FOLDER and
LD_PRELOAD=FOLDER/libpreloaded.so, finds no device, and has the schemas and shape functions of all operators. Nothing is
ever computed: every function returns 0, success.

What to build is not listed here but read from the wheel: the libraries that the loader misses, and the symbols that no
library it finds defines. Needs binutils (nm, strings), ldd, gcc and g++.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

PRELOAD = "libpreloaded.so"
OPENED_LATER = ("libacl_tdt_channel.so",)  # by dlopen, so that the loader cannot miss it
ASKED_BY_NAME = re.compile(r"^(?:acl[a-zA-Z]|Hccl)[A-Za-z0-9]+$", re.MULTILINE)  # by dlsym
WITH_AN_ANSWER = {  # no device, and every compile option is "0"
    "aclrtGetDeviceCount": "int aclrtGetDeviceCount(unsigned *count) { *count = 0; return 0; }",
    "aclGetCompileoptSize": "unsigned long aclGetCompileoptSize(int option) { return 2; }",
    "aclGetCompileopt": "int aclGetCompileopt(int option, char *value, unsigned long size)"
    " { value[0] = '0'; value[1] = 0; return 0; }",
}
# A torch built for CUDA has registered the names of its allocator's settings, and torch_npu registers some of them
# anew, which torch refuses. Preloaded, this gives every caller a set of names of its own.
PRELOADED = """
#include <string>
#include <unordered_set>
namespace c10::CachingAllocator {
struct AcceleratorAllocatorConfig { static std::unordered_set<std::string>& getMutableKeys(); };
std::unordered_set<std::string>& AcceleratorAllocatorConfig::getMutableKeys() {
  return *new std::unordered_set<std::string>;
}
}
"""


def output_of(*command: str) -> str:
    """Return what a command prints; it must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def package_folder(name: str) -> Path:
    """Return where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed for {sys.executable}: pip install torch torch-npu of one version")
    return Path(spec.origin).parent


def symbols(library: Path, *, defined: bool) -> set[str]:
    """Return the names of the dynamic symbols that a library defines, or that it wants from others."""
    text = output_of("nm", "-D", "--format=posix", "--defined-only" if defined else "--undefined-only", str(library))
    entries = [line.split()[:2] for line in text.splitlines()]
    return {name.split("@")[0] for name, kind in entries if kind not in "wv"}  # weak ones may stay undefined


def linked(library: Path, search: str) -> tuple[set[Path], set[str]]:
    """Return the libraries that the loader finds for this one, and the names of those that it misses."""
    text = subprocess.run(
        ["ldd", str(library)], capture_output=True, text=True, check=True, env={"LD_LIBRARY_PATH": search}
    ).stdout
    missing = set(re.findall(r"(\S+) => not found", text))
    return {Path(path) for path in re.findall(r"=> (/\S+)", text)}, missing


def build(folder: Path) -> int:
    """Write and compile the stand-ins; return how many functions they have."""
    folder.mkdir(parents=True, exist_ok=True)
    torch_libraries, npu = package_folder("torch") / "lib", package_folder("torch_npu")
    extensions = sorted({*npu.glob("_C*.so"), *npu.glob("lib/*.so")})
    search = f"{torch_libraries}:{npu / 'lib'}"
    found, missing = set(extensions), set(OPENED_LATER)
    for extension in extensions:
        resolved, unresolved = linked(extension, search)
        found |= resolved
        missing |= unresolved
    wanted = set.union(*(symbols(extension, defined=False) for extension in extensions))
    for extension in extensions:
        wanted |= set(ASKED_BY_NAME.findall(output_of("strings", "-n", "5", str(extension))))
    wanted -= set.union(*(symbols(library, defined=True) for library in found), set(WITH_AN_ANSWER))
    functions = [f'long standin_{i}(void) __asm__("{name}");' for i, name in enumerate(sorted(wanted))]
    functions += [f"long standin_{i}(void) {{ return 0; }}" for i in range(len(wanted))]
    source = folder / "standins.c"
    source.write_text("\n".join((*functions, *WITH_AN_ANSWER.values(), "")))
    first, *others = sorted(missing)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(folder / first), str(source)], check=True)
    for other in others:  # the loader finds all symbols in the first
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(folder / other), "-x", "c", "/dev/null"], check=True)
    preloaded = folder / "preloaded.cpp"
    preloaded.write_text(PRELOADED)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(folder / PRELOAD), str(preloaded)], check=True)
    return len(wanted)


if __name__ == "__main__":
    print(f"{build(Path(sys.argv[1]))} functions in {sys.argv[1]}")
