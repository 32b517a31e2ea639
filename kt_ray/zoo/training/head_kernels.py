"""Numba kernels for where the block ends and the head begins: the head's first layer has stride 2, so that only every
second row and column of the block's output, z[C, H/2, W/2, N], is computed."""

from __future__ import annotations

import numpy as np

from kt_ray.zoo.training.kernels import compiled


@compiled
def read_norm_backward(dz, y, mean, inverse, scale, out, dgamma, dbeta):
    """`kernels.norm_backward` for a gradient that is dz where the head reads and 0 elsewhere; y is [C, H, W, N]."""
    channels, height, width, n = y.shape
    count = np.float32(height * width * n)
    for c in range(channels):
        total = weighted = 0.0
        for i in range(dz.shape[1]):
            for j in range(dz.shape[2]):
                gradient, value = dz[c, i, j], y[c, 2 * i, 2 * j]
                of_row = weighted_row = np.float32(0)
                for k in range(n):
                    of_row += gradient[k]
                    weighted_row += gradient[k] * (value[k] - mean[c])
                total += float(of_row)
                weighted += float(weighted_row)
        dbeta[c], dgamma[c] = total, weighted * inverse[c]
        factor = scale[c]
        slope = -factor * inverse[c] * dgamma[c] / count
        offset = -factor * dbeta[c] / count - slope * mean[c]
        for h in range(height):
            row, values = out[c, h + 1, 1 : width + 1].reshape(-1), y[c, h].reshape(-1)
            for k in range(len(row)):
                row[k] = slope * values[k] + offset
            if h % 2 == 0:
                for j in range(dz.shape[2]):
                    goal, gradient = out[c, h + 1, 2 * j + 1], dz[c, h // 2, j]
                    for k in range(n):
                        goal[k] += factor * gradient[k]


@compiled
def product(w, x, out):
    """out[O, …, N] = w[O, C] times x[C, …, N], summed over C."""
    channels, n = x.shape[0], x.shape[-1]
    x, out = x.reshape(channels, -1, n), out.reshape(len(w), -1, n)
    for p in range(x.shape[1]):
        for o in range(out.shape[0]):
            goal = out[o, p]
            goal[:] = 0
            for c in range(0, channels - 3, 4):
                a, b, d, e = w[o, c], w[o, c + 1], w[o, c + 2], w[o, c + 3]
                x0, x1, x2, x3 = x[c, p], x[c + 1, p], x[c + 2, p], x[c + 3, p]
                for k in range(n):
                    goal[k] += a * x0[k] + b * x1[k] + d * x2[k] + e * x3[k]
            for c in range(channels - channels % 4, channels):
                a, x0 = w[o, c], x[c, p]
                for k in range(n):
                    goal[k] += a * x0[k]


@compiled
def product_gradient(g, x, dw):
    """dw[O, C] = the gradient of `product`'s w from that of its result, g[O, …, N]."""
    channels, n = x.shape[0], x.shape[-1]
    x, g = x.reshape(channels, -1, n), g.reshape(len(dw), -1, n)
    dw[:] = 0
    for p in range(x.shape[1]):
        for o in range(g.shape[0]):
            v = g[o, p]
            for c in range(0, channels - 3, 4):
                x0, x1, x2, x3 = x[c, p], x[c + 1, p], x[c + 2, p], x[c + 3, p]
                a = b = d = e = np.float32(0)
                for k in range(n):
                    a += v[k] * x0[k]
                    b += v[k] * x1[k]
                    d += v[k] * x2[k]
                    e += v[k] * x3[k]
                dw[o, c] += a
                dw[o, c + 1] += b
                dw[o, c + 2] += d
                dw[o, c + 3] += e
            for c in range(channels - channels % 4, channels):
                a, x0 = np.float32(0), x[c, p]
                for k in range(n):
                    a += v[k] * x0[k]
                dw[o, c] += a


@compiled
def cross_entropy_gradient(logits, labels, out):
    """out[classes, N] = the gradient of the mean cross-entropy by `logits`."""
    classes, n = logits.shape
    share = np.float32(1 / n)
    for k in range(n):
        largest = logits[0, k]
        for o in range(1, classes):
            largest = max(largest, logits[o, k])
        total = np.float32(0)
        for o in range(classes):
            out[o, k] = np.exp(logits[o, k] - largest)
            total += out[o, k]
        for o in range(classes):
            out[o, k] *= share / total
        out[labels[k], k] -= share
