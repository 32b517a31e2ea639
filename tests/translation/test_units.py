"""Blocks as units: BN folding, the target layouts, order of importance, pruning."""

from __future__ import annotations

import pytest
import torch

from kt_ray.config import NetworkConfig
from kt_ray.networks import PAIRS, PaperArchitecture, stacked
from kt_ray.networks.blocks import SimpleBlock
from kt_ray.translation.bases import one_shot_block
from kt_ray.translation.block_runner import fold_batch_norm
from kt_ray.translation.importance import importance_order
from kt_ray.translation.units import read, rectified_moments, target_layout, to_units, write
from kt_ray.zoo.members import Zoo


def test_folded_block_computes_the_same(random_zoo: Zoo) -> None:
    source = random_zoo.part("source")
    x = torch.randn(len(random_zoo), 4, 6, 14, 14)
    expected = stacked.forward(random_zoo.architecture.source_block(), source, x)
    actual = stacked.forward(SimpleBlock(6, 6, bias=True), fold_batch_norm(source), x)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pair", PAIRS)
def test_write_inverts_to_units(pair: str) -> None:
    architecture = PaperArchitecture(pair)
    block = stacked.stack([architecture.target_block().state_dict() for _ in range(3)])
    units = to_units(block, target_layout(PaperArchitecture(pair)))
    written = write(units, target_layout(PaperArchitecture(pair)))
    assert written.keys() == block.keys()
    for name, value in block.items():
        assert torch.equal(written[name], value), name


def test_read_widths(random_zoo: Zoo) -> None:
    dropped = read(random_zoo.part("source"), random_zoo.architecture, "dropped")
    folded = read(random_zoo.part("source"), random_zoo.architecture, "folded")
    assert dropped.tokens().shape == (13, 6, 6, 18)
    assert folded.tokens().shape == (13, 6, 6, 20)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-1.0, 0.5), (2.0, 0.3), (-3.0, 1.0)])
def test_rectified_moments_match_sampling(mean: float, deviation: float) -> None:
    samples = (mean + deviation * torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))).relu()
    first, second = rectified_moments(torch.tensor(mean), torch.tensor(deviation))
    assert float(first) == pytest.approx(float(samples.mean()), abs=5e-3)
    assert float(second) == pytest.approx(float(samples.square().mean()), abs=5e-3)


@pytest.mark.parametrize("batch_norm", ["folded", "dropped"])
def test_pruning_keeps_units_that_matter(random_zoo: Zoo, batch_norm: str) -> None:
    """Where three units have no way out, keeping the other three loses nothing but the biases."""
    source = random_zoo.part("source")
    source["conv2.weight"] = source["conv2.weight"].clone()
    source["conv2.weight"][:, :, [0, 2, 5]] = 0
    kept = importance_order(source, random_zoo.architecture, batch_norm)[:, :3].sort().values
    assert torch.equal(kept, torch.tensor([[1, 3, 4]]).expand(13, 3))
    if batch_norm == "folded":
        block = one_shot_block(source, PaperArchitecture("basic_to_biased"))
        x = torch.randn(13, 2, 6, 14, 14)
        expected = stacked.forward(random_zoo.architecture.source_block(), source, x)
        actual = stacked.forward(PaperArchitecture("basic_to_biased").target_block(), block, x)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_norm", ["folded", "dropped"])
@pytest.mark.parametrize("pair", PAIRS)
def test_pruned_block_fits_every_pair(random_zoo: Zoo, pair: str, batch_norm: str) -> None:
    architecture = PaperArchitecture(pair)
    block = one_shot_block(random_zoo.part("source"), architecture, batch_norm)
    expected = {name: value.shape for name, value in architecture.target_block().state_dict().items()}
    assert {name: value.shape[1:] for name, value in block.items()} == expected


def test_mlp_units_beyond_the_sources_start_silent(random_zoo: Zoo) -> None:
    block = one_shot_block(random_zoo.part("source"), PaperArchitecture("basic_to_mlp"))
    assert not block["linear2.weight"][:, :, 6:].any()
    assert block["linear2.weight"][:, :, :6].any()
    assert torch.equal(block["linear1.weight"][:, :6], block["linear1.weight"][:, 6:])


def test_target_hidden_follows_the_network() -> None:
    network = NetworkConfig(channels=5, target_hidden=2)
    assert target_layout(PaperArchitecture("basic_to_simple", network)).hidden == 2
    assert target_layout(PaperArchitecture("basic_to_mlp", network)).hidden == 10
