from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kt_ray.config import ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.zoo.formats import export_zoo, import_zoo
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore


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


def test_what_is_written_loads_into_plain_modules(folder: Path, random_zoo: Zoo) -> None:
    block = random_zoo.architecture.source_block()
    block.load_state_dict(torch.load(folder / "inputs" / "3.pth", weights_only=True), strict=True)


def test_names_do_not_matter_but_shapes_do(folder: Path, dataset: Dataset) -> None:
    path = folder / "labels" / "0.pth"
    state = torch.load(path, weights_only=True)
    torch.save({f"theirs.{i}": value for i, value in enumerate(state.values())}, path)
    import_into(folder, dataset)
    torch.save({"weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ZooError, match=r"0\.pth has tensors of shapes \[\(2, 2\)\], expected \[\(3, 6, 3, 3\)"):
        import_zoo(folder, ZooStore(str(folder.parent / "other")), ZooConfig(), "basic_to_simple", dataset)


def test_a_pickle_with_code_in_it_is_refused(folder: Path, dataset: Dataset) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("this must not be printed",))

    torch.save(Code(), folder / "last" / "1.pth")
    with pytest.raises(ZooError, match=r"1\.pth is not a state dict that can be read safely"):
        import_into(folder, dataset)


def test_a_missing_file_is_named(folder: Path, dataset: Dataset) -> None:
    (folder / "labels" / "7.pth").unlink()
    with pytest.raises(ZooError, match=r"labels/7\.pth is missing, but another folder has number 7"):
        import_into(folder, dataset)


def test_an_empty_folder_is_said(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(ZooError, match=r"no inputs/<i>\.pth or complex/<i>\.pth under"):
        import_zoo(tmp_path, ZooStore(str(tmp_path / "zoo")), ZooConfig(), "basic_to_simple", dataset)
