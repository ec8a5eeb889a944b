"""Evidence by hand: what is unique, what redundant, what synergy, and that nothing is lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.decomposition import decompose

A, B = 2.0, 0.5


def parts(whole: float, own: list[float], expected: list[float]) -> list[float]:
    """unique..., synergy, redundancy of one sample and one output."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values)[:, None, None]

    found = decompose(torch.tensor([[whole]]), column(own), column(expected))
    return [*found.unique_nBC.flatten().tolist(), found.synergy_BC.item(), found.redundancy_BC.item()]


@pytest.mark.parametrize(
    ("case", "whole", "own", "expected", "told"),
    [
        ("only modality 1 tells", A, [A, 0], [0, 0], [A, 0, 0, 0]),
        ("both tell, each lets the other expect", A, [A, A], [A, A], [0, 0, 0, A]),
        ("both tell the opposite, alike", -A, [-A, -A], [-A, -A], [0, 0, 0, -A]),
        ("neither tells alone", A, [0, 0], [0, 0], [0, 0, A, 0]),
        ("independent causes add up", A + B, [A, B], [0, 0], [A, B, 0, 0]),
        ("independent causes against each other", A - B, [A, -B], [0, 0], [A, -B, 0, 0]),
        ("noisy copies, half expected, add up", 2 * A, [A, A], [A / 2, A / 2], [A / 2, A / 2, 0, A]),
        ("independent, but either is enough", A, [A, A], [0, 0], [0, 0, 0, A]),
        ("either is nearly enough", A + B, [A, A], [0, 0], [B, B, 0, A - B]),
        ("three, any is enough", A, [A, A, A], [0, 0, 0], [0, 0, 0, 0, A]),
        ("three, two of them enough", A, [A, A, 0], [0, 0, 0], [0, 0, 0, 0, A]),
        ("both together say more than they add up to", 3 * A, [A, A], [0, 0], [A, A, A, 0]),
        ("nothing known", 0.0, [0, 0], [0, 0], [0, 0, 0, 0]),
    ],
)
def test_cases_by_hand(case: str, whole: float, own: list[float], expected: list[float], told: list[float]) -> None:
    """What the module's text says, case by case."""
    assert parts(whole, own, expected) == pytest.approx(told), case


finite = st.floats(-20, 20, width=32)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 6).flatmap(lambda n: st.tuples(finite, *[st.lists(finite, min_size=n, max_size=n)] * 2)))
def test_parts_add_up_to_the_whole(drawn: tuple[float, list[float], list[float]]) -> None:
    """Whatever the evidence, its parts are finite and sum to it."""
    found = parts(*drawn)
    assert sum(found) == pytest.approx(drawn[0], abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.tuples(finite, st.lists(finite, min_size=3, max_size=3), st.lists(finite, min_size=3, max_size=3)))
def test_a_mirrored_world_has_mirrored_parts(drawn: tuple[float, list[float], list[float]]) -> None:
    """Nothing prefers one label to the other."""
    whole, own, expected = drawn
    mirrored = parts(-whole, [-o for o in own], [-p for p in expected])
    assert mirrored == pytest.approx([-part for part in parts(*drawn)], abs=1e-4)
