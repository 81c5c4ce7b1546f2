"""Meta-learning: a learner is itself a recurrence, and its hyperparameters are the parameters of a model.

    hidden  (φ, s)      what the inner learner trains, and the state of its optimizer
    params  θ           learning rates, momenta, decays, weights of a penalty, an initial φ ...

    (φ_t, s_t) = optimizer_θ(φ_{t-1}, s_{t-1}, ∂ℓ(θ, φ_{t-1}, x_t)/∂φ)          meta-loss ℓ(θ, φ_t, y_t)

x_t is the training example of a step and y_t the one that the meta-loss is read at, as a rule the next
(`pairs`). So every estimator of the library gives hypergradients online, through the whole past of the
training: `rtrl` is forward-mode hyperparameter optimisation, `uoro` serves many hyperparameters, and
`snap` with one step size per weight of a linear learner is IDBD without its clip: it keeps what a step
size did to its own weight. (IDBD sums up the past in terms of β = log α. `snap` does so in terms of α
itself and multiplies by the present dα/dβ: the same while β stands still, and nearly so while it moves.)

`online_readout` meta-learns a representation: a cell whose readout learns inside the model.

Reference: Im, Savin & Cho (2021), Online hyperparameter optimization by real-time recurrent learning,
arXiv:2102.07813; Sutton (1992), Adapting bias by gradient descent: an incremental version of
delta-bar-delta, AAAI; Javed, White & Sutton (2021), arXiv:2103.05787.
"""

from online_grads.meta.hyperparameters import as_model, pairs
from online_grads.meta.inner import LearnerHidden, begin, per_parameter
from online_grads.meta.representation import ReadoutHidden, online_readout, taught

__all__ = [
    "LearnerHidden",
    "ReadoutHidden",
    "as_model",
    "begin",
    "online_readout",
    "pairs",
    "per_parameter",
    "taught",
]
