"""One function as a Ray task: on a node that has what it needs, on its share of a GPU, reporting while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kt_ray._io.text import first_line
from kt_ray.errors import ResourceError
from kt_ray.jobs.device import end_if_device_broken, open_device

REPORT_SECONDS = 0.5  # between looks for reports
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")
Report = Callable[[Any], None]


def ray_options(demand: Mapping[str, float], labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the options of a Ray task or actor that takes `demand`, by Ray's names, of a node with `labels`."""
    others = {name: amount for name, amount in demand.items() if amount and name not in ("CPU", "GPU")}
    options = {"num_cpus": demand.get("CPU", 0), "num_gpus": demand.get("GPU", 0), "resources": others}
    return options | ({"label_selector": dict(labels)} if labels else {})


def run_remotely(
    function: Callable[Concatenate[str, Report, Arguments], Returned],
    demand: Mapping[str, float],
    labels: Mapping[str, str],
    on_report: Report,
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Returned:
    """Return `function(device, report, …)`, called in a Ray task that takes `demand` of a node with `labels`.

    `device` is the torch device of the task. What the function gives to `report` reaches `on_report` here. If the
    task's process or node dies, Ray calls the function again. Raises ResourceError if the task has no GPU although it
    asked for one, or died again and again.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    options = ray_options(demand, labels)
    task = ray.remote(**options)(_call).remote(function, options, reports.put, *args, **kwargs)
    try:
        finished: list[Any] = []
        while not finished:
            finished, _ = ray.wait([task], timeout=REPORT_SECONDS)
            for _ in range(reports.qsize()):
                on_report(reports.get())
        result: Returned = ray.get(task)
        return result
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise ResourceError(f"a Ray task that takes {dict(demand)} was lost: {first_line(error)}") from None
    finally:
        ray.cancel(task, force=True)
        reports.shutdown(force=True)


def _call(function: Callable[..., Any], options: Mapping[str, Any], report: Report, *args: Any, **kwargs: Any) -> Any:
    torch.set_num_threads(max(1, int(options["num_cpus"])))
    try:
        return function(open_device(options["num_gpus"]), report, *args, **kwargs)
    except Exception as error:
        end_if_device_broken(error)
        raise
