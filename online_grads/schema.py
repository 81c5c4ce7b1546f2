"""The format of a config in words; `online-grads run --help` prints it."""

SCHEMA = """\
A config is a TOML file with these sections (a key shown with a value has it by default):

[task]
  name                  the stream to learn; the other keys are that task's own options
[model]                 left out where the task is about one particular model
  cell                  the recurrent cell; the other keys are that cell's own options
  hidden                its size; a list of sizes stacks as many cells
[run]
  steps | updates       how long to train: steps of the stream, or parameter updates
  seeds = 1             how many seeds, trained side by side
  seed = 0              the first of them
  precision = "float32" or "float64"
  axis                  what the figure shows, "steps" or "updates"; by default the one given above
  chunk = 4096          steps per compiled call, at most; a curriculum looks at the losses after each
  only = []             labels of the estimators to train or compare; by default all
  fast = false          true lays the sections under [fast] over the config: [fast.run] and so on,
                        [fast.estimator] over every estimator
[optimizer]
  name = "adam"         the other keys are that optimizer's own options, as optax names them
  learning_rate         a number, or a list: all are trained; the table and the figure show the best
                        (fewest diverged seeds, then highest level of a curriculum, then lowest final
                        loss), summary.json holds all
  slowdown = 0.0        after t steps of the stream the rate is learning_rate / (1 + slowdown √t)
  lazy = false          true: no parameter moves in a step where its gradient is exactly zero
[[estimator]]           one table for each line of the figure
  name                  the estimator; the other keys are its own options
  label                 what the table and the figure call it; by default its name, window if not 1
  window = 1            steps per segment and parameter update; must divide the steps
  steps | updates       in place of [run]'s
  seeds                 in place of [run]'s: one is enough where nothing is random
  optimizer = {}        laid over [optimizer]; with another name it starts afresh
  frozen = []           parameters that are not trained, as dotted paths: "cell", "cell.W_rec"
  model = {}            options of the cell laid over [model]'s, for this estimator
  feedback = "symmetric" or "random"    for estimators that take a feedback; random matrices are drawn
                        from [run]'s first seed
  inner_optimizer = {}  for estimators that learn a part of their own: name and learning_rate as in
                        [optimizer], one rate; t counts updates of that part; by default the estimator's
  jacobian_optimizer = {}  likewise, for dni with a learned jacobian
[compare]               for `online-grads compare`, at frozen parameters; each seed of [run] is a network
  by                    the estimator, by label, that trains the networks; by default the first
  at = [0]              after how many steps of this training gradients are compared
  streams = 8           stretches of the stream for each network
  warmup = 100          steps before each stretch, for the state and what an estimator learns of its own
  steps = 20            of a stretch: the gradient of its mean loss, no further back than its first step
  keys = 16             draws of an estimator's noise for each stretch, 2 or more
  lags = 0              so many lags in the figure of credit by lag, at most the steps

--set section.key=value replaces a value, written as in TOML; a bare word is a string. estimator.key is
for all estimators, estimator.0.key for the first. Setting steps drops updates, and the other way round.
"""
