"""Users' checkpoints: what fits is read, what does not is named, and no code in them runs."""

import errno
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kt_ray.errors import CheckpointError
from kt_ray.networks import PaperArchitecture
from kt_ray.networks.checkpoint import find_network, network_state, read_network
from kt_ray.networks.paper_names import network_name
from kt_ray.networks.state_file import read_written, write_state

STATE = {"weight": torch.ones(2)}


class RunsCode:
    """Pickled as a call of os.mkdir: reading it with code would make the directory."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_network_is_read_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    network = PaperArchitecture("basic_to_simple").source_network()
    path = tmp_path / f"network{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        write_state(path, network.state_dict())
    state = read_network(path, PaperArchitecture("basic_to_simple").source_network())
    torch.testing.assert_close(state["block.conv1.weight"], network.block.conv1.weight.data)
    assert not [name for name in state if name.endswith("num_batches_tracked")]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_data_parallel_networks_are_read(tmp_path: Path, suffix: str) -> None:
    network = PaperArchitecture("basic_to_simple").source_network()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path / f"network{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        write_state(path, state)
    assert "block.conv1.weight" in read_network(path, network)


def test_names_that_share_a_tensor_are_written_apart(tmp_path: Path) -> None:
    network = PaperArchitecture("basic_to_simple").source_network()
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
    network = PaperArchitecture("basic_to_simple").source_network()
    state = network.state_dict()
    state["block.conv1.weight"] = change(state["block.conv1.weight"])
    torch.save(state, tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match=expected):
        read_network(tmp_path / "network.pth", network)


def test_what_holds_no_state_is_said(tmp_path: Path) -> None:
    network, path = PaperArchitecture("basic_to_simple").source_network(), tmp_path / "network.pth"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"holds a list; expected a state_dict of named tensors$"):
        read_network(path, network)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"holds a dict with 'epoch' \(int\); expected"):
        read_network(path, network)


class TestCheckpointsAsPeopleHaveThem:
    """Wrapped by what trained them, with an optimiser or an average beside, in half precision."""

    NETWORK = PaperArchitecture("basic_to_simple").source_network()
    STATE = NETWORK.state_dict()

    @classmethod
    def under(cls, prefix: str, scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {
            prefix + name: value * scale if value.is_floating_point() else value for name, value in cls.STATE.items()
        }

    def optimizer(self) -> dict[str, object]:
        network = PaperArchitecture("basic_to_simple").source_network()
        optimizer = torch.optim.Adam(network.parameters())
        sum(value.sum() for value in network.parameters()).backward()
        optimizer.step()
        return optimizer.state_dict()

    @pytest.mark.parametrize(
        ("content", "key", "prefix"),
        [
            (lambda test: test.under("module."), "module", "module."),
            (lambda test: test.under("_orig_mod."), "_orig_mod", "_orig_mod."),
            (lambda test: test.under("_orig_mod.module."), "_orig_mod.module", "_orig_mod.module."),
            (lambda test: {"n_averaged": torch.tensor(5)} | test.under("module."), "module", "module."),
            (
                lambda test: {"state_dict": test.under("model.") | {"criterion.weight": torch.ones(10)}, "epoch": 3},
                "state_dict.model",
                "model.",
            ),
            (lambda test: {"model": test.under(""), "optimizer": test.optimizer(), "epoch": 3}, "model", ""),
            (lambda test: {"net": {"ema": None, "weights": test.under("")}}, "net.weights", ""),
        ],
    )
    def test_one_network_is_found(
        self, tmp_path: Path, content: Callable[[object], object], key: str, prefix: str
    ) -> None:
        torch.save(content(self), tmp_path / "network.ckpt")
        found = find_network(tmp_path / "network.ckpt", self.STATE.keys())
        assert (found.key, found.prefix) == (key, prefix)
        state = network_state(found, self.NETWORK)
        assert all(torch.equal(value, self.STATE[name]) for name, value in state.items())
        assert set(found.renamed(state)) <= set(self.under(prefix))

    def test_of_several_the_named_one_is_taken(self, tmp_path: Path) -> None:
        path = tmp_path / "network.ckpt"
        torch.save({"model": self.under(""), "model_ema": {"module": self.under("", 2.0)}}, path)
        with pytest.raises(CheckpointError, match=r"model, model_ema\.module; choose one with --state-dict"):
            read_network(path, self.NETWORK)
        for key, scale in (("model", 1.0), ("model_ema", 2.0), ("model_ema.module", 2.0)):
            bias = read_network(path, self.NETWORK, key)["head.linear.bias"]
            assert torch.equal(bias, scale * self.STATE["head.linear.bias"])
        with pytest.raises(CheckpointError, match=r"no state_dict 'other' .* it has: model, model_ema.module"):
            read_network(path, self.NETWORK, "other")

    def test_the_same_network_twice_is_one(self, tmp_path: Path) -> None:
        path = tmp_path / "network.ckpt"
        torch.save({"model": self.STATE, "best": self.STATE, "copy": self.under("")}, path)
        assert find_network(path, self.STATE.keys()).key == "model"

    def test_names_of_which_the_paper_has_others_for_some_only(self, tmp_path: Path) -> None:
        network = torch.nn.Sequential(OrderedDict(stem=torch.nn.Linear(2, 2), middle=torch.nn.Linear(2, 2)))
        write_state(tmp_path / "network.safetensors", network.state_dict())
        assert find_network(tmp_path / "network.safetensors", network.state_dict().keys()).paper is False

    def test_an_average_beside_the_network_in_one_mapping(self, tmp_path: Path) -> None:
        path = tmp_path / "network.safetensors"
        write_state(path, self.under("") | self.under("ema.", 2.0))
        with pytest.raises(CheckpointError, match=r"several networks: \., ema;"):
            read_network(path, self.NETWORK)
        assert torch.equal(read_network(path, self.NETWORK, ".")["stem.bn.bias"], self.STATE["stem.bn.bias"])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes_are_kept(self, tmp_path: Path, dtype: torch.dtype) -> None:
        path = tmp_path / "network.safetensors"
        save_file({name: value.to(dtype) for name, value in self.STATE.items()}, path, {"format": "pt", "epoch": "3"})
        found = find_network(path, self.STATE.keys())
        state = network_state(found, self.NETWORK)
        assert {value.dtype for value in state.values()} == {torch.float32}
        assert {value.dtype for value in found.in_dtype(state | {"block.new": torch.ones(3)}).values()} == {dtype}

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ""])
    @pytest.mark.parametrize("kind", ["safetensors", "torch", "old torch"])
    def test_the_content_decides_what_a_file_is(self, tmp_path: Path, suffix: str, kind: str) -> None:
        path = tmp_path / f"network{suffix}"
        if kind == "safetensors":
            write_state(path, self.STATE)
        else:
            torch.save(self.STATE, path, _use_new_zipfile_serialization=kind == "torch")
        assert "head.linear.bias" in read_network(path, self.NETWORK)

    def test_the_papers_names(self, tmp_path: Path) -> None:
        names = {
            "0.conv.weight": "stem.conv.weight",
            "1.bn1.bias": "block.bn1.bias",
            "2.downsample.weight": "head.conv.weight",
            "2.fc.bias": "head.linear.bias",
        }
        theirs = {network_name(name): value for name, value in self.STATE.items()}
        assert names.keys() < theirs.keys()
        torch.save(dict(reversed(theirs.items())), tmp_path / "network.pth")
        found = find_network(tmp_path / "network.pth", self.STATE.keys())
        state = network_state(found, self.NETWORK)
        assert all(torch.equal(value, self.STATE[name]) for name, value in state.items())
        assert found.renamed(state).keys() == {name for name in theirs if "num_batches" not in name}

    def test_a_misfit_says_what_was_found(self, tmp_path: Path) -> None:
        path = tmp_path / "network.pth"
        state = self.under("model.")
        state["model.head.liner.bias"] = state.pop("model.head.linear.bias")
        torch.save(state | {"criterion.weight": torch.ones(3)}, path)
        with pytest.raises(CheckpointError) as error:
            read_network(path, self.NETWORK)
        for told in ("head.linear.bias is missing", "head.liner.bias is nearest", "head (7)", "'model.'", "1 other"):
            assert told in str(error.value)
        torch.save({f"layer{number}.0.conv.weight": torch.ones(3) for number in range(9)}, path)
        with pytest.raises(CheckpointError, match=r"found 9 tensors under layer0 \(1\), .* and 3 more"):
            read_network(path, self.NETWORK)

    @pytest.mark.parametrize("kind", ["compressed", "expanded"])
    def test_sizes_that_a_file_does_not_have_are_refused(self, tmp_path: Path, kind: str) -> None:
        path, state = tmp_path / "network.pth", dict(self.STATE)
        if kind == "expanded":
            state["head.linear.weight"] = torch.zeros(1).expand(1 << 32)
            torch.save(state, path)
        else:
            state["head.linear.weight"] = torch.zeros(1 << 24)
            torch.save(state, tmp_path / "plain.pth")
            with (
                zipfile.ZipFile(tmp_path / "plain.pth") as plain,
                zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
            ):
                for entry in plain.infolist():
                    packed.writestr(entry.filename, plain.read(entry))
        with pytest.raises(CheckpointError, match=r"would inflate|views of fewer"):
            read_network(path, self.NETWORK)


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
    torch.save(PaperArchitecture("basic_to_simple").target_network().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"block.conv1.weight has shape 3×6×3×3, expected 6×6×3×3") as error:
        read_network(path, PaperArchitecture("basic_to_simple").source_network())
    assert "check the network and its widths" in str(error.value)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "hostile.pth", tmp_path / "made-by-code"
    torch.save({"block.conv1.weight": RunsCode(str(mark))}, path)
    with pytest.raises(CheckpointError, match="needs code to be run"):
        read_network(path, PaperArchitecture("basic_to_simple").source_network())
    assert not mark.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300])
def test_tensors_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    """-1e300 is finite in double precision only."""
    state = PaperArchitecture("basic_to_simple").source_network().double().state_dict()
    state["head.bn.running_var"][3] = value
    torch.save(state, tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity in head\.bn\.running_var; "):
        read_network(tmp_path / "network.pth", PaperArchitecture("basic_to_simple").source_network())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_rubbish_is_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"rubbish{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_network(path, PaperArchitecture("basic_to_simple").source_network())
    assert "\n" not in str(error.value)
    assert "needs code" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_network(tmp_path / "none.pth", PaperArchitecture("basic_to_simple").source_network())


def test_a_network_with_a_stem_of_its_own_is_not_taken_for_the_papers(tmp_path: Path) -> None:
    """Names that the paper has in common with ours do not tell that a file has the paper's."""
    network = nn.Sequential(
        OrderedDict(stem=nn.Sequential(nn.Linear(2, 3)), stage=nn.Linear(3, 2), last=nn.Linear(2, 2))
    )
    write_state(tmp_path / "own.safetensors", network.state_dict())
    checkpoint = find_network(tmp_path / "own.safetensors", network.state_dict().keys())
    assert checkpoint.state.keys() == network.state_dict().keys()
    assert not checkpoint.paper


def test_the_same_state_is_the_same_file_however_often_it_is_written(tmp_path: Path) -> None:
    state = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
    for number in range(8):
        write_state(tmp_path / f"{number}.safetensors", state, {"kt_ray": "{}", "note": "é"})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert read_written(tmp_path / "0.safetensors")[1] == {"kt_ray": "{}", "note": "é"}
