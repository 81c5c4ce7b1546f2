"""A module of flax or equinox, as it is, becomes a `Model` in one call.

    from online_grads.adapters.linen import from_module         pip install 'online-grads[flax]'
    from online_grads.adapters.nnx import from_module           pip install 'online-grads[flax]'
    from online_grads.adapters.equinox import from_module       pip install 'online-grads[equinox]'

    model = from_module(module, loss, example=(x, y), readout=None, carry=None, call=None)

The module is a recurrent cell of the framework (not `nn.RNN`, which runs over a sequence, but its cell), or
any module of yours that is called as in `jax.lax.scan`,

    carry_t, out_t = module(carry_{t-1}, x_t)          ℓ_t = loss(ŷ_t, y_t)          ŷ_t = readout(out_t)

a stack of cells whose carry is a tuple, or a whole network with its readout inside. `call` says how to call
one of another form, `carry` where to start if the module does not know. Nothing of a module is rewritten.

A step takes one observation at a time, without a batch axis: `online_grads.batched` learns from many streams.
What normalises over a batch has none here: BatchNorm with its running averages is served, in training it is
refused, for it would let no gradient through; LayerNorm takes its place.

* **Parameters** come in the framework's own structure, so that what was learned goes straight back; with a
  `readout` they are {"cell": ..., "readout": ...}.
* **What is read off the carry stays outside of the recurrence.** The step's equations tell whether out_t is a
  function of θ and carry_t alone: an LSTM's h, a readout inside the module. It is then part of the loss, and
  its parameters get their exact gradient there. Otherwise (a skip from the input, dropout after the cell)
  out_t is carried in the hidden state, correct too, at the cost of its entries. A module that reads out of
  parts should return these parts in its carry, not what they are concatenated to.
* **What a step changes is hidden state**: running statistics are followed by the gradient like any other
  state, random keys and counters move on, so that dropout draws a new mask at every step. `with_resets`
  begins all of it anew, keys too; `batched` starts all streams alike.
* **What no step changes is a constant**, unless it is a parameter. Floating-point constants that a
  constructor draws from its key would differ from seed to seed: refused, hand over the module itself.
* **What does not fit is refused when the model is made.** A TypeError: an argument is of the wrong type, the
  module does not take (carry, x) or returns no pair. A ValueError: the module, the readout or the loss fails
  on the example (the message is passed on), x is a batch, a BatchNorm is in training, there is no first
  carry, or the carry is of another form than the module's own or changes in structure, shape or dtype.

The hidden state is `Hidden(carry, state, output)`; most modules have a carry alone.
"""

from online_grads.adapters.build import Hidden

__all__ = ["Hidden"]
