"""Numba kernels for small convolutional networks on one CPU core.

Images lie last: arrays are [channels, H, W, N], convolution inputs [channels, H+2, W+2, N] with a border of zeros, so
that every inner loop runs over neighbouring columns of all images at once and LLVM turns it into vector code.
Slices shift the columns, because Numba checks computed indices for being negative, which spoils vectorisation.
Those that call each other stay in one file, because Numba's cache does not see a change in a function of another file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

EPS = 1e-5  # torch's default, as is the momentum of the running statistics
MOMENTUM = np.float32(0.1)

# Functions are compiled on their first call and cached on disk. Sums may be reordered and contracted; NaN and infinity
# keep their meaning, so that divergence is seen.
compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
    fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy", nogil=True, cache=True
)


@compiled
def _add_row(x0, x1, x2, n, w, out):
    """out += the 3×3 kernel `w` over three padded rows of columns of `n` images."""
    x01, x02, x11, x12, x21, x22 = x0[n:], x0[2 * n :], x1[n:], x1[2 * n :], x2[n:], x2[2 * n :]
    a, b, c, d, e, f, g, h, i = w[0, 0], w[0, 1], w[0, 2], w[1, 0], w[1, 1], w[1, 2], w[2, 0], w[2, 1], w[2, 2]
    for k in range(len(out)):
        out[k] += (
            a * x0[k]
            + b * x01[k]
            + c * x02[k]
            + d * x1[k]
            + e * x11[k]
            + f * x12[k]
            + g * x2[k]
            + h * x21[k]
            + i * x22[k]
        )


@compiled
def _row_gradient(x0, x1, x2, n, g, dw):
    """dw += the gradient of a 3×3 kernel from one row `g` of output gradients."""
    x01, x02, x11, x12, x21, x22 = x0[n:], x0[2 * n :], x1[n:], x1[2 * n :], x2[n:], x2[2 * n :]
    a = b = c = d = e = f = p = q = r = np.float32(0)
    for k in range(len(g)):
        v = g[k]
        a += v * x0[k]
        b += v * x01[k]
        c += v * x02[k]
        d += v * x1[k]
        e += v * x11[k]
        f += v * x12[k]
        p += v * x2[k]
        q += v * x21[k]
        r += v * x22[k]
    dw[0, 0] += a
    dw[0, 1] += b
    dw[0, 2] += c
    dw[1, 0] += d
    dw[1, 1] += e
    dw[1, 2] += f
    dw[2, 0] += p
    dw[2, 1] += q
    dw[2, 2] += r


@compiled
def convolve(x, w, y):
    """y[O, H, W, N] = the 3×3 convolution of x[C, H+2, W+2, N] with w[O, C, 3, 3]; y may have a border, left as is."""
    outputs, height, width, n = y.shape[0], x.shape[1] - 2, x.shape[2] - 2, x.shape[3]
    border = (y.shape[1] - height) // 2
    for h in range(height):
        for o in range(outputs):
            y[o, h + border, border : width + border] = 0
        for c in range(x.shape[0]):
            x0, x1, x2 = x[c, h].reshape(-1), x[c, h + 1].reshape(-1), x[c, h + 2].reshape(-1)
            for o in range(outputs):
                _add_row(x0, x1, x2, n, w[o, c], y[o, h + border, border : width + border].reshape(-1))


@compiled
def kernel_gradient(x, dy, dw):
    """dw[O, C, 3, 3] = the gradient of `convolve`'s w; dy is [O, H+2, W+2, N] with a border, which is not read."""
    outputs, height, width, n = dy.shape[0], dy.shape[1] - 2, dy.shape[2] - 2, dy.shape[3]
    dw[:] = 0
    for h in range(height):
        for c in range(x.shape[0]):
            x0, x1, x2 = x[c, h].reshape(-1), x[c, h + 1].reshape(-1), x[c, h + 2].reshape(-1)
            for o in range(outputs):
                _row_gradient(x0, x1, x2, n, dy[o, h + 1, 1 : width + 1].reshape(-1), dw[o, c])


@compiled
def input_gradient(dy, w, dx):
    """The inside of dx[C, H+2, W+2, N] = the gradient of `convolve`'s x: a convolution of dy, kernels turned round."""
    turned = np.empty((w.shape[1], w.shape[0], 3, 3), np.float32)
    for o in range(w.shape[0]):
        for c in range(w.shape[1]):
            turned[c, o] = w[o, c, ::-1, ::-1]
    convolve(dy, turned, dx)


