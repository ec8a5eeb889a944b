import itertools

import numpy as np
import pytest

from training.validity.games import dividends, interaction_share, interactions, pairs, shapley_values

#                none  1    2    12   3    13   23   123
BY_HAND = np.array([0.0, 1.0, 2.0, 5.0, 0.0, 1.0, 2.0, 6.0])[:, None]


def test_a_game_by_hand() -> None:
    """Dividends 1, 2, 2 (of 12) and 1 (of all) make Shapley values 7/3, 10/3, 1/3 and interactions 2.5, 0.5, 0.5."""
    assert dividends(BY_HAND)[:, 0].tolist() == [0, 1, 2, 2, 0, 0, 0, 1]
    np.testing.assert_allclose(shapley_values(BY_HAND), [[7 / 3, 10 / 3, 1 / 3]])
    assert {pair: index.tolist() for pair, index in pairs(BY_HAND)} == {(0, 1): [2.5], (0, 2): [0.5], (1, 2): [0.5]}
    assert interactions(BY_HAND).tolist() == [3.0]  # 6 - (1 + 2 + 0)
    assert interaction_share(BY_HAND) == pytest.approx(9 / 36)


@pytest.mark.parametrize("num", [2, 3, 4, 6])
def test_shapley_values_are_mean_marginal_contributions(num: int) -> None:
    """Over all orders in which modalities may arrive, whatever the empty coalition is worth; they add up to what all add."""
    values = np.random.default_rng(num).normal(size=(1 << num, 2))
    marginal = np.zeros((2, num))
    orders = list(itertools.permutations(range(num)))
    for order in orders:
        coalition = 0
        for player in order:
            marginal[:, player] += values[coalition | 1 << player] - values[coalition]
            coalition |= 1 << player
    np.testing.assert_allclose(shapley_values(values), marginal / len(orders), atol=1e-12)
    np.testing.assert_allclose(shapley_values(values).sum(axis=1), values[-1] - values[0], atol=1e-12)


def test_the_sign_of_an_interaction() -> None:
    """0 where modalities add up, above 0 where only both tell, below 0 where either tells the same."""
    additive, both, either = np.array([[1.0, 3.0, 4.0, 6.0], [0, 0, 0, 1], [0, 1, 1, 1]]).T[:, :, None].swapaxes(0, 1)
    for game, wanted in ((additive, 0.0), (both, 1.0), (either, -1.0)):
        assert interactions(game).tolist() == [wanted]
        assert [index.tolist() for _, index in pairs(game)] == [[wanted]]
    assert interaction_share(additive) == 0.0
    assert interaction_share(np.zeros((4, 3))) is None
