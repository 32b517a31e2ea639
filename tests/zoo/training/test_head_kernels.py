from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from kt_ray.zoo.training.head_kernels import cross_entropy_gradient, product, product_gradient


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_product_and_its_gradients(channels: int) -> None:
    torch.manual_seed(0)
    w, x = torch.randn(3, channels, requires_grad=True), torch.randn(channels, 2, 5, 19, requires_grad=True)
    y = torch.einsum("oc,chwn->ohwn", w, x)
    g = torch.randn_like(y)
    y.backward(g)
    assert w.grad is not None
    assert x.grad is not None
    out, dw, dx = (np.full(shape, 7, np.float32) for shape in (y.shape, w.shape, x.shape))
    product(w.detach().numpy(), x.detach().numpy(), out)
    product_gradient(g.numpy(), x.detach().numpy(), dw)
    product(w.detach().numpy().T, g.numpy(), dx)
    for ours, expected in ((out, y.detach()), (dw, w.grad), (dx, x.grad)):
        torch.testing.assert_close(torch.from_numpy(ours), expected, atol=1e-5, rtol=1e-5)


def test_cross_entropy_gradient_where_logits_are_large_and_where_they_diverged() -> None:
    logits = torch.tensor([[0.5, 300.0, 1.0], [-1.0, -300.0, float("nan")]], requires_grad=True)
    labels = torch.tensor([1, 1, 0])
    cross_entropy(logits.T, labels).backward()
    assert logits.grad is not None
    out = np.empty((2, 3), np.float32)
    cross_entropy_gradient(logits.detach().numpy(), labels.numpy(), out)
    torch.testing.assert_close(torch.from_numpy(out), logits.grad, atol=1e-6, rtol=1e-5, equal_nan=True)
