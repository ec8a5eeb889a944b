"""The planted interactions are there, and nothing else is: measured with scikit-learn, numpy and group means."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from training.data.planted import NO_TRUTH, PlantedConfig, PlantedData, generate
from training.errors import DataError

ENCODINGS = ["direct", "rotated", "codebook"]
NUM_ROWS = 6000


def drawn(kind: str, num_modalities: int = 2, *, seed: int = 0, **changes: Any) -> PlantedData:
    return generate(PlantedConfig(kind=kind, num_modalities=num_modalities, num_rows=NUM_ROWS, **changes), seed)


def read_off(model: Any, x: NDArray[Any], y: NDArray[Any]) -> float:
    """Test score of a model fitted on the first half of the rows."""
    half = len(y) // 2
    return float(model.fit(x[:half], y[:half]).score(x[half:], y[half:]))


def neighbours(x: NDArray[Any], y: NDArray[Any]) -> float:
    """What can be read with no assumption of a form; needs no distractors."""
    return read_off(KNeighborsClassifier(15), x, y)


def _reader(encoding: str) -> Any:
    return KNeighborsClassifier(15) if encoding == "codebook" else LogisticRegression()


def bits(data: PlantedData) -> NDArray[Any]:
    """Directly encoded bits (N, n), read as the sign of the first column."""
    return np.stack([x[:, 0] > 0 for x in data.arrays.values()], axis=1).astype(int)


def information(*columns: NDArray[Any], about: NDArray[Any]) -> float:
    """Mutual information in bits between columns of bits taken together and the label."""
    return mutual_info_score(np.stack(columns, axis=1) @ 2 ** np.arange(len(columns)), about) / np.log(2)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_unique_bit_is_read_from_its_modality_alone(encoding: str) -> None:
    """m2 tells the label in every encoding with accuracy 0.99 or more; m1 and m3 tell nothing."""
    data = drawn("unique:m2", 3, encoding=encoding)
    assert read_off(LogisticRegression(), data.arrays["m2"], data.target) >= 0.99
    for other in ("m1", "m3"):
        assert read_off(LogisticRegression(), data.arrays[other], data.target) == pytest.approx(0.5, abs=0.04)
        assert neighbours(data.arrays[other], data.target) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("num_modalities", [2, 4])
def test_redundant_bits_are_read_from_each_modality(encoding: str, num_modalities: int) -> None:
    """Each modality alone tells the label; whatever else it holds is its own."""
    data = drawn("redundancy", num_modalities, encoding=encoding)
    for x in data.arrays.values():
        assert read_off(LogisticRegression(), x, data.target) >= 0.99
    assert not np.array_equal(data.arrays["m1"], data.arrays["m2"])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_each_modality_alone_says_nothing_in_xor(encoding: str) -> None:
    """No modality alone, however it is read, is better than a coin."""
    data = drawn("xor", encoding=encoding)
    for x in data.arrays.values():
        assert read_off(LogisticRegression(), x, data.target) == pytest.approx(0.5, abs=0.04)
        assert neighbours(x, data.target) == pytest.approx(0.5, abs=0.04)


def test_information_in_xor() -> None:
    """0 bits in each modality, 1 bit in the first two together, 0 in the third even given one of them."""
    data = drawn("xor", 3)
    m1, m2, m3 = bits(data).T
    assert max(information(m, about=data.target) for m in (m1, m2, m3)) < 0.002
    assert information(m1, m2, about=data.target) > 0.98
    assert information(m1, m3, about=data.target) < 0.003


@pytest.mark.parametrize("num_modalities", [3, 4])
def test_information_in_parity(num_modalities: int) -> None:
    """Three bits together decide; any two of them say nothing."""
    data = drawn("parity", num_modalities)
    m1, m2, m3 = bits(data).T[:3]
    assert information(m1, m2, m3, about=data.target) > 0.97
    assert max(information(a, b, about=data.target) for a, b in [(m1, m2), (m1, m3), (m2, m3)]) < 0.003


@pytest.mark.parametrize("num_modalities", [2, 3, 4])
def test_information_in_and(num_modalities: int) -> None:
    """All bits together decide; a bit is 1 with probability 2^(-1/n), and each says equally much, less than half for two."""
    data = drawn("and", num_modalities)
    columns = bits(data).T
    np.testing.assert_allclose(columns.mean(axis=1), 2 ** (-1 / num_modalities), atol=0.02)
    assert information(*columns, about=data.target) > 0.97
    alone = [information(column, about=data.target) for column in columns]
    assert np.ptp(alone) < 0.04
    if num_modalities == 2:
        np.testing.assert_allclose(alone, 0.38, atol=0.03)


@pytest.mark.parametrize("num_modalities", [2, 3, 4])
def test_truth_in_and_is_what_fixes_the_label(num_modalities: int) -> None:
    """All ones need each other, a single 0 is enough by itself, of several zeros any is; all rows together are synergy."""
    data = drawn("and", num_modalities, noise=0.0)
    zeros = bits(data) == 0
    expected = {0: {"synergy"}, 1: {f"unique:m{k + 1}" for k in range(num_modalities)}}
    for count in range(num_modalities + 1):
        assert set(data.truth[zeros.sum(axis=1) == count]) == expected.get(count, {"redundancy"})
    for k in range(num_modalities):
        assert zeros[data.truth == f"unique:m{k + 1}", k].all()
    assert PlantedConfig(kind="and", num_modalities=num_modalities).whole == "synergy"


CLASS_KINDS = ["unique:m1", "redundancy", "xor", "and", "parity", "mixture", "additive"]


@pytest.mark.parametrize("num_modalities", [2, 3, 4])
@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_classes_are_balanced(kind: str, num_modalities: int) -> None:
    """Half of the rows are of class 1, give or take three standard errors."""
    data = drawn(kind, max(3, num_modalities) if kind == "parity" else num_modalities)
    assert set(np.unique(data.target)) == {0, 1}
    assert data.target.mean() == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(NUM_ROWS))


@pytest.mark.parametrize("num_modalities", [2, 4])
def test_every_type_of_a_mixture_is_as_planted(num_modalities: int) -> None:
    """Types are equally frequent, shown in every modality, and within each the label follows its rule alone."""
    data = drawn("mixture", num_modalities)
    names, counts = np.unique(data.truth[data.truth != NO_TRUTH], return_counts=True)
    assert set(names) == {*(f"unique:m{k + 1}" for k in range(num_modalities)), "redundancy", "synergy"}
    np.testing.assert_allclose(counts / NUM_ROWS, 1 / len(names), atol=0.025)
    for group in names:
        rows = data.truth == group
        columns, target = bits(data)[rows].T, data.target[rows]
        alone = [information(column, about=target) for column in columns]
        if group == "synergy":
            assert max(alone) < 0.01
            assert information(columns[0], columns[1], about=target) > 0.97
        else:
            informed = [group in ("redundancy", f"unique:m{k + 1}") for k in range(num_modalities)]
            assert [value > 0.97 for value in alone] == informed
            assert all(value < 0.01 for value, is_informed in zip(alone, informed, strict=True) if not is_informed)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_context_code_is_visible_in_every_modality(encoding: str) -> None:
    """Its last columns are one-hot and name the row's type, the same in all modalities; alone they do not tell the label."""
    data = drawn("mixture", 3, encoding=encoding)
    codes = [x[:, 12:] for x in data.arrays.values()]
    assert {x.shape for x in data.arrays.values()} == {(NUM_ROWS, 17)}
    assert all(np.array_equal(code, codes[0]) for code in codes)
    assert mutual_info_score(codes[0].argmax(axis=1), data.truth) == pytest.approx(np.log(5), abs=0.01)
    assert mutual_info_score(codes[0].argmax(axis=1), data.target) < 0.003


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_regression_rules(encoding: str) -> None:
    """A unique value is read from its modality alone, a redundant one from each, a product from none alone."""
    changes = {"task": "regression", "encoding": encoding, "noise": 0.1}
    model = KNeighborsRegressor(10) if encoding == "codebook" else Ridge()
    unique, redundant, product = (drawn(kind, **changes) for kind in ("unique:m2", "redundancy", "product"))
    assert read_off(model, unique.arrays["m2"], unique.target) > 0.98
    assert read_off(model, unique.arrays["m1"], unique.target) < 0.02
    assert min(read_off(model, x, redundant.target) for x in redundant.arrays.values()) > 0.98
    assert max(read_off(model, x, product.target) for x in product.arrays.values()) < 0.02


