"""Users' checkpoints: what fits is read, what does not is named, and no code in them runs."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kt_ray.errors import CheckpointError
from kt_ray.networks import Architecture
from kt_ray.networks.checkpoint import read_network, write_state

STATE = {"weight": torch.ones(2)}


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


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_data_parallel_networks_are_read(tmp_path: Path, suffix: str) -> None:
    network = Architecture("basic_to_simple").source_network()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path / f"network{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        write_state(path, state)
    assert "block.conv1.weight" in read_network(path, network)


def test_names_that_share_a_tensor_are_written_apart(tmp_path: Path) -> None:
    network = Architecture("basic_to_simple").source_network()
    state = network.state_dict()
    state["stem.bn.bias"] = state["stem.bn.running_mean"]
    torch.save(state, tmp_path / "network.pth")
    write_state(tmp_path / "again.safetensors", read_network(tmp_path / "network.pth", network))
    assert "stem.bn.bias" in read_network(tmp_path / "again.safetensors", network)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x.to_sparse(), "holds no dense tensor in block.conv1.weight; "),
        (lambda x: x.to("meta"), "holds no dense tensor in block.conv1.weight; "),
        (lambda x: torch.nested.nested_tensor(list(x)), "holds no dense tensor in block.conv1.weight; "),
        (lambda x: x + 1j, "holds complex64 in block.conv1.weight, expected real floating-point numbers; convert it"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "holds qint8 in block.conv1.weight, expected "),
        (lambda x: x.to(torch.int8), "holds int8 in block.conv1.weight, expected "),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_of_other_kinds_are_named(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], expected: str
) -> None:
    network = Architecture("basic_to_simple").source_network()
    state = network.state_dict()
    state["block.conv1.weight"] = change(state["block.conv1.weight"])
    torch.save(state, tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match=expected):
        read_network(tmp_path / "network.pth", network)


def test_a_training_checkpoint_says_which_of_its_keys_is_the_network(tmp_path: Path) -> None:
    network, path = Architecture("basic_to_simple").source_network(), tmp_path / "network.pth"
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    torch.save({"epoch": 3, "model": network.state_dict(), "optimizer": optimizer.state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"a dict with 'epoch' \(int\), 'model' \(OrderedDict\), 'opti") as error:
        read_network(path, network)
    assert "'model' holds one, so save `torch.load(…)['model']` alone" in str(error.value)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"holds a list; expected a state_dict of named tensors$"):
        read_network(path, network)


class TestWriting:
    def test_the_umask_decides_who_may_read(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            write_state(tmp_path / "network.safetensors", STATE)
        finally:
            os.umask(before)
        assert (tmp_path / "network.safetensors").stat().st_mode & 0o777 == 0o640

    def test_nothing_is_left_behind_where_it_cannot_be_put_in_place(self, tmp_path: Path) -> None:
        place = tmp_path / "network.safetensors"
        place.mkdir()
        with pytest.raises(CheckpointError, match=r"network\.safetensors cannot be written \(Is a directory\); check "):
            write_state(place, STATE)
        assert list(tmp_path.iterdir()) == [place]

    def test_a_place_that_cannot_be_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match=r"file/network\.safetensors cannot be written \("):
            write_state(tmp_path / "file" / "network.safetensors", STATE)

    def test_what_was_there_stays_where_writing_breaks_off(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = tmp_path / "network.safetensors"
        place.write_text("before")

        def full(path: Path, content: bytes) -> None:
            path.touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)") as error:
            write_state(place, STATE)
        assert isinstance(error.value.__cause__, OSError)
        assert place.read_text() == "before"
        assert list(tmp_path.iterdir()) == [place]


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
