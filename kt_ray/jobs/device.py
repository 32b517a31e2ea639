"""The device that a process computes on: the share of a GPU that Ray gave a worker, or the one that a person names."""

from __future__ import annotations

import logging
import os
import platform
import warnings

import torch

from kt_ray._io.text import first_line
from kt_ray.errors import ResourceError

logger = logging.getLogger(__name__)
BROKEN_DEVICE = 70  # exit status of a worker that ends because its device is unusable


def open_device(gpus: float) -> str:
    """Return the torch device of a worker to which Ray gave `gpus` GPUs (0 to 1), ready for use.

    A share of a GPU is capped at as much of its memory, since Ray's fractions are only bookkeeping. Numbers are to
    repeat on a device, so TF32 is off and cuDNN uses its deterministic algorithms.
    Raises ResourceError if GPUs were given and torch sees none.
    """
    if not gpus:
        return "cpu"
    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        raise ResourceError(
            f"Ray gave this worker {gpus:g} GPUs, but torch {torch.__version__} sees none (CUDA_VISIBLE_DEVICES "
            f"{visible}); install a CUDA build of torch and a driver on that node, or ask for `gpus: 0`"
        )
    _repeat_numbers()
    if gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)
    return "cuda"


def use_device(name: str) -> str:
    """Return `name`, a device as torch names it (`cpu`, `cuda`, `cuda:1`), ready for use by this process.

    Numbers are to repeat on it, as on the devices of workers. Raises ResourceError if torch cannot compute there.
    """
    try:
        torch.empty(0, device=name).cpu()
    except (AssertionError, RuntimeError) as error:  # the former by a torch without CUDA
        raise ResourceError(
            f"device {name!r} cannot be used here ({first_line(error)}); name cpu, or cuda where torch sees a GPU"
        ) from None
    _repeat_numbers()
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)
    return name


def _repeat_numbers() -> None:
    """Turn TF32 off, and let cuDNN use its deterministic algorithms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 recommends its new names of these settings
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def device_name(device: torch.device | str) -> str:
    """Return the name of `device`; of a GPU, with the memory in GiB that this process may have of it."""
    device = torch.device(device)
    if device.type == "cuda":
        share = torch.cuda.get_per_process_memory_fraction(device)
        memory = share * torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)}, {memory:.1f} GiB"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


def free_memory(device: torch.device | str) -> int:
    """Return the bytes of a CUDA device that this process can still have, within its share of it.

    What the process kept for later use is given back first.
    """
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return max(0, min(free, int(share * total) - torch.cuda.memory_reserved(device)))


def native_bfloat16(device: str) -> bool:
    """Return True if `device` is known to compute in bfloat16 itself, rather than to imitate it."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch do not say
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def release_memory(device: str) -> None:
    """Give the cached memory of `device` back, so that others on the same GPU can have it."""
    if device != "cpu":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that a device's memory is full, of torch's allocator or of CUDA's libraries."""
    signs = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def is_device_broken(error: BaseException) -> bool:
    """Return whether `error` leaves the device unusable for this process.

    Such CUDA errors (an illegal address, a lost GPU) are sticky: every later call of the process fails too. Lack of
    memory and what cannot be recorded as a CUDA graph ("… when stream is capturing", "… during capture") are not.
    """
    text = str(error)
    if is_out_of_memory(error) or "captur" in text:
        return False
    broken = ("CUDA error", "CUDNN_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_EXECUTION_FAILED")
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in broken)
    )


def end_if_device_broken(error: BaseException) -> None:
    """End this process at once if `error` left its device unusable; Ray then gives the work to another worker."""
    if is_device_broken(error):
        logger.critical("the device of this worker is unusable, the worker ends: %s", error)
        os._exit(BROKEN_DEVICE)
