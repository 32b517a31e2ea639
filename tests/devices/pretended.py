"""A pretended CUDA device: tensors that report `cuda:0` and compute on the CPU, with real values.

    with pretended_cuda() as device:  # device.waits, device.where, device.launches
        anything(device="cuda")

It raises a PlacementError (a RuntimeError) if a real device would raise: tensors of two devices in one operation,
indices on the device into a tensor of the host, a generator of the other device, NumPy of a device tensor. It counts
what makes the host wait: reads of values, copies to the host, copies of pageable memory to the device, shapes
that depend on values. It cannot see numerics of cuDNN, TF32 and bfloat16, memory, streams, or compiled kernels.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import safetensors.torch
import torch
import torch.utils._device
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from kt_ray.networks.architecture import structure
from tests.devices.pretended_graphs import graph_patches

CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")
aten = torch.ops.aten


class PlacementError(RuntimeError):
    """What a real device would have refused."""


HEALTH_CHECK = next(name for name in dir(torch.optim.Optimizer) if name.endswith("_graph_capture_health_check"))
_DEVICE_GENERATORS: set[int] = set()


class DeviceGenerator(torch.Generator):
    """A CPU generator that says it is of a device."""

    def __new__(cls, device="cpu"):
        return torch._C.Generator.__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._device = CUDA
            _DEVICE_GENERATORS.add(self._cdata)  # torch hands other objects of the same generator to dispatch

    def __del__(self):
        _DEVICE_GENERATORS.discard(self._cdata)

    @property
    def device(self):
        return self._device


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on cuda:0; `inner` is the CPU tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="meta",  # for C++, whose engine runs meta on the caller's thread; Python sees cuda
        )

    def __init__(self, inner):
        self.inner = inner

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)

    def __repr__(self):
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype}, cuda:0)"

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return DeviceTensor(inner["inner"])

    def numpy(self, *args, **kwargs):
        raise PlacementError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        made = torch.tensor(data, dtype=dtype or self.dtype)
        return made.to(device or CUDA).requires_grad_(requires_grad)

    def tolist(self):
        device_now().note("read of a value", "tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        mode = device_now()
        if mode is None:
            raise PlacementError(f"{func} on a device tensor outside of pretended_cuda()")
        return mode.run(func, args, kwargs or {})


_CURRENT: list[DeviceMode] = []


def device_now():
    return _CURRENT[-1] if _CURRENT else None


INDEXING = {
    aten.index.Tensor: 1,
    aten.index_put.default: 1,
    aten.index_put_.default: 1,
    aten._index_put_impl_.default: 1,
    aten._unsafe_index.Tensor: 1,
}
COPIES = {aten.copy_.default, aten.copy.default, aten._foreach_copy_.default}
VALUE_SHAPED = {  # shapes that depend on values: the host waits
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
    aten.unique_dim.default,
}
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.item.default,
    aten.allclose.default,
    aten._linalg_check_errors.default,  # by torch.linalg.solve and such, which raise if that failed
}


class DeviceMode(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.syncs, self.where, self.launches = Counter(), Counter(), Counter()
        self.generator = DeviceGenerator("cuda")
        self.graph, self.replays = None, 0  # the CUDA graph that is being recorded
        self.float64 = True  # Apple's devices have none

    def note(self, kind, name):
        if self.graph is not None:
            raise PlacementError(f"{name}: operation not permitted when stream is capturing ({kind})")
        self.syncs[kind] += 1
        for frame in reversed(traceback.extract_stack()):
            if "/kt_ray/" in frame.filename:
                self.where[f"{kind}: {frame.filename.split('/kt_ray/')[-1]}:{frame.lineno} ({name})"] += 1
                return
        self.where[f"{kind}: elsewhere ({name})"] += 1

    @property
    def waits(self):
        return sum(self.syncs.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        name = str(func)
        flat, _ = pytree.tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        on_device = [value for value in tensors if isinstance(value, DeviceTensor)]
        on_host = [value for value in tensors if not isinstance(value, DeviceTensor)]
        generator = next((value for value in flat if isinstance(value, torch._C.Generator)), None)
        target = self._target(name, args[1] if func is aten.to.device else kwargs.get("device"))
        if not on_device and (target is None or target.type != "cuda"):
            self._generator(name, generator, CPU)
            return func(*args, **kwargs)  # nothing of the device
        place = self._place(func, args, target, on_device, on_host)
        self._generator(name, generator, place)
        self._count(func, args, place)
        given_args, given = pytree.tree_map_only(DeviceTensor, lambda value: value.inner, (args, kwargs))
        if target is not None and place.type == "cuda":
            given = {**given, "device": CPU}
        given.pop("pin_memory", None)
        with self._randomness(func, generator, place):
            out = self._computed(func, place, given_args, given)
        if place.type != "cuda":
            return out
        if not self.float64 and any(
            getattr(value, "dtype", None) == torch.float64 for value in pytree.tree_leaves(out)
        ):
            raise PlacementError(f"{name}: cannot convert a tensor to float64, which the device does not have")
        out = pytree.tree_map_only(
            torch.Tensor, lambda value: value if isinstance(value, DeviceTensor) else DeviceTensor(value), out
        )
        return return_and_correct_aliasing(func, args, kwargs, out) if _aliases(func) else out

    def _target(self, name, explicit):
        """The device that a call names."""
        target = torch.device(explicit) if explicit is not None else None
        if target is not None and target.type == "meta" and not _meta_is_meant():
            target = CUDA  # what C++ takes a pretended tensor's device for, as in `x.to(other)`
        if target is not None and target.type not in ("cpu", "cuda", "meta"):
            raise PlacementError(f"{name}: device {target}")
        return target

    def _place(self, func, args, target, on_device, on_host):
        """Where the result lies, if the devices fit."""
        if target is not None:
            if on_device and on_host and func is not aten._to_copy.default:
                self._mixed(str(func), on_device, on_host)
            return target
        if func in COPIES:
            return CUDA if isinstance(args[0], DeviceTensor) else CPU
        if func in INDEXING:
            return self._indexing(str(func), func, args)
        self._mixed(str(func), on_device, on_host)
        return CUDA

    def _count(self, func, args, place):
        """Note what makes the host wait, and what the device is given to do."""
        name = str(func)
        if func in READS:
            self.note("read of a value", name)
        elif func in VALUE_SHAPED:
            self.note("shape of values", name)
        elif func is aten._to_copy.default or func in COPIES:
            source = args[0] if func is aten._to_copy.default else args[1]
            here = isinstance(source, DeviceTensor)
            if isinstance(source, torch.Tensor) and here != (place.type == "cuda") and place.type != "meta":
                self.note("copy to the host" if here else "copy to the device", name)
        if place.type == "cuda" and not _is_view(func) and "lift_fresh" not in name and "detach" not in name:
            self.launches[name] += 1

    def _computed(self, func, place, args, kwargs):
        """What `func` gives on the CPU, recorded if a graph is."""
        if self.graph is not None and torch.Tag.nondeterministic_seeded in func.tags:
            raise PlacementError(f"{func}: random numbers are drawn while stream is capturing")
        if self.graph is not None and place.type == "cuda":
            return self.graph.note(func, args, kwargs)
        return func(*args, **kwargs)

    def _mixed(self, name, on_device, on_host):
        big = [value for value in on_host if value.dim() > 0]
        if big or (on_host and all(value.dim() == 0 for value in on_device)):
            value = (big or on_host)[0]
            if not big and on_device:  # both scalars: TensorIterator takes the CPU's as a number
                return
            raise PlacementError(
                f"{name}: Expected all tensors to be on the same device, but found cuda:0 and cpu! "
                f"(the one on the cpu is {tuple(value.shape)} {value.dtype})"
            )

    def _indexing(self, name, func, args):
        values, indices = args[0], [index for index in args[1] if index is not None]
        if not isinstance(values, DeviceTensor):
            if any(isinstance(index, DeviceTensor) for index in indices):
                raise PlacementError(f"{name}: indices should be on the device of the indexed tensor (cpu)")
            given = args[2] if len(args) > 2 else None
            if isinstance(given, DeviceTensor):
                raise PlacementError(f"{name}: expected values on the cpu")
            return CPU
        if len(args) > 2 and not isinstance(args[2], DeviceTensor) and args[2].dim() > 0:
            raise PlacementError(f"{name}: expected values on cuda:0, got cpu")
        for index in indices:
            if not isinstance(index, DeviceTensor):
                self.note("copy to the device", name + ", an index")
            if index.dtype in (torch.bool, torch.uint8):
                self.note("shape of values", name + ", a mask")
        return CUDA

    def _generator(self, name, generator, place):
        if generator is None:
            return
        kind = "cuda" if generator._cdata in _DEVICE_GENERATORS else "cpu"
        if kind != place.type:
            raise PlacementError(f"{name}: Expected a '{place.type}' device type for generator but found '{kind}'")

    @contextlib.contextmanager
    def _randomness(self, func, generator, place):
        """The device's own default generator for what draws from it."""
        if place.type != "cuda" or generator is not None or torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(before)


