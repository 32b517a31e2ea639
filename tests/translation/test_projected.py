"""Least squares keep what matters, whatever the features: dead, collinear, many."""

from __future__ import annotations

import itertools

import pytest
import torch

from kt_ray.translation.projected import (
    absorb_biases,
    convolution_equations,
    eliminate,
    fit,
    normal_equations,
    project,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_solution_is_that_of_least_squares() -> None:
    features, wanted = random(2, 5, 40), random(2, 3, 40, seed=1)
    expected = torch.linalg.lstsq(features.transpose(1, 2), wanted.transpose(1, 2)).solution
    equations = normal_equations(features, wanted)
    solution = equations.solve(ridge=1e-9)
    torch.testing.assert_close(solution, expected, atol=1e-4, rtol=1e-4)
    errors = (wanted - solution.transpose(1, 2) @ features).square().sum(2)
    torch.testing.assert_close(equations.errors(solution), errors, atol=1e-3, rtol=1e-3)
    halves = normal_equations(features[..., :20], wanted[..., :20]) + normal_equations(
        features[..., 20:], wanted[..., 20:]
    )
    torch.testing.assert_close(halves.solve(ridge=1e-9), solution, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keep", [2, 3])
def test_all_choices_of_few_units_are_fitted(keep: int) -> None:
    """Six units of three values of which two make the output: both are in the best choice, which the error says."""
    features = random(4, 18, 200)
    wanted = random(4, 2, 6, seed=1) @ features[:, [3, 4, 5, 12, 13, 14]]
    fits = project(normal_equations(features, wanted), 6, keep, shortlist=5, ridge=1e-6)
    assert fits.units.shape == (4, 5, keep)
    assert all({1, 4} <= set(row.tolist()) for row in fits.units[:, 0])
    assert (fits.errors.diff(dim=1) >= 0).all()
    given = fits.weights[0, 0].flatten(1) @ features[0].unflatten(0, (6, 3))[fits.units[0, 0]].flatten(0, 1)
    torch.testing.assert_close(given, wanted[0], atol=1e-2, rtol=1e-2)
    assert fits.biases is None


def test_equations_without_a_solution_give_nan() -> None:
    """Nothing raises, which would need a look at values on a device; NaN is told by whatever reads the result."""
    features = random(2, 4, 40)
    features[1, 0, 0] = torch.nan
    solution = normal_equations(features, random(2, 3, 40, seed=1)).solve()
    assert solution[0].isfinite().all()
    assert solution[1].isnan().all()


def test_a_constant_is_kept_beside_every_choice() -> None:
    features = random(3, 8, 300)
    wanted = features[:, 2:4] + torch.tensor([5.0, -2.0])[:, None]
    whole = torch.cat([features, torch.ones(3, 1, 300)], dim=1)
    fits = project(normal_equations(whole, wanted, constant=True), 8, 2, ridge=1e-6)
    assert fits.units[:, 0].tolist() == [[2, 3]] * 3
    torch.testing.assert_close(fits.biases[:, 0], torch.tensor([5.0, -2.0]).expand(3, -1), atol=1e-2, rtol=1e-2)


def test_a_single_unit_and_a_constant_are_told_apart() -> None:
    features, scale = random(3, 4, 300), torch.tensor([[0.5], [-1.5]])
    whole = torch.cat([features, torch.ones(3, 1, 300)], dim=1)
    fits = project(normal_equations(whole, scale * features[:, :1] + 3.0, constant=True), 1, 1, ridge=1e-6)
    torch.testing.assert_close(fits.weights[:, 0, :, 0, :1], scale.expand(3, -1, -1), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(fits.biases[:, 0], torch.full((3, 2), 3.0), atol=1e-2, rtol=1e-2)


def test_elimination_follows_the_exact_errors() -> None:
    """Every unit that is left out is the one without which the rest, fitted anew, has the least error."""
    features = random(2, 14, 100)
    wanted = random(2, 3, 14, seed=1) @ features + 0.3 * random(2, 3, 100, seed=2)
    equations = normal_equations(features, wanted)
    left = [list(range(7)) for _ in range(2)]
    for keep in range(6, 2, -1):
        for member, units in enumerate(left):
            choices = torch.tensor(list(itertools.combinations(units, keep)))
            fits = fit(equations, 7, choices.expand(2, -1, -1))
            left[member] = choices[fits.errors[member].argmin()].tolist()
        assert eliminate(equations, 7, keep).tolist() == left
    many = project(equations, 7, 3)
    assert many.units.shape == (2, 1, 3)


def test_several_units_at_once_leave_one_of_each_collinear_pair() -> None:
    features = random(2, 24, 200)
    features[:, 12:] = features[:, :12]
    wanted = features[:, :10] + 0.1 * random(2, 10, 200, seed=1)
    equations = normal_equations(features, wanted)
    for keep in (12, 10):
        kept = eliminate(equations, 24, keep, rounds=2)
        assert kept.shape == (2, keep)
        for units in kept.tolist():
            assert set(range(10)) <= {unit % 12 for unit in units}


def test_wide_layers_are_eliminated() -> None:
    features = random(40, 400)
    wanted = random(3, 5, seed=1) @ features[[0, 9, 18, 27, 36]]
    fits = project(normal_equations(features, wanted), 40, 5)
    assert fits.units[0].tolist() == [0, 9, 18, 27, 36]


def test_dead_and_collinear_units_are_no_trouble() -> None:
    features = 1e-3 * random(2, 60, 500)
    features[:, 7] = 0
    features[:, 8] = 1e3 * features[:, 9]
    features[:, 10:20] = features[:, 20:30]
    wanted = features[:, [9, 20, 40]]
    for keep in (3, 40):
        fits = project(normal_equations(features, wanted), 60, keep, ridge=1e-5)
        assert fits.weights.isfinite().all()
        assert (fits.errors < 1e-3 * wanted.square().sum((1, 2))[:, None]).all()
    nothing = project(normal_equations(torch.zeros(1, 4, 9), random(1, 2, 9)), 4, 2)
    assert not nothing.weights.any()


def test_gradients_reach_features() -> None:
    features = random(2, 12, 50).requires_grad_()
    fits = project(normal_equations(features, random(2, 2, 50, seed=1)), 4, 2)
    fits.weights.square().sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_biases_are_absorbed_where_inputs_allow() -> None:
    """Inputs whose sum is always 1 pay for any bias; of others the constant is the nearest they come to 1."""
    inputs = random(2, 5, 300).abs()
    inputs = inputs / inputs.sum(1, keepdim=True)
    kernels, biases = random(2, 3, 5), torch.tensor([[0.5, -0.2, 0.0]] * 2)
    absorbed = absorb_biases(kernels, biases, inputs, ridge=1e-6)
    expected = torch.relu(kernels @ inputs + biases[..., None])
    torch.testing.assert_close(torch.relu(absorbed @ inputs), expected, atol=1e-2, rtol=1e-2)
    assert torch.equal(absorbed[:, 2], kernels[:, 2])


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_found_again(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, kernels, biases = random(8, 6, 9, 9), random(4, 6, 3, 3, seed=1), random(4, seed=2)
    kernels[:, [1, 4]] = 0
    wanted = torch.nn.functional.conv2d(hidden, kernels, biases, stride, padding=1)
    equations = convolution_equations(hidden, wanted, 3, stride)
    monkeypatch.setattr("kt_ray.translation.projected.CHUNK", 1)
    torch.testing.assert_close(
        convolution_equations(hidden, wanted, 3, stride).gram, equations.gram, atol=1e-3, rtol=1e-4
    )
    fits = project(equations, 6, 4, ridge=1e-6)
    assert fits.units[0].tolist() == [0, 2, 3, 5]
    found = fits.weights[0].unflatten(-1, (3, 3))
    torch.testing.assert_close(found, kernels[:, [0, 2, 3, 5]], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(fits.biases[0], biases, atol=1e-3, rtol=1e-3)
