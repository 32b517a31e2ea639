"""What a build outlives, on Ray clusters of several nodes: it ends with the same zoo as one left in peace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from kt_ray.config import ActorConfig, DatasetConfig, MemberCounts, NetworkConfig, PhaseConfig, RecipeConfig, ZooConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.errors import ResourceError, ZooError
from kt_ray.jobs.device import device_name
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo import actors
from kt_ray.zoo.actors import build_zoo
from kt_ray.zoo.members import Zoo, members_of
from kt_ray.zoo.progress import BuildProgress
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.training.members import Plan, train_members
from kt_ray.zoo.training.plan import ProbeMemory
from kt_ray.zoo.training.trainer import Trainer
from tests.disks import enlarge, small_disk

PHASE = PhaseConfig(epochs=1, batch_size=128)
CONFIG = ZooConfig(
    members=MemberCounts(train=10, selection=1, test=1),
    recipe=RecipeConfig(source=PHASE, target=PHASE),
    actors=ActorConfig(members_at_once=1, resources={"zoo": 1}),
)
IMAGES = DatasetConfig(name="mnist5k", train_images=512, selection_images=128)
TOLERANCE = 5e-3
STORE_BYTES = 75 << 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that holds no actor; tests add nodes with the resource `zoo`."""
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster: Cluster, zoo: int = 0, **options: Any) -> Any:
    """A node with two CPUs and `zoo` of the resource that actors ask for."""
    node = cluster.add_node(num_cpus=2, resources={"zoo": zoo} if zoo else {}, **options)
    cluster.wait_for_nodes()
    return node


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset) -> Zoo:
    """Every member of CONFIG, trained here."""
    members = sorted(members_of(CONFIG.seed, CONFIG.members), key=lambda member: member.id)
    architecture = PaperArchitecture("basic_to_simple")
    parameters, index = train_members(members, CONFIG.recipe, architecture, dataset)
    return Zoo(architecture, parameters, index, "", dataset.fingerprint)


def assert_same(zoo: Zoo, undisturbed: Zoo) -> None:
    """No member missing, doubled or different."""
    assert zoo.index["id"].to_pylist() == undisturbed.index["id"].to_pylist()
    for name, value in undisturbed.parameters.items():
        torch.testing.assert_close(zoo.parameters[name], value, atol=TOLERANCE, rtol=0)


def once(action: Callable[[BuildProgress], None], at: int) -> Callable[[BuildProgress], None]:
    """`action` when `at` members are done, one time."""
    did: list[bool] = []

    def on_progress(progress: BuildProgress) -> None:
        if progress.done >= at and not did:
            did.append(True)
            action(progress)

    return on_progress


def test_an_actor_killed_a_node_removed_and_a_node_added(
    cluster: Cluster, dataset: Dataset, undisturbed: Zoo, tmp_path: Path
) -> None:
    first = add_node(cluster, zoo=2)
    store, crews = ZooStore(str(tmp_path / "zoo")), list[int]()
    nodes = [first]

    def disturb(progress: BuildProgress) -> None:
        crews.append(progress.actors)
        if progress.done == 2:
            _kill_a_trainer(first)
        elif progress.done == 4:
            nodes.append(add_node(cluster, zoo=2))
        elif progress.done == 8:
            cluster.remove_node(nodes[0], allow_graceful=False)

    try:
        assert_same(build_zoo(CONFIG, "basic_to_simple", dataset, store, disturb), undisturbed)
    finally:
        cluster.remove_node(nodes[-1])
    assert store.verify() == []
    assert len(crews) == 12


def _kill_a_trainer(node: Any) -> None:
    """kill -9 for the process of one actor that is training on `node`."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    trainers = [pid for pid in children if b"ray::Trainer.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(trainers[0]), signal.SIGKILL)


def test_a_demand_that_leaves_with_its_node_is_an_error(
    cluster: Cluster, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "PATIENCE_SECONDS", 5.0)
    node = add_node(cluster, zoo=1)
    leave = once(lambda _: cluster.remove_node(node, allow_graceful=False), 2)
    store = ZooStore(str(tmp_path / "zoo"))
    with pytest.raises(ResourceError, match=r"no node has CPU=1, zoo=1; the cluster's nodes have: .*CPU"):
        build_zoo(CONFIG, "basic_to_simple", dataset, store, leave)
    assert len(store.present()) >= 2  # what was trained is kept


class OnTheCPU(Trainer):
    """An actor that Ray gives a GPU, where there is none."""

    def __init__(
        self, recipe: RecipeConfig, architecture: PaperArchitecture, dataset: Dataset, gpus: float, *others: Any
    ) -> None:
        assert gpus
        super().__init__(recipe, architecture, dataset, 0, *others)


def test_gpus_are_shared_and_custom_resources_and_labels_place_actors(
    cluster: Cluster, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logical GPUs: a quarter each puts four actors on one GPU, and none on a node without."""
    monkeypatch.setattr(actors, "Trainer", OnTheCPU)
    node = add_node(cluster, num_gpus=1, labels={"kind": "spot"})
    try:
        config = CONFIG.model_copy(
            update={"actors": ActorConfig(cpus=0.5, gpus=0.25, members_at_once=1, label_selector={"kind": "spot"})}
        )
        crews = list[int]()
        build_zoo(config, "basic_to_simple", dataset, ZooStore(str(tmp_path / "zoo")), lambda p: crews.append(p.actors))
        assert max(crews) == 4
        for bad in ({"gpus": 1.0, "cpus": 64}, {"gpus": 0.25, "label_selector": {"kind": "none"}}):
            refused = config.model_copy(update={"actors": ActorConfig(**bad)})
            with pytest.raises(ResourceError, match=r"no node has .*; ask for less"):
                build_zoo(refused, "basic_to_simple", dataset, ZooStore(str(tmp_path / "refused")))
    finally:
        cluster.remove_node(node)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_actors_whose_gpus_torch_does_not_see_are_one_line(cluster: Cluster, dataset: Dataset, tmp_path: Path) -> None:
    node = add_node(cluster, num_gpus=1)
    config = CONFIG.model_copy(update={"actors": ActorConfig(gpus=1)})
    try:
        with pytest.raises(
            ZooError, match=r"^4 zoo actors died .*Ray gave this worker 1 GPUs, but torch .* sees none.*$"
        ):
            build_zoo(config, "basic_to_simple", dataset, ZooStore(str(tmp_path / "zoo")))
    finally:
        cluster.remove_node(node)


