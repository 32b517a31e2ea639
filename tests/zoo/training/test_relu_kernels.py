from __future__ import annotations

import numpy as np
import pytest
import torch

from kt_ray.zoo.training.relu_kernels import residual, residual_backward


@pytest.mark.parametrize("stride", [1, 2])
def test_residual_and_its_gradient(stride: int) -> None:
    torch.manual_seed(0)
    before = torch.randn(2, 5, 6, 19, requires_grad=True)
    p = torch.relu(before)
    y = torch.randn(2, 5, 6, 19)[:, :: 3 - stride, :: 3 - stride].contiguous()
    scale, shift, dz, along = torch.randn(2), torch.randn(2), torch.randn(2, 3, 3, 19), torch.randn(p.shape)
    read = p[:, ::2, ::2]
    affine = scale[:, None, None, None] * y[:, ::stride, ::stride] + shift[:, None, None, None]
    torch.autograd.backward([read, p], [dz, along])
    padded, dp = (torch.nn.functional.pad(value.detach(), (0, 0, 1, 1, 1, 1)).numpy() for value in (p, along))
    z = np.empty(dz.shape, np.float32)
    residual(y.numpy(), scale.numpy(), shift.numpy(), padded, z, stride)
    residual_backward(dp, dz.numpy(), padded)
    assert before.grad is not None
    torch.testing.assert_close(torch.from_numpy(z), torch.relu(affine + read.detach()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.from_numpy(dp[:, 1:-1, 1:-1].copy()), before.grad, atol=1e-5, rtol=1e-5)
