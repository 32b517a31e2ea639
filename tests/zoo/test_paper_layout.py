from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kt_ray.config import MemberCounts, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.paper_layout import export_zoo, import_zoo
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.untrained import untrained_zoo


@pytest.fixture
def folder(tmp_path: Path, random_zoo: Zoo) -> Path:
    """The random zoo in the paper's layout."""
    counts = export_zoo(random_zoo, tmp_path / "paper")
    pairs = {"inputs": 8, "labels": 8, "backup_begin": 8, "backup_last": 8}
    assert counts == pairs | {"complex": 5, "begin": 5, "last": 5}
    return tmp_path / "paper"


def import_into(folder: Path, dataset: Dataset) -> ZooStore:
    store = ZooStore(str(folder.parent / "imported"))
    assert import_zoo(folder, store, ZooConfig(), "basic_to_simple", dataset) == 13
    return store


def test_export_then_import_is_the_same_zoo(folder: Path, random_zoo: Zoo, dataset: Dataset) -> None:
    zoo = import_into(folder, dataset).read()
    original = random_zoo.where("train")
    pairs = zoo.where("train")
    assert pairs.index["id"].to_pylist() == [f"imported-train-{number:06d}" for number in range(8)]
    assert all(torch.equal(pairs.parameters[name], original.parameters[name]) for name in original.parameters)
    validation = zoo.where("test", with_target=False)
    assert len(validation) == 5
    assert not any(validation.index["has_target"].to_pylist())
    assert torch.equal(
        validation.part("source")["conv1.weight"][2:], random_zoo.where("test").part("source")["conv1.weight"]
    )
    assert all(0 <= accuracy <= 1 for accuracy in zoo.index["source_accuracy"].to_pylist())


# Names and shapes in the paper's published code, for its MNIST networks.
BATCH_NORM = {"weight": (6,), "bias": (6,), "running_mean": (6,), "running_var": (6,), "num_batches_tracked": ()}
BLOCKS = {
    "basic_to_simple": {"conv1.weight": (3, 6, 3, 3), "conv2.weight": (6, 3, 3, 3)},
    "basic_to_mlp": {"fc1_c.weight": (12, 6), "fc1_c.bias": (12,), "fc2_c.weight": (6, 12), "fc2_c.bias": (6,)},
    "basic_to_attention": {f"{name}.weight": (6, 6, 1, 1) for name in ("proj_q", "proj_k", "proj_v", "proj")},
}
FACTS = {
    "inputs": {
        "conv1.weight": (6, 6, 3, 3),
        "conv2.weight": (6, 6, 3, 3),
        **{f"bn{number}.{name}": shape for number in (1, 2) for name, shape in BATCH_NORM.items()},
    },
    "backup_begin": {"conv.weight": (6, 1, 3, 3), **{f"bn.{name}": shape for name, shape in BATCH_NORM.items()}},
    "backup_last": {
        "downsample.weight": (12, 6, 1, 1),
        **{f"bn.{name}": shape and (12,) for name, shape in BATCH_NORM.items()},
        "fc.weight": (10, 588),
        "fc.bias": (10,),
    },
}


@pytest.mark.parametrize("pair", BLOCKS)
def test_names_and_shapes_are_the_papers_and_a_round_trip_is_exact(pair: str, tmp_path: Path, dataset: Dataset) -> None:
    zoo = untrained_zoo(PaperArchitecture(pair), MemberCounts(train=2, selection=1, test=1))
    export_zoo(zoo, tmp_path / "paper")
    same = {"complex": FACTS["inputs"], "begin": FACTS["backup_begin"], "last": FACTS["backup_last"]}
    for folder, expected in {**FACTS, "labels": BLOCKS[pair], **same}.items():
        state = torch.load(tmp_path / "paper" / folder / "1.pth", weights_only=True)
        assert {name: tuple(value.shape) for name, value in state.items()} == expected
    store = ZooStore(str(tmp_path / "zoo"))
    assert import_zoo(tmp_path / "paper", store, ZooConfig(), pair, dataset) == 4
    original, imported = zoo.where("train"), store.read("train")
    assert all(torch.equal(imported.parameters[name], original.parameters[name]) for name in original.parameters)


def test_files_with_our_names_in_any_order_are_read(folder: Path, random_zoo: Zoo, dataset: Dataset) -> None:
    head = random_zoo.where("train").part("head")
    ours = {name: value[3] for name, value in reversed(head.items())}
    torch.save(ours, folder / "backup_last" / "3.pth")
    zoo = import_into(folder, dataset).read()
    assert torch.equal(zoo.where("train").part("head")["linear.weight"][3], ours["linear.weight"])


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"conv1.weight": torch.zeros(4, 6, 3, 3), "conv2.weight": torch.zeros(6, 4, 3, 3)}, "shape"),
        ({"theirs.1": torch.zeros(3, 6, 3, 3), "theirs.2": torch.zeros(6, 3, 3, 3)}, "expected conv1.weight"),
    ],
)
def test_other_names_or_shapes_are_refused(
    folder: Path, dataset: Dataset, state: dict[str, torch.Tensor], told: str
) -> None:
    torch.save(state, folder / "labels" / "0.pth")
    with pytest.raises(ZooError, match=rf"0\.pth has .*{told}"):
        import_into(folder, dataset)


def test_a_pickle_with_code_in_it_is_refused(folder: Path, dataset: Dataset) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("this must not be printed",))

    torch.save(Code(), folder / "last" / "1.pth")
    with pytest.raises(ZooError, match=r"1\.pth needs code to be run"):
        import_into(folder, dataset)


def test_a_missing_file_is_named(folder: Path, dataset: Dataset) -> None:
    (folder / "labels" / "7.pth").unlink()
    with pytest.raises(ZooError, match=r"labels/7\.pth is missing, but another folder has number 7"):
        import_into(folder, dataset)


def test_an_empty_folder_is_said(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(ZooError, match=r"no inputs/<i>\.pth or complex/<i>\.pth under"):
        import_zoo(tmp_path, ZooStore(str(tmp_path / "zoo")), ZooConfig(), "basic_to_simple", dataset)
