"""Networks that somebody registers: whatever their widths, kernels and layers, their blocks are translated as one would
by hand."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kt_ray as kt
from kt_ray.config import (
    AugmentationConfig,
    LossConfig,
    MemberCounts,
    NetworkChoice,
    PairChoice,
    TranslatorConfig,
    ZooConfig,
)
from kt_ray.config.base import Frozen
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError, ConfigError, ZooError
from kt_ray.networks import SiteArchitecture, architecture_of, stacked
from kt_ray.networks.layouts import BlockLayout, HiddenLayer, Layer
from kt_ray.registry import register, registering
from kt_ray.translation import augmentations, baselines
from kt_ray.translation.block_runner import stem_activations, surround
from kt_ray.translation.checkpoint import load_translator, save_translator
from kt_ray.translation.losses import TranslationLoss
from kt_ray.translation.translate_sites import translate_sites
from kt_ray.translation.translator import build_translator
from kt_ray.translation.transplants import readable
from kt_ray.translation.units import layouts, to_units, write
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.untrained import untrained_zoo

COUNTS = MemberCounts(train=2, selection=1, test=1)
SHAPE = (2, 9, 8)


class Block(nn.Module):
    """Two convolutions around `hidden` units, with a batch norm of its own epsilon after each or without any."""

    def __init__(self, channels: int, hidden: int, kernel: int, norm: bool, bias: bool) -> None:
        super().__init__()
        self.into = nn.Conv2d(channels, hidden, kernel, padding=kernel // 2, bias=bias)
        self.first = nn.BatchNorm2d(hidden, eps=0.01) if norm else nn.Identity()
        self.out = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2, bias=bias)
        self.second = nn.BatchNorm2d(channels, eps=0.01) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.out(torch.relu(self.first(self.into(x))))))


class Shape(Frozen):
    channels: int = 3
    hidden: int = 4
    kernel: int = 3
    norm: bool = True
    bias: bool = False
    blocks: int = 1


class Blocks:
    image_shape, classes, mean, deviation = SHAPE, 5, (0.4, 0.5), (0.3, 0.2)

    def __init__(self, options: Shape) -> None:
        self.options = options

    def build(self) -> nn.Module:
        shape = self.options
        body = [Block(shape.channels, shape.hidden, shape.kernel, shape.norm, shape.bias) for _ in range(shape.blocks)]
        return nn.Sequential(
            nn.Conv2d(2, shape.channels, 3, stride=2),
            nn.Sequential(*body),
            nn.Flatten(),
            nn.Linear(shape.channels * 12, 5),
        )

    def sites(self) -> tuple[str, ...]:
        return tuple(f"1.{number}" for number in range(self.options.blocks))


class Narrowed:
    """Two hidden units less, with biases."""

    def __init__(self, options: BaseModel) -> None: ...

    def target(self, source: nn.Module) -> nn.Module:
        return Block(source.into.in_channels, source.into.out_channels - 2, source.into.kernel_size[0], False, True)

    def layout(self, source: nn.Module) -> BlockLayout | None:
        norms = ("first", "second") if isinstance(source.first, nn.BatchNorm2d) else (None, None)
        return BlockLayout((HiddenLayer((Layer.of(source, "into", norms[0]),), (Layer.of(source, "out", norms[1]),)),))

    target_layout = layout


class Unknown(Narrowed):
    """The same, of which nothing is said."""

    def layout(self, source: nn.Module) -> BlockLayout | None:
        return None

    target_layout = layout


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """The names of this file, and nothing of them after it."""
    with registering("code of a test"):
        register.network("test_blocks", options=Shape)(Blocks)
        register.pair("test_narrowed", options=Shape)(Narrowed)
        register.pair("test_unknown", options=Shape)(Unknown)
    yield
    for kind in register.kinds():
        kind.remove("code of a test")


def architecture(pair: str = "test_narrowed", site: str | None = None, **shape: object) -> SiteArchitecture:
    network = NetworkChoice(name="test_blocks", options=shape)
    made = architecture_of(PairChoice(name=pair, site=site), network, SHAPE, 5)
    assert isinstance(made, SiteArchitecture)
    return made


def network_of(zoo: Zoo, row: int, kind: str = "source") -> nn.Module:
    """Member `row` of a zoo as a plain module that takes images in [0, 1], its block replaced if `kind` is target."""
    here = zoo.architecture
    assert isinstance(here, SiteArchitecture)
    module = here.smaller([here.site]) if kind == "target" else here.whole()
    state = {name: value[row] for name, value in zoo.network(kind).items()}
    named = {name.removeprefix("stem.").removeprefix("head."): value for name, value in state.items()}
    named = {f"{here.site}.{name[6:]}" if name.startswith("block.") else name: value for name, value in named.items()}
    module.load_state_dict(named, strict=False)
    return here.taking_images(module).eval()


@given(
    channels=st.integers(1, 3),
    hidden=st.integers(3, 5),
    kernel=st.sampled_from([1, 3]),
    norm=st.booleans(),
    bias=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_surroundings_are_the_network_itself(channels: int, hidden: int, kernel: int, norm: bool, bias: bool) -> None:
    here = architecture(channels=channels, hidden=hidden, kernel=kernel, norm=norm, bias=bias)
    zoo, images = untrained_zoo(here, COUNTS), torch.rand(3, *SHAPE)
    members = readable(zoo)
    around = surround(members, stem_activations(members, images, here), here)

    block = {name: value.clone().requires_grad_() for name, value in zoo.part("target").items()}
    logits = around.logits(around.features(around.outputs(block)))
    gradients = torch.autograd.grad(logits.square().sum(), list(block.values()))

    for row in range(len(zoo)):
        torch.testing.assert_close(around.wanted_logits[row], network_of(zoo, row)(images), atol=1e-4, rtol=1e-4)
        module = network_of(zoo, row, "target")
        wanted = module(images)
        torch.testing.assert_close(logits[row], wanted, atol=1e-4, rtol=1e-4)
        named = dict(module.named_parameters())
        expected = torch.autograd.grad(wanted.square().sum(), [named[f"1.0.{name}"] for name in block])
        for found, true in zip(gradients, expected, strict=True):
            torch.testing.assert_close(found[row], true, atol=1e-3, rtol=1e-3)


@given(hidden=st.integers(3, 5), kernel=st.sampled_from([1, 3]), norm=st.booleans(), bias=st.booleans())
@settings(max_examples=8, deadline=None)
def test_units_are_the_blocks_folded(hidden: int, kernel: int, norm: bool, bias: bool) -> None:
    here = architecture(hidden=hidden, kernel=kernel, norm=norm, bias=bias)
    zoo = untrained_zoo(here, COUNTS)
    source, target = layouts(here)

    units = to_units(zoo.part("target"), target)
    torch.testing.assert_close(write(units, target), zoo.part("target"))

    folded = to_units(zoo.part("source"), source)
    block, x = Block(3, hidden, kernel, False, True), torch.randn(2, 3, 4, 3)
    whole = type(target)(target.incoming, target.outgoing, True, hidden, 3, 3)
    if not (norm or bias):
        folded = type(folded)(folded.edges, torch.zeros(len(zoo), hidden, 1), torch.zeros(len(zoo), 3, 1))
    given_ = stacked.forward(block, write(folded, whole), x, shared=True)
    wanted = stacked.forward(here.source_block(), zoo.part("source"), x, shared=True)
    torch.testing.assert_close(given_, wanted, atol=1e-4, rtol=1e-4)


def test_symmetries_change_no_output() -> None:
    here = architecture(hidden=5)
    zoo, x = untrained_zoo(here, COUNTS), torch.randn(2, 3, 4, 3)
    config = AugmentationConfig(rescale=0.3, hidden_permutation=True)
    moved = augmentations.augment(zoo.parameters, config, here, torch.Generator().manual_seed(1))

    expected = stacked.forward(here.source_block(), zoo.part("source"), x, shared=True)
    actual = stacked.forward(here.source_block(), stacked.part(moved, "source"), x, shared=True)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"channel_permutation.*not known"):
        augmentations.check_known(AugmentationConfig(channel_permutation=True), here)


@pytest.mark.parametrize(
    ("pair", "options"),
    [
        ("test_narrowed", {"family": "graph", "base": "projected", "refinement": {"steps": 2, "probes": 4}}),
        ("test_narrowed", {"family": "axial_transformer", "statistics": True, "canonical": True}),
        ("test_narrowed", {"family": "mixer", "base": "merged"}),
        ("test_unknown", {"family": "mlp", "output": "direct"}),
    ],
)
def test_every_site_of_a_checkpoint_is_written_as_by_hand(
    tmp_path: Path, pair: str, options: dict[str, object]
) -> None:
    here = architecture(pair, "1.0", blocks=3)
    config = TranslatorConfig.model_validate(options)
    torch.manual_seed(0)
    translator = build_translator(config, here).eval()
    translator.draw_probes(torch.randint(256, (60, *SHAPE), dtype=torch.uint8), torch.Generator().manual_seed(0))
    save_translator(tmp_path / "translator.safetensors", translator, config, here, {})
    large = here.whole().eval()
    save_file(large.state_dict(), tmp_path / "large.safetensors")

    report = translate_sites(
        load_translator(tmp_path / "translator.safetensors"),
        tmp_path / "translator.safetensors",
        tmp_path / "large.safetensors",
        tmp_path / "small.safetensors",
    )

    small = runpy.run_path(str(tmp_path / "small.py"))["build"]()
    small.load_state_dict(load_file(tmp_path / "small.safetensors"))
    state = large.state_dict()
    for number in range(3):
        at = here.at(f"1.{number}", replaced=tuple(f"1.{earlier}" for earlier in range(number)))
        stack = {name.removeprefix("block."): value[None] for name, value in at.split(state).items()}
        block = translator.for_architecture(at)(stack)
        state = {name: value for name, value in state.items() if not name.startswith(f"1.{number}.")}
        state |= {f"1.{number}.{name}": value[0] for name, value in block.items()}
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, state[name])
    assert [site.path for site in report.sites] == ["1.0", "1.1", "1.2"]
    assert report.parameters_after < report.parameters_before


def test_a_loss_of_any_network_prefers_the_projected_block() -> None:
    here = architecture(norm=False, bias=True, hidden=4)
    zoo, images = untrained_zoo(here, COUNTS), torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    loss = TranslationLoss(LossConfig(weight_mse=0, head_input=1, kl=1), here)
    target, labels = zoo.part("target"), torch.zeros(16, dtype=torch.long)
    silent = {name: torch.zeros_like(value) for name, value in target.items()}
    projected = loss(baselines.projected(zoo, images), zoo.parameters, target, images, labels)
    assert 0 < projected < loss(silent, zoo.parameters, target, images, labels)


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    unknown = architecture("test_unknown")
    with pytest.raises(ConfigError, match=r"only the family mlp serves it, got mixer"):
        build_translator(TranslatorConfig(), unknown)
    with pytest.raises(ConfigError, match=r"have no batch norm"):
        build_translator(TranslatorConfig(statistics=True), architecture(norm=False))
    with pytest.raises(ConfigError, match=r"context: network is known of the paper's network alone"):
        build_translator(TranslatorConfig(context="network"), architecture())
    with pytest.raises(ConfigError, match=r"has no sites; return their module paths"):
        architecture(blocks=0)
    with pytest.raises(ConfigError, match=r"dataset has|classes 5"):
        architecture_of(PairChoice(name="test_narrowed"), NetworkChoice(name="test_blocks"), SHAPE, 10)
    with pytest.raises(ConfigError, match=r"no pair is called 'test_narowed'; near are test_narrowed"):
        architecture("test_narowed")
    here, config = architecture(), TranslatorConfig(family="mlp")
    path = tmp_path / "translator.safetensors"
    save_translator(path, build_translator(config, here), config, here, {})
    program = "import sys, pathlib; from kt_ray.translation.checkpoint import load_translator as load; "
    done = subprocess.run(
        [sys.executable, "-c", program + "load(pathlib.Path(sys.argv[1]))", str(path)], capture_output=True, text=True
    )
    assert "no pair is called 'test_narrowed'" in done.stderr


def test_a_persons_python_file_is_not_replaced_by_what_builds_the_network(tmp_path: Path) -> None:
    here, config = architecture(), TranslatorConfig(family="mlp")
    translator, large, small = (tmp_path / f"{name}.safetensors" for name in ("translator", "large", "net"))
    save_translator(translator, build_translator(config, here), config, here, {})
    save_file(here.whole().state_dict(), large)
    (tmp_path / "net.py").write_text("mine = 1\n")
    with pytest.raises(CheckpointError, match=r"net.py, which was not written by kt-ray, would be replaced"):
        translate_sites(load_translator(translator), translator, large, small)
    assert (tmp_path / "net.py").read_text() == "mine = 1\n"
    (tmp_path / "net.py").unlink()
    for _ in range(2):  # its own may be
        translate_sites(load_translator(translator), translator, large, small)


def test_the_api_translates_some_sites(tmp_path: Path) -> None:
    here, config = architecture(site="1.0", blocks=3), TranslatorConfig(family="graph")
    path = tmp_path / "translator.safetensors"
    save_translator(path, build_translator(config, here), config, here, {})
    large = here.whole()

    small = kt.translate(path, large, sites=["1.2"])

    assert [site.path for site in small.report.sites] == ["1.2"]
    assert small.state["1.2.into.weight"].shape[0] == large.get_parameter("1.2.into.weight").shape[0] - 2
    assert torch.equal(small.state["1.0.into.weight"], large.get_parameter("1.0.into.weight"))
    with pytest.raises(ConfigError, match=r"1.7 is no site of network test_blocks; it has 1.0, 1.1, 1.2"):
        kt.translate(path, large, sites=["1.7"])


def test_a_zoo_of_a_registered_network_is_told_by_pair_site_and_network(tmp_path: Path, dataset: Dataset) -> None:
    config = ZooConfig(network=NetworkChoice(name="resnet", options={"depth": 8, "width": 4}))
    store = ZooStore(str(tmp_path / "zoo"))
    store.create(config, PairChoice(name="halved", site="layer1.0"), dataset)
    assert store.info().pair == "halved at layer1.0 of resnet"
    assert store.definition()["schema_version"] == 2
    with pytest.raises(ZooError, match=r"has pair=.*layer1.0.*, but .*layer2.0.* was asked for"):
        store.create(config, PairChoice(name="halved", site="layer2.0"), dataset)