def test_a_product_is_the_product_of_two_modalities() -> None:
    """With direct encoding and no noise, exactly; a third modality is irrelevant."""
    data = drawn("product", 3, task="regression", noise=0.0)
    np.testing.assert_allclose(data.target, data.arrays["m1"][:, 0] * data.arrays["m2"][:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_additive_parts_are_equal(task: Any) -> None:
    """All modalities together decide, each as much as any other, and no row has one true expert."""
    data = drawn("additive", 3, task=task, noise=0.0)
    values = np.stack([x[:, 0] for x in data.arrays.values()], axis=1)
    expected = values.sum(axis=1) if task == "regression" else values.sum(axis=1) > 0
    np.testing.assert_allclose(data.target, expected, rtol=1e-5, atol=1e-5)
    parts = [np.corrcoef(value, data.target)[0, 1] for value in values.T]
    assert np.ptp(parts) < 0.06
    assert set(data.truth) == {NO_TRUTH}


def test_a_codebook_is_not_read_from_one_column() -> None:
    """No single column comes near what all columns tell, while `direct` needs one."""
    data = drawn("redundancy", encoding="codebook")
    single = [read_off(LogisticRegression(), data.arrays["m1"][:, [c]], data.target) for c in range(12)]
    assert max(single) < 0.85
    direct = drawn("redundancy")
    assert read_off(LogisticRegression(), direct.arrays["m1"][:, [0]], direct.target) >= 0.99


def test_label_noise_is_the_share_of_flipped_labels() -> None:
    """Classes flip with the given probability, independently of everything else; the clean label stays known."""
    data = drawn("xor", label_noise=0.2)
    assert (data.target != data.clean).mean() == pytest.approx(0.2, abs=0.02)
    assert information(data.target != data.clean, about=data.clean) < 0.002


def test_label_noise_of_numbers_is_a_share_of_their_deviation() -> None:
    """Noise of half a standard deviation leaves R2 of 1 / 1.25 to the clean label."""
    data = drawn("redundancy", task="regression", label_noise=0.5)
    assert (data.target - data.clean).std() == pytest.approx(0.5 * data.clean.std(), rel=0.05)


def test_signal_noise_is_a_standard_deviation() -> None:
    """Directly encoded, a bit is -1 or 1 plus noise; so 0.6 leaves Phi(1 / 0.6) = 0.952 readable."""
    data = drawn("redundancy", noise=0.6)
    first = data.arrays["m1"][:, 0]
    assert (first - (2 * data.target - 1)).std() == pytest.approx(0.6, rel=0.05)
    assert ((first > 0) == data.target).mean() == pytest.approx(0.952, abs=0.015)


@pytest.mark.parametrize(("encoding", "noise"), [("direct", 0.5), ("rotated", 0.5), ("codebook", 1.0)])
def test_rows_have_a_truth_where_their_bits_can_be_read(encoding: Any, noise: float) -> None:
    """Nearly all rows with a truth are read rightly from either modality, far from all of the others."""
    data = drawn("redundancy", encoding=encoding, noise=noise)
    known = data.truth != NO_TRUTH
    assert set(data.truth[known]) == {"redundancy"}
    assert 0.6 < known.mean() < 0.95
    for x in data.arrays.values():
        read = _reader(encoding).fit(x, data.target).predict(x) == data.target
        assert read[known].mean() > 0.99 > read[~known].mean() + 0.05


def test_at_little_noise_nearly_all_rows_have_a_truth() -> None:
    """Phi(-(1 - 0.13) / 0.3) = 0.002 of the bits have a posterior below 0.95; with none, all have one."""
    assert (drawn("xor").truth == NO_TRUTH).mean() == pytest.approx(0.004, abs=0.004)
    assert (drawn("xor", noise=0.0).truth == "synergy").all()


def test_numbers_are_always_shown() -> None:
    """There is no bit to hide."""
    assert (drawn("product", task="regression", noise=0.5).truth == "synergy").all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_are_those_of_their_seed(encoding: str) -> None:
    """The same seed gives the same rows to the last bit, another seed other rows."""
    first, again, other = (drawn("mixture", encoding=encoding, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.target, again.target)
    assert np.array_equal(first.truth, again.truth)
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert not np.array_equal(first.arrays["m1"], other.arrays["m1"])


@pytest.mark.parametrize("encoding", ["rotated", "codebook"])
def test_encodings_are_those_of_the_configuration(encoding: str) -> None:
    """What is learned on one seed's rows holds on another's, and not under another encoding seed."""
    train, test, foreign = (drawn("unique:m1", encoding=encoding, seed=i, encoding_seed=i // 2) for i in range(3))
    model = LogisticRegression().fit(train.arrays["m1"], train.target)
    assert model.score(test.arrays["m1"], test.target) >= 0.99
    assert model.score(foreign.arrays["m1"], foreign.target) < 0.9


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "or"}, "kind: expected one of unique, .*, found 'or'"),
        ({"kind": "unique"}, "kind: expected unique:m1, unique:m2 or a kind without a modality, found 'unique'"),
        ({"kind": "unique:m3"}, "found 'unique:m3'"),
        ({"kind": "xor:m1"}, "found 'xor:m1'"),
        ({"kind": "parity"}, "num_modalities: kind parity expects 3 to 4, found 2"),
        ({"kind": "xor", "num_modalities": 5}, "expects 2 to 4, found 5"),
        ({"kind": "xor", "task": "regression"}, "task: kind xor expects classification, found 'regression'"),
        ({"kind": "product"}, "task: kind product expects regression"),
        ({"kind": "xor", "encoding": "spiral"}, "encoding: expected direct, rotated or codebook, found 'spiral'"),
        ({"kind": "xor", "num_features": 7}, "num_features: expected at least 8, found 7"),
        ({"kind": "xor", "num_rows": 0}, "num_rows: expected at least 1, found 0"),
        ({"kind": "xor", "noise": float("nan")}, "noise: expected a standard deviation from 0, found nan"),
        ({"kind": "xor", "label_noise": 0.5}, "label_noise: expected from 0 to below 0.5 in classification, found 0.5"),
        ({"kind": "xor", "encoding_seed": -1}, "encoding_seed: expected at least 0, found -1"),
    ],
)
def test_what_cannot_be_planted_is_refused(changes: dict[str, Any], sentence: str) -> None:
    """One line says what was expected and what was found."""
    with pytest.raises(DataError, match=sentence) as caught:
        PlantedConfig(**changes)
    assert "\n" not in str(caught.value)