def test_no_more_batches_are_in_flight_than_fit_into_half_of_the_smallest_object_store(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four actors have room on the node; the results of two fill half of its store, which is Ray's smallest."""
    phase = PhaseConfig(epochs=1, steps=1, batch_size=2)
    config = ZooConfig(
        members=MemberCounts(train=14, selection=1, test=1),
        network=NetworkConfig(channels=256, source_hidden=256),
        recipe=RecipeConfig(source=phase, target=phase),
        actors=ActorConfig(cpus=0.5, members_at_once=4, resources={"zoo": 1}),
    )
    dataset = load_dataset(DatasetConfig(name="mnist5k", train_images=16, selection_images=4))
    store = ZooStore(str(tmp_path / "zoo"))
    ProbeMemory(store.uri).keep(
        ProbeMemory.key(PaperArchitecture("basic_to_simple", config.network), config.recipe, 4, device_name("cpu")),
        Plan(),
    )
    in_flight, wait = list[int](), actors._Build._wait

    def counting(build: actors._Build) -> None:
        in_flight.append(len(build.running))
        wait(build)

    monkeypatch.setattr(actors._Build, "_wait", counting)
    node = add_node(cluster, zoo=4, object_store_memory=STORE_BYTES)
    try:
        zoo = build_zoo(config, "basic_to_simple", dataset, store)
    finally:
        cluster.remove_node(node)
    batch = 4 * sum(value.nbytes for value in zoo.parameters.values()) / len(zoo)
    assert len(zoo) == 16
    assert 3 * batch > STORE_BYTES / 2
    assert max(in_flight) == 2


DRIVER = """
import sys, warnings
from kt_ray.config import RayConfig
from kt_ray.data import load_dataset
from kt_ray.jobs.connection import connected
from kt_ray.zoo.actors import build_zoo
from kt_ray.zoo.store import ZooStore
sys.path.insert(0, sys.argv[2])
from test_faults import CONFIG, IMAGES
config = CONFIG.model_copy(update={"actors": CONFIG.actors.model_copy(update={"resources": {}, "count": 2})})
with connected(RayConfig(cpus=2)):
    dataset, store = load_dataset(IMAGES), ZooStore(sys.argv[1])
    build_zoo(config, "basic_to_simple", dataset, store, lambda progress: print(progress.done, flush=True))
"""


def drive(uri: str) -> subprocess.Popen[str]:
    """A driver of its own, with a Ray of its own, that prints how many members are done."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    arguments = [sys.executable, "-c", DRIVER, uri, str(Path(__file__).parent)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def wait_for(driver: subprocess.Popen[str], done: int) -> None:
    assert driver.stdout is not None
    while line := driver.stdout.readline():
        if int(line) >= done:
            return
    raise AssertionError(f"the driver ended before {done} members were done")


def end_of(driver: subprocess.Popen[str]) -> int:
    """The exit status of a driver, which is read to its end."""
    driver.communicate(timeout=300)
    return driver.returncode


def test_a_driver_killed_terminated_and_two_at_once(undisturbed: Zoo, tmp_path: Path) -> None:
    """kill -9, then SIGTERM, then two drivers beside each other on what is left."""
    uri = str(tmp_path / "zoo")
    for number, done in ((signal.SIGKILL, 2), (signal.SIGTERM, 2)):
        driver = drive(uri)
        wait_for(driver, done)
        driver.send_signal(number)
        assert end_of(driver) != 0
        assert ZooStore(uri).verify() == []
    together = [drive(uri), drive(uri)]
    assert [end_of(driver) for driver in together] == [0, 0]
    store = ZooStore(uri)
    assert_same(store.read(), undisturbed)
    assert store.verify() == []
    assert not list(Path(uri).glob(".*tmp"))


def add_each(store: ZooStore, rows: list[Zoo]) -> None:
    for row in rows:
        store.add(row.parameters, row.index)


def test_a_full_disk_is_an_error_and_the_build_goes_on_with_space(
    dataset: Dataset, undisturbed: Zoo, tmp_path: Path
) -> None:
    """A small tmpfs; skipped where this user may not mount one."""
    with small_disk(tmp_path / "disk", kilobytes=200) as disk:
        store = ZooStore(f"{disk}/zoo")
        store.create(CONFIG, "basic_to_simple", dataset)
        rows = [undisturbed.take(torch.tensor([row])) for row in range(len(undisturbed))]
        with pytest.raises(ZooError, match=r"cannot be written \(No space left on device\); free some space"):
            add_each(store, rows)
        assert store.verify() == []
        present = store.present()
        assert 0 < len(present) < len(rows)
        enlarge(disk, kilobytes=10_000)
        add_each(store, rows)
        assert_same(store.read(), undisturbed)
