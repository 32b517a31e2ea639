"""Numba kernels of ReLUs with what is added before them: a batch norm's shift, a bias, a residual connection."""

from __future__ import annotations

import numpy as np

from kt_ray.zoo.training.kernels import compiled


@compiled
def norm_relu(y, scale, shift, out):
    """out = ReLU(scale·y + shift) for y[C, H, W, N] and scale and shift [C]; `out` may have a border of 1."""
    channels, height, width = y.shape[:3]
    border = (out.shape[1] - height) // 2
    for c in range(channels):
        a, b = scale[c], shift[c]
        for h in range(height):
            source, goal = y[c, h].reshape(-1), out[c, h + border, border : width + border].reshape(-1)
            for k in range(len(source)):
                goal[k] = max(a * source[k] + b, np.float32(0))


@compiled
def relu(y, bias):
    """The inside of y[C, H+2, W+2, N] = ReLU(y + bias) in place; `bias` is [C]."""
    for c in range(y.shape[0]):
        for h in range(1, y.shape[1] - 1):
            row = y[c, h, 1:-1].reshape(-1)
            for k in range(len(row)):
                row[k] = max(row[k] + bias[c], np.float32(0))


@compiled
def residual(y, scale, shift, p, z, stride):
    """z = ReLU(scale·y + shift + p) where the head reads; p is [C, H+2, W+2, N].

    y is [C, H, W, N] with stride 2, or only what is read with stride 1.
    """
    for c in range(z.shape[0]):
        a, b = scale[c], shift[c]
        for i in range(z.shape[1]):
            for j in range(z.shape[2]):
                goal, value, carried = z[c, i, j], y[c, stride * i, stride * j], p[c, 2 * i + 1, 2 * j + 1]
                for k in range(len(goal)):
                    goal[k] = max(a * value[k] + b + carried[k], np.float32(0))


@compiled
def residual_backward(dp, dz, p):
    """dp[C, H+2, W+2, N], the gradient by p along the block, plus dz past it; 0 where p, a ReLU's output, is 0."""
    for c in range(dp.shape[0]):
        for h in range(1, dp.shape[1] - 1):
            if h % 2 == 1:
                for j in range(dz.shape[2]):
                    goal, passed = dp[c, h, 2 * j + 1], dz[c, h // 2, j]
                    for k in range(len(goal)):
                        goal[k] += passed[k]
            row, value = dp[c, h].reshape(-1), p[c, h].reshape(-1)
            for k in range(len(row)):
                row[k] = row[k] if value[k] > 0 else np.float32(0)
