"""What each modality says alone, what several say together, what none says without the others: evidence, decomposed.

Evidence is counted from the base rate: logits minus those of somebody of whom nothing is known (regression: distance from
the training mean). For one sample and one output, three kinds of evidence are known:

    F     of all modalities together (the mixture's)
    o_i   of modality i alone (a predictor that sees nothing else)
    p_i   how much of o_i the other modalities let expect: E[o_i | the others] - E[o_i]

and are divided into parts that add up to F exactly:

    unique_i     o_i - p_i, what modality i says that the others did not let expect (its innovation)
    redundancy   the expected part, counted as often as F counts it: F - sum_i unique_i, but between 0 and sum_i p_i
    synergy      the rest: what no modality says alone, or takes back

Where synergy would only take back what two or more modalities say uniquely and alike, either of them would have been
enough, and that overlap is redundancy too. So a label that every modality tells is redundancy, one that only modality i
tells is unique to i, and the XOR of two modalities, where alone they tell nothing, is synergy. In AND each sample has its
own: both ones are synergy (both needed), a single zero is unique to its modality, two zeros are redundancy.

The idea is that of pointwise partial information decomposition (Williams and Beer 2010; redundancy as the overlap of
pointwise evidence of one sign: Ince 2017, "Measuring multivariate redundant information with pointwise common change in
surprisal"), on the additive scale of logits on which experts are mixed, and with statistical dependence between modalities
(p_i) recognised as redundancy even where noise makes their evidence add up.

Shape suffixes: n modalities, B batch, C outputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_TINY = 1e-9


class Decomposition(NamedTuple):
    """Parts of the evidence; unique_nBC.sum(0) + synergy_BC + redundancy_BC is the whole."""

    unique_nBC: Tensor
    synergy_BC: Tensor
    redundancy_BC: Tensor


def decompose(whole_BC: Tensor, own_nBC: Tensor, expected_nBC: Tensor) -> Decomposition:
    """Divide the evidence `whole_BC` by the rules above, for n >= 2 modalities."""
    unique_nBC = own_nBC - expected_nBC
    rest_BC = whole_BC - unique_nBC.sum(dim=0)
    all_expected_BC = expected_nBC.sum(dim=0)
    redundancy_BC = torch.clamp(rest_BC, all_expected_BC.clamp(max=0), all_expected_BC.clamp(min=0))
    return _count_overlap_once(Decomposition(unique_nBC, rest_BC - redundancy_BC, redundancy_BC))


def _count_overlap_once(parts: Decomposition) -> Decomposition:
    """Move to redundancy what several modalities say uniquely and alike and synergy takes back.

    Of unique evidence u_1 >= u_2 >= ... of the sign opposite to synergy's, counting what at least two modalities say once
    instead of every time takes back at most sum_i u_i - u_1; redundancy gains u_2 and modality i loses min(u_i, u_2) of it,
    all scaled to what synergy really takes back.
    """
    direction_BC = -parts.synergy_BC.sign()
    alike_nBC = (direction_BC * parts.unique_nBC).clamp(min=0)
    largest_BC, second_BC = alike_nBC.topk(2, dim=0).values
    at_most_BC = alike_nBC.sum(dim=0) - largest_BC
    taken_BC = torch.minimum(parts.synergy_BC.abs(), at_most_BC)
    scale_BC = direction_BC * taken_BC / at_most_BC.clamp(min=_TINY)
    return Decomposition(
        parts.unique_nBC - scale_BC * torch.minimum(alike_nBC, second_BC),
        parts.synergy_BC + direction_BC * taken_BC,
        parts.redundancy_BC + scale_BC * second_BC,
    )
