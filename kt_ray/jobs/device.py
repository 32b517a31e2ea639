"""The device of a Ray worker: the share of a GPU that Ray gave it, or the CPU."""

from __future__ import annotations

import logging
import os

import torch

from kt_ray.errors import ResourceError

logger = logging.getLogger(__name__)
BROKEN_DEVICE = 70  # exit status of a worker that ends because its device is unusable


def open_device(gpus: float) -> str:
    """Return the torch device of a worker to which Ray gave `gpus` GPUs (0 to 1), ready for use.

    A share of a GPU is capped at as much of its memory, since Ray's fractions are only bookkeeping. Numbers are to
    repeat on a device, so TF32 is off and cuDNN uses its deterministic algorithms.

    Raises:
        ResourceError: If GPUs were given and torch sees none.
    """
    if not gpus:
        return "cpu"
    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        raise ResourceError(
            f"Ray gave this worker {gpus:g} GPUs, but torch {torch.__version__} sees none (CUDA_VISIBLE_DEVICES "
            f"{visible}); install a CUDA build of torch and a driver on that node, or ask for `gpus: 0`"
        )
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)
    return "cuda"


def free_memory(device: torch.device | str) -> int:
    """Return the bytes of a CUDA device that this process can still have, within its share of it."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return max(0, min(free, int(share * total) - torch.cuda.memory_reserved(device)))


def release_memory(device: str) -> None:
    """Give the cached memory of `device` back, so that others on the same GPU can have it."""
    if device != "cpu":
        torch.cuda.empty_cache()


def is_device_broken(error: BaseException) -> bool:
    """Return whether `error` leaves the device unusable for this process: a CUDA error other than lack of memory.

    Such errors (an illegal address, a lost GPU) are sticky: every later call of the process fails too.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def end_if_device_broken(error: BaseException) -> None:
    """End this process at once if `error` left its device unusable; Ray then gives the work to another worker."""
    if is_device_broken(error):
        logger.critical("the device of this worker is unusable, the worker ends: %s", error)
        os._exit(BROKEN_DEVICE)
