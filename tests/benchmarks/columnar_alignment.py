"""How well the Master-User gradient agrees with the full one as columns are linked ever more densely:

    python -m tests.benchmarks.columnar_alignment [--runs RUNS] [--save DIR]

20 columns of 5 features, 50 random bits in, one episode of 50 steps, float64. Every run has parameters, data
and links of its own; the gradient is that of the summed loss. The agreement of signs is the share of the
parameters with |g ĝ| > 1e-10 whose g and ĝ have the same sign. The Master-User gradient is `rtrl` of the
columns with local=True, the full one `jax.grad` of the columns as they are.

All runs are one program: its columns are linked completely, and the weight of an absent link is 0. That is
the same network, and the gradient is the same on the links that there are. --save draws the figure.

Reference: Javed, White & Sutton (2021), arXiv:2103.05787. Its values are in a figure only; beside the
measured ones stand those of 200 runs of a program in plain JAX that shares no code with this one.
"""

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads import cells, from_cell, gradient, gradient_plots, plot_style, rtrl, tasks
from online_grads.diagnostics import exact, quality
from online_grads.flat import flatten

COLUMNS, WIDTH, STEPS = 20, 5, 50
LINKS = WIDTH * (COLUMNS - 1) + COLUMNS  # possible ones per column
# density -> agreement of signs, cosine
PLAIN = {0.0: (1.0, 1.0), 0.01: (0.9954, 0.9939), 0.1: (0.9467, 0.9679), 1.0: (0.7090, 0.8278)}


class Agreement(NamedTuple):
    """Of all runs at one density; each (mean, its standard error)."""

    signs: tuple[float, float]
    cosine: tuple[float, float]


def columns(task, *, local):
    """A model whose columns are linked completely."""
    density = LINKS / WIDTH
    cell = cells.columnar_rnn(*task.example[0].shape, COLUMNS, width=WIDTH, density=density, local=local)
    return from_cell(cell, task.readout(COLUMNS, task.outputs), task.loss, example=task.example)


def linked(key, density, params):
    """1 where a weight has an effect, 0 on the absent links, in the shape of the parameters."""
    mask = jax.tree.map(jnp.ones_like, params)
    for each, name in zip(jax.random.split(key), ("self", "links"), strict=True):
        ones = mask["cell"][name]
        there = jax.random.bernoulli(each, density * WIDTH / LINKS, ones.shape)
        mask["cell"][name] = jnp.where(there, ones, 0)
    return mask


def gradients(task):
    """(keys [runs], density []) -> Master-User and full gradients of the summed loss, [runs, p]."""
    whole, user = columns(task, local=False), rtrl(columns(task, local=True))

    def one(key, density):
        for_params, for_data, for_links = jax.random.split(key, 3)
        params, hidden = whole.init(for_params)
        mask = linked(for_links, density, params)
        params = jax.tree.map(jnp.multiply, params, mask)
        ((xs, _), ys) = task.draw(task.init(for_data), STEPS)[1]
        estimate = gradient(user, params, hidden, xs, ys, key=key)
        vector = lambda tree: flatten(tree).split(tree)[0]
        kept = STEPS * vector(mask)
        return kept * vector(estimate), kept * exact(whole, params, hidden, xs, ys).whole

    return jax.jit(jax.vmap(one, (0, None)))


def agreement(found, full):
    """`Agreement` of gradients [runs, p]."""
    runs = [quality(g[None, None], e[None]) for g, e in zip(found, full, strict=True)]
    of = lambda values: (float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values)))
    return Agreement(of([run.signs[0] for run in runs]), of([run.alignment[0] for run in runs]))


def figure(densities, found):
    lines = [
        gradient_plots.Line(field, None, *np.array([getattr(each, field) for each in found]).T)
        for field in Agreement._fields
    ]
    drawn = gradient_plots.alignment_over_training(np.array(densities), lines)
    drawn.axes[0].set(xlabel="links per own feature", ylabel="agreement with the full gradient")
    return drawn


def main():
    parser = argparse.ArgumentParser(description="Agreement of the Master-User gradient with the full one.")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the figure there")
    chosen = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    compiled, found = gradients(tasks.columnar_alignment(episode=STEPS)), []
    print("density  signs            cosine           plain JAX         seconds")
    for i, density in enumerate(PLAIN):
        begin = time.perf_counter()
        keys = jax.random.split(jax.random.key(i), chosen.runs)
        found.append(agreement(*map(np.asarray, compiled(keys, density))))
        measured = "  ".join(f"{mean:.4f} ± {se:.4f}" for mean, se in found[-1])
        plain = "  ".join(f"{value:.4f}" for value in PLAIN[density])
        print(f"{density:7g}  {measured}  {plain}  {time.perf_counter() - begin:9.1f}", flush=True)
    if chosen.save:
        chosen.save.mkdir(parents=True, exist_ok=True)
        plot_style.save(figure(list(PLAIN), found), chosen.save / "columnar_alignment")


if __name__ == "__main__":
    main()
