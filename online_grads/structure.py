"""What a plain JAX transition tells about how its parameters enter.

The transition's equations are split once, at construction, from shapes alone:

    w = g(θ)                       weight equations: they depend on parameters only
    z_l = v_l · w_l                synapses: an effective matrix meets a presynaptic vector
    h' = f(w, h, x, z)             everything else; a weight read here is a direct use

A **site** is a place where a weight acts, a synapse or a direct use. A perturbation ε_l of a site
is added to its drive z_l [post], or to the weight itself at a direct use (whose presynaptic factor
is 1), so that for every site, with D_l = ∂h'/∂ε_l,

    ∂h'/∂w_l[j, i] = D_l[:, i] v_l[j]

Sites that are only added up, W h + U x + b, share their D: together they are one **drive**, with the
presynaptic vector [h; x; 1].

The perturbation *flows*: later drives of the same step react. With the drives *held* at given
values, what is left of ∂h'/∂h is J₀, and J = J₀ + Σ_l D_l w_lᵀ V_l with V_l = ∂v_l/∂h (drives held).

Gradients are formed for the effective weights and pulled back to θ by the VJP of g. Where θ has
fewer entries than the weights made of it, θ itself is the weight.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from online_grads import jaxprs
from online_grads.differentiable import require_differentiable
from online_grads.sites import Drive, Site, drives_of, sites_of
from online_grads.split import Split, smaller_as_parameters
from online_grads.types import Array


class Structure:
    """The split of one transition.

    Attributes:
        weights: shape and dtype of every effective weight. The first `trained` depend on
            parameters; the rest are constants that meet a vector, or carry no derivative.
        trained: how many weights are trained.
        names: for every trained weight, the names of the parameter leaves that it is made of.
        sites: where the weights act, synapses first, in the order in which they are computed.
        drives: the sums of sites, those of trained weights first.
        drive_of: per site the number of its drive.
        tangled: the names of trained weights that meet h in a product that is no synapse.
    """

    def __init__(
        self,
        transition: Callable,
        names: Sequence[str],
        params,
        h,
        rest,
        x,
        *,
        dense: bool,
        called: str = "the transition",
    ):
        """Split `transition(parameter leaves, h [n], rest, x) -> (h' [n], rest')`.

        Args:
            transition: the function, pure.
            names: a name for every parameter leaf.
            params: shapes of the parameter leaves.
            h, rest, x: shapes of the hidden vector, of the other hidden leaves, and of the input.
            dense: True where an influence has n entries per weight entry. θ then replaces the
                weights made of it wherever it is smaller, otherwise only where no synapse is lost.
            called: what an error calls the function.

        Raises:
            ValueError: if the transition cannot be differentiated in forward and reverse mode.
        """
        leaves, treedef = jax.tree.flatten((list(params), h, rest, x))

        def on_leaves(*leaves):
            h, rest = transition(*jax.tree.unflatten(treedef, leaves))
            return [h, *rest]

        closed = jaxprs.trace(on_leaves, *leaves)
        variables = closed.jaxpr.invars[: len(params)]
        whole = smaller_as_parameters(Split(closed, variables, ()), dense)
        self._split = split = Split(closed, variables, whole)
        self._products = {id(p.equation): i for i, p in enumerate(split.products)}
        self.weights = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in split.weights]
        self.trained = split.trained
        name_of = dict(zip(variables, names, strict=True))
        made_of = [split.made_of[v] for v in split.weights[: self.trained]]
        self.names = [", ".join(name_of[v] for v in variables if v in made) for made in made_of]
        tangled = split.tangled(h=closed.jaxpr.invars[len(params)])
        self.tangled = [self.names[split.weights.index(v)] for v in tangled]
        self.sites = sites_of(split)
        self.drives = drives_of(split, self.sites)
        self.trained_drives = [drive for drive in self.drives if self.members(drive)]
        owner = {number: i for i, drive in enumerate(self.drives) for number in drive.sites}
        self.drive_of = [owner[number] for number in range(len(self.sites))]
        require_differentiable(
            lambda at, given: self.step(given[0], at[0], *given[1:], perturb=at[1])[0],
            (h, jax.eval_shape(lambda: self.zeros(self.trained_drives))),
            (self.weights, rest, x),
            called,
        )

    def effective(self, params: Sequence[Array]) -> list[Array]:
        """The weights w = g(θ), trained and constant ones."""
        env = self._constants()
        env.update(zip(self._split.params, params, strict=True))
        jaxprs.run(self._split.before, env)
        return [env[v] for v in self._split.weights]

    def pullback(self, params: Sequence[Array], grads: Sequence[Array]) -> list[Array]:
        """∂/∂θ from the trained weights' ∂/∂w, by the VJP of g."""
        trained = lambda leaves: self.effective(leaves)[: self.trained]
        return jax.vjp(trained, list(params))[1](list(grads))[0]

    def matrix(self, site: Site, weights: Sequence[Array]) -> Array:
        """The site's weight as [batch, pre, post]."""
        transposed = jnp.transpose(weights[site.weight], sum(site.axes, ()))
        return transposed.reshape(site.batch, site.pre, site.post)

    def along(self, site: Site, array: Array, *, pre: bool = False, post: bool = False) -> Array:
        """[batch, pre] or [batch, post] or [batch, pre, post] such that it broadcasts with the weight."""
        shape, keep = self.weights[site.weight].shape, (True, pre, post)
        sizes = [
            shape[axis] if kept else 1 for axes, kept in zip(site.axes, keep, strict=True) for axis in axes
        ]
        order = sum(site.axes, ())
        return jnp.transpose(array.reshape(sizes), [order.index(axis) for axis in range(len(order))])

    def collect(self, grads: Sequence[Array]) -> list[Array]:
        """Per trained weight the sum over its sites of gradients in the weight's own shape."""
        total: list = [None] * self.trained
        for site, grad in zip(self.trained_sites, grads, strict=True):
            total[site.weight] = grad if total[site.weight] is None else total[site.weight] + grad
        return total

    @property
    def synapses(self) -> list[Site]:
        """The sites that are products."""
        return [site for site in self.sites if not site.direct]

    @property
    def trained_numbers(self) -> list[int]:
        """The numbers among `sites` of those of trained weights."""
        return [number for number, site in enumerate(self.sites) if site.weight < self.trained]

    @property
    def trained_sites(self) -> list[Site]:
        """The sites of trained weights."""
        return [self.sites[number] for number in self.trained_numbers]

    def zeros(self, drives: Sequence[Drive]) -> list[Array]:
        """A zero perturbation [batch, post] for each of the drives."""
        return [jnp.zeros((drive.batch, drive.post), drive.dtype) for drive in drives]

    def members(self, drive: Drive) -> list[int]:
        """The numbers of the drive's sites of trained weights, in the order of its presynaptic vector."""
        return [number for number in drive.sites if self.sites[number].weight < self.trained]

    def is_constant(self, drive: Drive) -> bool:
        """Whether the drive's presynaptic vector is constant, 1 for every direct use."""
        return all(self.sites[number].direct for number in self.members(drive))

    def name(self, drive: Drive) -> str:
        """The names of the drive's trained weights."""
        return ", ".join(self.names[self.sites[number].weight] for number in self.members(drive))

    def pre(self, drive: Drive) -> int:
        """The entries of the drive's presynaptic vector."""
        return sum(self.sites[number].pre for number in self.members(drive))

    def gather(self, drive: Drive, presynaptic: Sequence[Array]) -> Array:
        """The drive's presynaptic vector [batch, pre] from those of all synapses; a direct use has a 1."""
        members = [self.sites[number] for number in self.members(drive)]
        synapses = [n for n, site in zip(self.members(drive), members, strict=True) if not site.direct]
        ones = jnp.ones((drive.batch, len(members) - len(synapses)), drive.dtype)
        vector = jnp.concatenate([*(presynaptic[n].astype(drive.dtype) for n in synapses), ones], axis=1)
        return materialised(vector)

    def spread(self, drives: Sequence[Drive], grads: Sequence[Array]) -> list[Array]:
        """Per trained weight the sum over its sites of gradients [batch, pre, post] of their drives."""
        pieces = {}
        for drive, grad in zip(drives, grads, strict=True):
            end = 0
            for number in self.members(drive):
                site, start = self.sites[number], end
                end += site.pre
                pieces[number] = self.along(site, grad[:, start:end], pre=True, post=True)
        return self.collect([pieces[number] for number in self.trained_numbers])

    def step(self, weights, h, rest, x, *, perturb=None, hold=None, drive=None):
        """One transition from effective weights.

        Args:
            weights: as `effective` returns them.
            h, rest, x: hidden vector [n], other hidden leaves, input.
            perturb: an ε [batch, post] for the first of `drives`, the others stay as they are.
            hold: per synapse a product [batch, post] that replaces the computed one; what a drive adds to
                it is still added.
            drive: (number of the synapse, v [batch, pre], z [batch, post]) -> the z that is used.

        Returns:
            (h' [n], rest', per synapse v [batch, pre], per synapse z [batch, post]).
        """
        split = self._split
        env = self._constants()
        jaxprs.run(split.constant, env)
        env.update(zip(split.weights, weights, strict=True))
        env.update(zip(split.inputs, jax.tree.leaves((h, rest, x)), strict=True))
        synaptic = dict(zip(split.weights, weights, strict=True))
        perturb = perturb or []
        moved = {one.at: epsilon for one, epsilon in zip(self.drives[: len(perturb)], perturb, strict=True)}
        for number, epsilon in moved.items():
            if (site := self.sites[number]).direct:
                env[split.weights[site.weight]] += epsilon.reshape(self.weights[site.weight].shape)
        presynaptic, drives = [], []
        for equation in split.after:
            operands = [jaxprs.read(env, atom) for atom in equation.invars]
            number = self._products.get(id(equation))
            if number is None:
                env.update(zip(equation.outvars, jaxprs.bind(equation, operands), strict=True))
                continue
            product, site = split.products[number], self.sites[number]
            vector = jnp.transpose(operands[1 - product.side], product.vector_axes)
            presynaptic.append(vector.reshape(site.batch, site.pre))
            if hold is not None:
                value = hold[number]
            else:
                # a direct use of the same weight is a site of its own: the product reads it unperturbed
                operands[product.side] = synaptic[product.weight]
                value = jaxprs.bind(equation, operands)[0].reshape(site.batch, site.post)
                if number in moved:
                    value = value + moved[number]
            if drive is not None:
                value = drive(number, presynaptic[-1], value)
            drives.append(value)
            (variable,) = equation.outvars
            env[variable] = value.reshape(variable.aval.shape)
        outputs = [jaxprs.read(env, atom) for atom in split.outputs]
        return outputs[0], outputs[1:], presynaptic, drives

    def _constants(self):
        closed = self._split.closed
        return dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))


def materialised(array: Array) -> Array:
    """The array [..., m] as a plain one for a loop over weights to read.

    XLA fuses what made it into the loop that reads it, a concatenation for instance, and then decides for
    every weight anew which piece it needs; a gather, even of all entries in order, is computed once. (An
    optimization_barrier does not help on a CPU: it is gone before fusion.)
    """
    return array[..., np.arange(array.shape[-1])]
