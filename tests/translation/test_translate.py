"""A checkpoint's translation: of other widths where the family serves them, and nothing written where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kt_ray.config import (
    AxialTransformerOptions,
    DatasetConfig,
    GraphOptions,
    MixerOptions,
    NetworkConfig,
    TranslatorConfig,
)
from kt_ray.data import Dataset, LabelledImages
from kt_ray.errors import CheckpointError
from kt_ray.networks import Architecture, PaperArchitecture, checkpoint_file
from kt_ray.networks.paper_names import network_name
from kt_ray.networks.state_file import write_state
from kt_ray.translation.checkpoint import save_translator
from kt_ray.translation.translate import translate
from kt_ray.translation.translator import build_translator

PLAIN = PaperArchitecture("basic_to_simple")
WIDER = PaperArchitecture(
    "basic_to_simple", NetworkConfig(channels=5, source_hidden=8, target_hidden=4, head_channels=7)
)


def saved_translator(place: Path, family: str) -> Path:
    """A translator file of `family` for the default widths, untrained."""
    config = TranslatorConfig(
        family=family,
        mixer=MixerOptions(size="tiny"),
        axial_transformer=AxialTransformerOptions(width=16, depth=1),
        graph=GraphOptions(width=16, depth=1),
        refinement={"steps": 2, "probes": 2},
    )
    save_translator(place / "translator.safetensors", build_translator(config, PLAIN), config, PLAIN, {})
    return place / "translator.safetensors"


def saved_network(place: Path, architecture: Architecture = PLAIN, **changed: float) -> Path:
    """A source network's checkpoint; `changed` fills a tensor, dots written as underscores."""
    state = architecture.source_network().state_dict()
    for name in state:
        if name.replace(".", "_") in changed:
            state[name] = torch.full_like(state[name], changed[name.replace(".", "_")])
    write_state(place / "network.safetensors", state)
    return place / "network.safetensors"


@pytest.mark.parametrize("family", ["axial_transformer", "graph"])
def test_networks_of_other_widths(tmp_path: Path, family: str, dataset: Dataset) -> None:
    """The target keeps the share of hidden units that it has at the trained widths, 3 of 6."""
    output = tmp_path / "small.safetensors"
    translation = translate(saved_translator(tmp_path, family), saved_network(tmp_path, WIDER), output, dataset)
    assert load_file(output)["block.conv1.weight"].shape == (4, 5, 3, 3)
    assert translation.parameters_after == sum(value.numel() for value in WIDER.target_network().parameters())


def test_a_family_of_one_width_says_so(tmp_path: Path) -> None:
    output = tmp_path / "small.safetensors"
    with pytest.raises(
        CheckpointError, match=r"is for networks of channels=6 .*, not of channels=5 .*\(the families axi"
    ):
        translate(saved_translator(tmp_path, "mixer"), saved_network(tmp_path, WIDER), output)
    assert not output.exists()


def test_widths_that_a_file_claims_are_not_made(tmp_path: Path) -> None:
    """Together they would take 400 GB."""
    claims = {"block.conv1.weight": torch.zeros(1, 100_000, 3, 3), "head.conv.weight": torch.zeros(1_000_000, 1, 1, 1)}
    save_file(claims, tmp_path / "hostile.safetensors")
    with pytest.raises(CheckpointError, match="does not fit the network"):
        translate(saved_translator(tmp_path, "graph"), tmp_path / "hostile.safetensors", tmp_path / "out.safetensors")


def test_images_of_another_shape_are_told_before_anything_is_written(tmp_path: Path) -> None:
    images = LabelledImages(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    other = Dataset(DatasetConfig(name="cifar10"), images, images, images, "f")
    output = tmp_path / "small.safetensors"
    with pytest.raises(CheckpointError, match=r"cifar10 has images \(3, 32, 32\), the network takes \(1, 28, 28\)"):
        translate(saved_translator(tmp_path, "mixer"), saved_network(tmp_path), output, other)
    assert not output.exists()


@pytest.mark.parametrize("name", ["network", "translator"])
def test_what_is_read_is_not_overwritten(tmp_path: Path, name: str) -> None:
    translator, network = saved_translator(tmp_path, "mixer"), saved_network(tmp_path)
    given = {"network": network, "translator": translator}[name]
    before = given.read_bytes()
    (tmp_path / "sub").mkdir()
    with pytest.raises(CheckpointError, match=r"is a file that is read and would be lost; name another --output"):
        translate(translator, network, tmp_path / "sub" / ".." / given.name)
    assert given.read_bytes() == before


def test_the_checkpoint_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    load = checkpoint_file.load_file
    monkeypatch.setattr(checkpoint_file, "load_file", lambda path: (read.append(path), load(path))[1])
    network = saved_network(tmp_path)
    translate(saved_translator(tmp_path, "mixer"), network, tmp_path / "small.safetensors")
    assert read == [network]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), r"network.safetensors holds NaN or infinity in block.bn1.running_var"),
        (-1.0, r"the block translated from .*network.safetensors holds NaN or infinity in conv1.weight: nothing is"),
    ],
)
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float, expected: str) -> None:
    network, output = saved_network(tmp_path, block_bn1_running_var=value), tmp_path / "small.safetensors"
    with pytest.raises(CheckpointError, match=expected):
        translate(saved_translator(tmp_path, "mixer"), network, output)
    assert not output.exists()


class TestOutputIsLikeTheCheckpoint:
    def test_prefix_and_dtype(self, tmp_path: Path) -> None:
        network = PLAIN.source_network().to(torch.bfloat16)
        state = {f"model.{name}": value for name, value in network.state_dict().items()}
        torch.save({"state_dict": state | {"loss.weight": torch.ones(3)}, "epoch": 1}, tmp_path / "network.ckpt")
        translation = translate(
            saved_translator(tmp_path, "mixer"), tmp_path / "network.ckpt", tmp_path / "s.safetensors"
        )
        written = load_file(tmp_path / "s.safetensors")
        assert "'model.'" in translation.checkpoint
        assert {value.dtype for value in written.values()} == {torch.bfloat16}
        small = torch.nn.Module()
        small.model = PLAIN.target_network()
        small.load_state_dict(written, strict=True)
        assert torch.equal(written["model.stem.conv.weight"], state["model.stem.conv.weight"])

    def test_the_papers_names(self, tmp_path: Path) -> None:
        names = {network_name(name): value for name, value in PLAIN.source_network().state_dict().items()}
        torch.save(names, tmp_path / "network.pth")
        translate(saved_translator(tmp_path, "mixer"), tmp_path / "network.pth", tmp_path / "small.safetensors")
        written = load_file(tmp_path / "small.safetensors")
        assert {"0.conv.weight", "1.conv1.weight", "2.downsample.weight", "2.fc.bias"} < written.keys()
        assert torch.equal(written["2.downsample.weight"], names["2.downsample.weight"])

    def test_one_of_several_is_chosen(self, tmp_path: Path) -> None:
        states = {key: PLAIN.source_network().state_dict() for key in ("model", "ema")}
        torch.save(states, tmp_path / "network.pth")
        translator, output = saved_translator(tmp_path, "mixer"), tmp_path / "small.safetensors"
        with pytest.raises(CheckpointError, match="--state-dict"):
            translate(translator, tmp_path / "network.pth", output)
        translate(translator, tmp_path / "network.pth", output, state_dict="ema")
        assert torch.equal(load_file(output)["head.linear.weight"], states["ema"]["head.linear.weight"])
