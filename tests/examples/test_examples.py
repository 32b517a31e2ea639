"""Each example is run as a person runs it, in miniature."""

from __future__ import annotations

import runpy
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from PIL import Image
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from kt_ray.config.study_code import unload_code
from kt_ray.data import Dataset
from kt_ray.errors import ConfigError
from kt_ray.search.summary import trial_rows
from kt_ray.studies.permission import Permission
from kt_ray.studies.study_file import read_study
from kt_ray.studies.workspace import Workspace
from tests.studies.miniature import finished, kt_ray, said

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "zoo.members": "{train: 4, selection: 1, test: 1}",
    "zoo.actors.count": "1",
    "search.trials": "2",
    "search.concurrency": "1",
    "search.pruner.name": "none",
    "trial.training": "{epochs: 1, steps_per_epoch: 2, batch_size: 2}",
    "zoo.recipe": "{source: {epochs: 1, steps: 4, learning_rate: 0.1}, target: {epochs: 1, steps: 2}}",
}
FEW_IMAGES = {"dataset.train_images": "256", "dataset.selection_images": "64"}
RESNET = (
    SMALL
    | FEW_IMAGES
    | {
        "network.options": "{width: 4, blocks: 2}",
        "trial.translator.projection.probes": "8",
        "ray.cpus": "2",
    }
)


def settings(values: dict[str, str]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The examples in a folder of their own, and a workspace beside them."""
    for file in EXAMPLES.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def test_a_family_and_a_loss_of_ones_own(folder: Path, ray_session: None) -> None:
    workspace, study = folder / "workspace", folder / "own_family.yaml"
    values = settings(SMALL | FEW_IMAGES)
    assert "trials 2 done" in said("run", str(study), "--allow-code", *values, workspace=workspace)
    trials = trial_rows(Workspace.existing(workspace).study_storage, "own-family")
    assert {"translator.options.width", "loss.terms.output_power.options.power"} <= trials[0].keys()
    with pytest.raises(ConfigError, match=r"family shared: options.width"):
        read_study(study, ["trial.translator.options.width=none"], Permission.at(workspace))
    unload_code("own_family.py")


def test_images_in_directories(folder: Path, dataset: Dataset, ray_session: None) -> None:
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        for label in range(10):
            place = folder / "images" / split / f"digit {label}"
            place.mkdir(parents=True)
            for number, row in enumerate(torch.nonzero(images.labels == label).flatten()[:8]):
                Image.fromarray(images.images[row, 0].numpy()).save(place / f"{number}.png")
    values = {"dataset.options.path": str(folder / "images"), "dataset.selection_images": "16"}
    values |= {"trial.translator.projection": "{probes: 4, images: strokes}"}
    study = str(folder / "folder_dataset.yaml")
    told = said("validate", study, *settings(SMALL | values), workspace=folder / "workspace")
    assert "folder_dataset.yaml: valid" in told


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes."""
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
def test_a_network_of_ones_own_from_zoo_to_translated_checkpoint(folder: Path, two_nodes: str) -> None:
    workspace, study, code = (folder / name for name in ("workspace", "resnet20_halved.yaml", "resnet20_halved.py"))
    values = settings(RESNET | {"ray.address": two_nodes, "search.trials": "3"})
    refused = kt_ray("validate", str(study), *values, workspace=workspace)
    assert "--allow-code" in refused.communicate(timeout=300)[0]
    assert refused.returncode == 2
    assert "valid" in finished(kt_ray("validate", str(study), "--allow-code", *values, workspace=workspace))

    running = kt_ray("run", str(study), "--allow-code", *values, workspace=workspace, new_session=True)
    assert running.stdout is not None
    for line in running.stdout:
        if "search: up to" in line:
            break
    running.send_signal(signal.SIGKILL)
    running.communicate()
    code.rename(folder / "kept.txt")  # neither workers nor a fresh process read it
    time.sleep(1)
    assert "trials 3 done" in finished(kt_ray("resume", "resnet20-halved", workspace=workspace))

    (folder / "kept.txt").rename(code)
    said = finished(
        kt_ray("evaluate", "models:/resnet20-halved/1", "resnet20", "--code", str(code), workspace=workspace)
    )
    assert "translated, all blocks" in said
    assert "translated, layer3.1" in said

    network = runpy.run_path(str(code))["ResNet20"](4, 2)
    torch.save(network.state_dict(), folder / "large.pth")
    large, small = str(folder / "large.pth"), folder / "small.safetensors"
    model = ["models:/resnet20-halved/1", large, "-o", str(small), "--dataset", "mnist5k", "--code", str(code)]
    told = finished(kt_ray("translate", *model, workspace=workspace))
    assert all(f"layer{stage}.{block}" in told for stage in (1, 2, 3) for block in (0, 1))
    built = runpy.run_path(str(small.with_suffix(".py")))["build"]()
    built.load_state_dict(load_file(small))
    assert built.layer3[1].conv1.out_channels == 8
