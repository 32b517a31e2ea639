"""Users' checkpoints: what fits is read, what does not is named, and no code in them runs."""

import os
from pathlib import Path

import pytest
import torch

from kt_ray.errors import CheckpointError
from kt_ray.networks import Architecture
from kt_ray.networks.checkpoint import read_network, write_state


class RunsCode:
    """Pickled as a call of os.mkdir: reading it with code would make the directory."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_network_is_read_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    network = Architecture("basic_to_simple").source_network()
    path = tmp_path / f"network{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        write_state(path, network.state_dict())
    state = read_network(path, Architecture("basic_to_simple").source_network())
    torch.testing.assert_close(state["block.conv1.weight"], network.block.conv1.weight.data)
    assert not [name for name in state if name.endswith("num_batches_tracked")]


def test_wrapped_and_data_parallel_state_dicts_are_read(tmp_path: Path) -> None:
    network = Architecture("basic_to_simple").source_network()
    path = tmp_path / "network.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)
    assert "block.conv1.weight" in read_network(path, network)


def test_other_shapes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    torch.save(Architecture("basic_to_simple").target_network().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"block.conv1.weight has shape 3×6×3×3, expected 6×6×3×3") as error:
        read_network(path, Architecture("basic_to_simple").source_network())
    assert "check the configured network and its widths" in str(error.value)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "hostile.pth", tmp_path / "made-by-code"
    torch.save({"block.conv1.weight": RunsCode(str(mark))}, path)
    with pytest.raises(CheckpointError, match="needs code to be run"):
        read_network(path, Architecture("basic_to_simple").source_network())
    assert not mark.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300])
def test_tensors_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    """-1e300 is finite in double precision only."""
    state = Architecture("basic_to_simple").source_network().double().state_dict()
    state["head.bn.running_var"][3] = value
    torch.save(state, tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity in head\.bn\.running_var; "):
        read_network(tmp_path / "network.pth", Architecture("basic_to_simple").source_network())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_rubbish_is_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"rubbish{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_network(path, Architecture("basic_to_simple").source_network())
    assert "\n" not in str(error.value)
    assert "needs code" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_network(tmp_path / "none.pth", Architecture("basic_to_simple").source_network())
