"""Where the weights of a transition act, and in what layout."""

import pytest

from tests.one_step import case

SITES = {  # [batch, pre, post], * for a direct use
    "gru": "0 [1, 7, 8] 1 [1, 4, 4] 2 [1, 3, 4] 3 [1, 1, 8]* 4 [1, 1, 4]* 5 [1, 1, 4]*",
    "synapse twice and directly": "0 [1, 4, 4] 0 [1, 4, 4] 1 [1, 3, 4] 2 [1, 1, 4]*",
    "W and its transpose": "0 [1, 4, 4] 1 [1, 4, 4]",
    "product of parameters": "0 [1, 4, 4]",
    "weights made of the input": "0 [1, 3, 16]",
    "one-hot constant": "1 [1, 4, 4] 0 [1, 4, 4]",
    "in a scan": "0 [1, 1, 16]* 1 [1, 1, 8]*",
    "batch axis in the middle": "0 [3, 2, 2]",
    "two contracted axes": "0 [1, 4, 4]",
    "mapped columns": "0 [2, 3, 3]",
    "shared by columns": "0 [1, 1, 4]*",
    "without input": "0 [1, 4, 4] 1 [1, 0, 4]",
    "rematerialised": "0 [1, 4, 4]",
}


@pytest.mark.parametrize("name", SITES)
def test_where_the_weights_act(name):
    show = lambda s: f"{s.weight} {[s.batch, s.pre, s.post]}{'*' if s.direct else ''}"
    assert " ".join(map(show, case(name).structure.sites)) == SITES[name]
