"""Numba kernels that put a batch into a network's input, which is [C, H+2, W+2, N] with a border of zeros."""

from __future__ import annotations

import numpy as np

from kt_ray.zoo.training.kernels import compiled


@compiled
def gather_images(images, rows, flips, shifts, x):
    """The inside of x[C, H+2, W+2, N] = images[rows] / 255, mirrored where `flips`, moved by `shifts` [N, 2] pixels.

    `shifts` may be empty. What moves in from outside is 0.
    """
    channels, height, width = images.shape[1:]
    scaled = np.arange(256).astype(np.float32) / np.float32(255)
    for c in range(channels):
        for h in range(height):
            goal = x[c, h + 1, 1 : width + 1]
            for n in range(len(rows)):
                down, right = (shifts[n, 0], shifts[n, 1]) if len(shifts) else (0, 0)
                first, last = min(max(right, 0), width), max(min(width + right, width), 0)
                if not 0 <= h - down < height:
                    first = last = width
                for w in range(first):
                    goal[w, n] = 0
                for w in range(last, width):
                    goal[w, n] = 0
                line = images[rows[n], c, h - down]
                if flips[n]:
                    for w in range(first, last):
                        goal[w, n] = scaled[line[width - 1 - (w - right)]]
                else:
                    for w in range(first, last):
                        goal[w, n] = scaled[line[w - right]]


@compiled
def gather_activations(cached, rows, flips, mirrored, x):
    """The inside of x[C, H+2, W+2, N] = cached[rows], cached being [images, C, H, W]; where `flips`, from the row that
    lies `mirrored` rows further on."""
    width = cached.shape[3]
    for c in range(cached.shape[1]):
        for h in range(cached.shape[2]):
            goal = x[c, h + 1, 1 : width + 1]
            for n in range(len(rows)):
                line = cached[rows[n] + mirrored * flips[n], c, h]
                for w in range(width):
                    goal[w, n] = line[w]