@compiled
def _moments(y):
    """Mean and variance of the values of y[H, W, N]; rows are summed in float64."""
    total = 0.0
    for h in range(len(y)):
        values = y[h].reshape(-1)
        of_row = np.float32(0)
        for k in range(len(values)):
            of_row += values[k]
        total += float(of_row)
    mean = np.float32(total / y.size)
    squares = 0.0
    for h in range(len(y)):
        values = y[h].reshape(-1)
        of_row = np.float32(0)
        for k in range(len(values)):
            of_row += (values[k] - mean) * (values[k] - mean)
        squares += float(of_row)
    return mean, squares / y.size


@compiled
def _measure(c, y, gamma, beta, running_mean, running_variance, mean, inverse, scale, shift, training):
    """`measure` for channel `c`, which is y[H, W, N]."""
    if training:
        mean[c], variance = _moments(y)
        unbiased = np.float32(variance * y.size / (y.size - 1))
        running_mean[c] += MOMENTUM * (mean[c] - running_mean[c])
        running_variance[c] += MOMENTUM * (unbiased - running_variance[c])
    else:
        mean[c], variance = running_mean[c], float(running_variance[c])
    inverse[c] = 1 / np.sqrt(variance + EPS)
    scale[c] = gamma[c] * inverse[c]
    shift[c] = beta[c] - mean[c] * scale[c]


@compiled
def measure(y, gamma, beta, running_mean, running_variance, mean, inverse, scale, shift, training):
    """Scale and shift [C] of a batch norm of y[C, H, W, N], and the mean and 1/√(variance + ε) that they come from.

    In training mode those of y, which also move the running ones; else the running ones.
    """
    for c in range(len(y)):
        _measure(c, y[c], gamma, beta, running_mean, running_variance, mean, inverse, scale, shift, training)


@compiled
def mask(g, activation):
    """g = 0 where a ReLU's output is 0, in place; both are of one shape, [C, …]."""
    for c in range(len(g)):
        gradient, value = g[c].reshape(-1), activation[c].reshape(-1)
        for k in range(len(gradient)):
            gradient[k] = gradient[k] if value[k] > 0 else np.float32(0)


@compiled
def _norm_sums(g, y, mean, inverse):
    """Σ g and Σ g·(y − mean)·inverse over y[H, W, N], where g may have a border; rows are summed in float64."""
    height, width = y.shape[:2]
    border = (len(g) - height) // 2
    total = weighted = 0.0
    for h in range(height):
        gradient, value = g[h + border, border : width + border].reshape(-1), y[h].reshape(-1)
        of_row = weighted_row = np.float32(0)
        for k in range(len(gradient)):
            of_row += gradient[k]
            weighted_row += gradient[k] * (value[k] - mean)
        total += float(of_row)
        weighted += float(weighted_row)
    return np.float32(total), np.float32(weighted * inverse)


@compiled
def _through_norm(g, y, mean, inverse, scale, dgamma, dbeta):
    """g = the gradient before a batch norm of y[H, W, N] from that after it, in place; g may have a border."""
    height, width = y.shape[:2]
    border = (len(g) - height) // 2
    slope = -scale * inverse * dgamma / np.float32(y.size)
    offset = -scale * dbeta / np.float32(y.size) - slope * mean
    for h in range(height):
        goal, value = g[h + border, border : width + border].reshape(-1), y[h].reshape(-1)
        for k in range(len(goal)):
            goal[k] = scale * goal[k] + slope * value[k] + offset


@compiled
def norm_backward(g, y, activation, mean, inverse, scale, dgamma, dbeta):
    """g = the gradient by y[C, H, W, N], from that by the `activation` that a batch norm and ReLU made of y, in place.

    g and `activation` are both of y's shape or both have a border of 1. Fills dgamma and dbeta [C].
    """
    for c in range(len(y)):
        mask(g[c : c + 1], activation[c : c + 1])
        dbeta[c], dgamma[c] = _norm_sums(g[c], y[c], mean[c], inverse[c])
        _through_norm(g[c], y[c], mean[c], inverse[c], scale[c], dgamma[c], dbeta[c])


