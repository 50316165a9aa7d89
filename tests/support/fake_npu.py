"""An Ascend NPU in pure Python: tensors whose device is npu:0, npu:1 ..., and whose numbers a CPU tensor holds.

`install` makes torch know the device as the vendor's package would: `torch.npu`, random numbers of its own, autocast,
and a process group "hccl", which is gloo. A process has it once and for good: tests call it in processes of their own.
"""

from __future__ import annotations

import os
import sys
import types
from contextlib import nullcontext
from typing import Any

import torch
from torch import distributed as dist
from torch.utils._pytree import tree_map

COUNT = "FAKE_NPUS"  # how many there are, unless the argument says so
_current = 0
_tags: dict[int, tuple[str, Any]] = {}  # devices of stored memory by its address, and the memory: so it stays its own
_generators: dict[int, torch.Tensor] = {}  # states of the random numbers, by index


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return _current if index is None else index


class FakeTensor(torch.Tensor):
    """A tensor on npu:index around one on the CPU; torch's autograd, which knows one device, sees all on npu:0."""

    inner: torch.Tensor
    index: int

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int) -> FakeTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("npu", 0),
        )
        wrapper.inner, wrapper.index = inner, index
        return wrapper

    @property
    def device(self) -> torch.device:
        return torch.device("npu", self.index)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"npu({self.inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Store the numbers as those of a device: see `_tag`."""
        storage = self.inner.untyped_storage()
        _tags[storage.data_ptr()] = (f"npu:{self.index}", storage)
        return self.inner.detach().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on the CPU tensors inside, and put what comes out back onto the device it belongs to."""
    found: list[int] = []
    away = False  # whether the result leaves the device

    def unwrap(value: Any) -> Any:
        nonlocal away
        if isinstance(value, FakeTensor):
            found.append(value.index)
            return value.inner
        if isinstance(value, torch.device):
            if value.type == "npu":
                found.insert(0, _index(value))
                return torch.device("cpu")
            away = True
        return value

    plain_args, plain_kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    index = found[0] if found else _current
    if torch.Tag.nondeterministic_seeded in func.tags:
        out = _with_own_random_numbers(index, lambda: func(*plain_args, **plain_kwargs))
    else:
        out = func(*plain_args, **plain_kwargs)
    written = _written(func, args, kwargs)
    if written is not None:
        return written
    if away:
        return out
    return tree_map(lambda value: FakeTensor(value, index) if _is_plain(value) else value, out)


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the arguments that an operator writes to and returns, as they came; None if it returns something new."""
    names = [argument for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write]
    if not names or not func._schema.returns or not all(r.alias_info for r in func._schema.returns):
        return None
    given = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False)) | kwargs
    values = [given[argument.name] for argument in names if argument.name in given]
    return values[0] if len(func._schema.returns) == 1 else tuple(values)


def _with_own_random_numbers(index: int, draw: Any) -> Any:
    host = torch.get_rng_state()
    torch.set_rng_state(_generators.setdefault(index, host))
    try:
        return draw()
    finally:
        _generators[index] = torch.get_rng_state()
        torch.set_rng_state(host)


class _Nothing:
    """Streams and events, which order nothing here."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: True


def device_module(count: int) -> types.ModuleType:
    """Return what becomes `torch.npu`."""
    module = types.ModuleType("torch.npu")

    def set_device(device: Any) -> None:
        global _current
        if not 0 <= _index(device) < count:
            raise RuntimeError(f"no device {device}")
        _current = _index(device)

    def manual_seed_all(seed: int) -> None:
        for index in range(count):
            _generators[index] = torch.Generator().manual_seed(seed).get_state()

    def set_rng_state(state: torch.Tensor, device: Any = "npu") -> None:
        _generators[_index(device)] = state.clone()

    def get_rng_state(device: Any = "npu") -> torch.Tensor:
        return _generators.setdefault(_index(device), torch.get_rng_state()).clone()

    stream = _Nothing()
    functions = {
        "is_available": lambda: count > 0,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: _current,
        "set_device": set_device,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": manual_seed_all,
        "manual_seed": manual_seed_all,
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "memory_stats": lambda device=None: {"allocated_bytes.all.current": 0},
        "get_device_name": lambda device=None: "Fake910",
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "set_compile_mode": lambda jit_compile: None,
        "current_stream": lambda device=None: stream,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "is_bf16_supported": lambda: True,
    }
    for name, function in functions.items():
        setattr(module, name, function)
    module.Stream, module.Event = _Nothing, _Nothing
    module.config = types.SimpleNamespace()
    module.matmul, module.conv = types.SimpleNamespace(), types.SimpleNamespace()
    return module


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


_libraries: list[Any] = []  # what they register lives as long as they do


def install(count: int | None = None) -> None:
    """Give this process `count` NPUs."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    count = int(os.environ.get(COUNT, "2")) if count is None else count
    # Lightning and torch look for the vendor's package before they look for the device.
    vendor = types.ModuleType("torch_npu")
    vendor.__version__ = f"{'.'.join(torch.__version__.split('.')[:2])}.0"
    vendor.__spec__ = types.SimpleNamespace(name="torch_npu", origin=None)
    sys.modules["torch_npu"] = vendor
    _setup_privateuseone_for_python_backend("npu", device_module(count), _Hooks(), _Guard())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    aten.impl("_copy_from", _copy_from, "PrivateUse1")
    aten.impl("linear", _autocast_linear, "AutocastPrivateUse1")
    _libraries.extend([everything, aten])
    torch.serialization.register_package(0, _tag, lambda storage, location: None)
    torch.__future__.set_swap_module_params_on_conversion(True)
    dist.Backend.register_backend("hccl", _gloo, devices=["npu", "cpu"])
    _keep_storages()


def _tag(storage: Any) -> str | None:
    """Return the device that a checkpoint says memory is on, as it does of a real NPU's."""
    return _tags.get(storage.data_ptr(), (None,))[0]


def _gloo(store: Any, rank: int, size: int, timeout: Any) -> Any:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


def _autocast_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    dtype = torch.get_autocast_dtype("npu")
    with torch.autocast("npu", enabled=False):
        return torch.ops.aten.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    target_inner = target.inner if isinstance(target, FakeTensor) else target
    target_inner.copy_(source.inner if isinstance(source, FakeTensor) else source)
    return target


def _keep_storages() -> None:
    """Let FSDP2 keep the memory that it would free between uses: it resizes storages, and wrappers have none."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    _fsdp_param.free_storage = lambda tensor: None
    _fsdp_param.alloc_storage = lambda tensor: None