class Numbered(TorchFunctionMode):
    """`cuda` becomes `cuda:0`: C++ would ask the driver which is meant."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def numbered(value):
            bare = (
                value == "cuda" if isinstance(value, str) else isinstance(value, torch.device) and value.type == "cuda"
            )
            return CUDA if bare else value

        return func(*map(numbered, args), **{name: numbered(value) for name, value in (kwargs or {}).items()})


def _built_on_cpu(make):
    """`torch.tensor`, which would start CUDA in C++: on the CPU, then copied."""

    def built(data, *args, device=None, **kwargs):
        made = make(data, *args, **kwargs)
        return made if device is None else made.to(device)

    return built


def _meta_is_meant():
    """Whether this is inside `with torch.device("meta")`."""
    current = torch.utils._device.CURRENT_DEVICE
    return current is not None and torch.device(current).type == "meta"


def _is_view(func):
    return any(
        argument.alias_info is not None and not argument.alias_info.is_write for argument in func._schema.arguments
    )


def _aliases(func):
    return any(argument.alias_info is not None for argument in func._schema.arguments)


OPEN = safetensors.torch.safe_open


class Opened:
    """`safe_open`, which reads to the device in C: on the CPU, then copied."""

    def __init__(self, *args, device="cpu", **kwargs):
        self.file, self.place = OPEN(*args, **kwargs), device

    def __enter__(self):
        self.file = self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def get_tensor(self, name):
        return self.file.get_tensor(name).to(self.place)

    def get_tensors(self):
        return {name: self.get_tensor(name) for name in self.file.keys()}  # noqa: SIM118 - not iterable itself


ANSWERS = {  # of functions of `torch.cuda`
    "_lazy_init": None,
    "is_available": True,
    "is_initialized": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_name": "Pretended",
    "get_device_properties": mock.Mock(total_memory=80 * 2**30),
    "empty_cache": None,
    "mem_get_info": (40 * 2**30, 80 * 2**30),
    "get_per_process_memory_fraction": 1.0,
    "memory_reserved": 0,
    "reset_peak_memory_stats": None,
    "synchronize": None,
    "set_per_process_memory_fraction": None,
    "is_bf16_supported": True,
}


@contextlib.contextmanager
def pretended_cuda() -> Iterator[DeviceMode]:
    """Pretend that this process has one CUDA device; yields what it did."""
    mode = DeviceMode()
    cuda = torch.cuda

    def get_rng_state(device="cuda"):
        return mode.generator.get_state()

    def set_rng_state(state, device="cuda"):
        mode.generator.set_state(state)

    def seed(value):
        mode.generator.manual_seed(int(value))

    patches = [
        mock.patch.object(safetensors.torch, "safe_open", Opened),
        *(mock.patch.object(cuda, name, return_value=answer) for name, answer in ANSWERS.items()),
        mock.patch.object(cuda, "get_rng_state", get_rng_state),
        mock.patch.object(cuda, "set_rng_state", set_rng_state),
        mock.patch.object(cuda, "manual_seed_all", seed),
        mock.patch.object(cuda, "manual_seed", seed),
        mock.patch.object(torch, "Generator", DeviceGenerator),
        mock.patch.object(torch.optim.Optimizer, HEALTH_CHECK, return_value=None),
        mock.patch.object(
            sys.modules["torch.optim.optimizer"],
            "_foreach_supported_types",
            [torch.Tensor, torch.nn.Parameter, DeviceTensor],
        ),
        *graph_patches(mode),
        *(mock.patch.object(torch, name, _built_on_cpu(getattr(torch, name))) for name in ("tensor", "as_tensor")),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        _CURRENT.append(mode)
        try:
            with Numbered(), mode:
                yield mode
        finally:
            _CURRENT.pop()
            structure.cache_clear()  # modules made in here are of pretended tensors