@compiled
def pool(u, sign, best, where):
    """3×3 maximum of sign·u[H, W, N] with stride 2: best [H/2, W/2, N] keeps u's sign, where the place 0…8."""
    height, width, n = u.shape
    for i in range(best.shape[0]):
        for j in range(best.shape[1]):
            largest, place = best[i, j], where[i, j]
            largest[:] = -np.inf
            for q in range(9):
                h, w = 2 * i - 1 + q // 3, 2 * j - 1 + q % 3
                if 0 <= h < height and 0 <= w < width:
                    values = u[h, w]
                    for k in range(n):
                        value = sign * values[k]
                        larger = value > largest[k]
                        largest[k] = value if larger else largest[k]
                        place[k] = q if larger else place[k]
            for k in range(n):
                largest[k] *= sign


@compiled
def unpool(g, where, out):
    """The inside of out[H+2, W+2, N] = the inside of g [H/2+2, W/2+2, N] put where the maxima were, 0 elsewhere."""
    out[:] = 0
    height, width = out.shape[0] - 2, out.shape[1] - 2
    for i in range(where.shape[0]):
        for j in range(where.shape[1]):
            gradient, place = g[i + 1, j + 1], where[i, j]
            for q in range(9):
                h, w = 2 * i + q // 3, 2 * j + q % 3
                if 1 <= h <= height and 1 <= w <= width:
                    goal = out[h, w]
                    for k in range(len(gradient)):
                        goal[k] += gradient[k] if place[k] == q else np.float32(0)


@compiled
def stem_forward(
    x, w, gamma, beta, running_mean, running_variance, mean, inverse, scale, shift, training, plane, best, where
):
    """Convolution and maximum of the stem, channel by channel: a batch norm is monotone, so pooling may come first.

    Fills best and where [O, H/2, W/2, N] and, as `measure`, the norm of the convolution, which is kept nowhere.
    """
    for o in range(w.shape[0]):
        convolve(x, w[o : o + 1], plane)
        _measure(o, plane[0], gamma, beta, running_mean, running_variance, mean, inverse, scale, shift, training)
        pool(plane[0], np.float32(1) if gamma[o] >= 0 else np.float32(-1), best[o], where[o])


@compiled
def stem_backward(x, w, g, best, where, mean, inverse, scale, dw, dgamma, dbeta, plane, dplane):
    """Gradients of the stem's kernels and batch norm from g [O, H/2+2, W/2+2, N], already masked by the ReLU."""
    for o in range(w.shape[0]):
        dbeta[o], dgamma[o] = _norm_sums(g[o], best[o], mean[o], inverse[o])
        convolve(x, w[o : o + 1], plane)
        unpool(g[o], where[o], dplane[0])
        _through_norm(dplane[0], plane[0], mean[o], inverse[o], scale[o], dgamma[o], dbeta[o])
        kernel_gradient(x, dplane, dw[o : o + 1])


@compiled
def convolve_read(x, w, y):
    """y[O, H/2, W/2, N] = `convolve` at every second row and column, starting with the first."""
    channels, n = x.shape[0], x.shape[3]
    for o in range(y.shape[0]):
        y[o] = 0
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                for c in range(channels):
                    h, k = 2 * i, 2 * j
                    x0, x1, x2 = x[c, h, k : k + 3], x[c, h + 1, k : k + 3], x[c, h + 2, k : k + 3]
                    _add_row(x0.reshape(-1), x1.reshape(-1), x2.reshape(-1), n, w[o, c], y[o, i, j])


@compiled
def read_gradients(x, dy, w, dx, dw):
    """dw and dx[C, H+2, W+2, N], the gradients of `convolve_read`; the border of dx is written, too."""
    channels, n = x.shape[0], x.shape[3]
    dw[:] = 0
    dx[:] = 0
    for i in range(dy.shape[1]):
        for j in range(dy.shape[2]):
            h, k = 2 * i, 2 * j
            for c in range(channels):
                x0, x1, x2 = x[c, h, k : k + 3], x[c, h + 1, k : k + 3], x[c, h + 2, k : k + 3]
                for o in range(dy.shape[0]):
                    gradient = dy[o, i, j]
                    _row_gradient(x0.reshape(-1), x1.reshape(-1), x2.reshape(-1), n, gradient, dw[o, c])
                    for q in range(9):
                        goal, weight = dx[c, h + q // 3, k + q % 3], w[o, c, q // 3, q % 3]
                        for m in range(n):
                            goal[m] += weight * gradient[m]
