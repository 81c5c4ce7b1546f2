"""Colours of a pattern: one JVP each gives all of a sparse Jacobian."""

import numpy as np
from scipy import sparse

from online_grads.analysis import analyse
from online_grads.linearize import Weights
from online_grads.patterns import colour
from tests import models
from tests.one_step import case


def valid(pattern, colours):
    """Whether no row has two columns of one colour."""
    return all(pattern.toarray()[:, colours == c].sum(axis=1).max() <= 1 for c in np.unique(colours))


def test_columns_of_one_colour_share_no_row():
    rng = np.random.default_rng(0)
    for density in (0.05, 0.2, 0.6):
        pattern = sparse.random(12, 30, density, random_state=rng).astype(bool)
        assert valid(pattern, colour(pattern))
        assert not valid(pattern, np.zeros(30, int))
    lstm = case("lstm").patterns
    synapses = [site for site in lstm.sites if site.shape[1] == 16]
    assert colour(synapses[0]).max() == 3
    assert colour(sparse.csr_matrix(np.ones((2, 5), bool))).tolist() == [0, 1, 2, 3, 4]
    assert colour(sparse.csr_matrix((2, 3), dtype=bool)).tolist() == [0, 0, 0]


def test_what_is_read_and_reached_without_making_the_jacobian():
    unread = Weights(analyse(models.elstm()), dense=False).patterns
    for patterns in (*(case(name).patterns for name in ("lstm", "normalised", "columns")), unread):
        jacobian = patterns.jacobian.toarray()
        np.testing.assert_array_equal(patterns.carried, jacobian.any(axis=0))
        for entries in np.eye(len(jacobian), dtype=bool):
            np.testing.assert_array_equal(patterns.follow(entries), jacobian @ entries)
    np.testing.assert_array_equal(unread.carried, [True] * models.HIDDEN + [False] * models.HIDDEN)
