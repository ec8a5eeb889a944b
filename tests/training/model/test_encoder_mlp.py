import torch

from tests.training.model import encoder_cases as cases
from tests.training.model.encoder_cases import TABULAR


def test_tokens_are_finite() -> None:
    """(B, P, D) of finite numbers, whatever is missing."""
    cases.assert_tokens_are_finite(cases.encoder("mlp", TABULAR), TABULAR)


def test_rows_are_independent() -> None:
    """A row's tokens do not depend on its batch."""
    cases.assert_rows_are_independent(cases.encoder("mlp", TABULAR), TABULAR)


def test_every_parameter_learns() -> None:
    """All parameters get a gradient, at any depth."""
    for num_layers in (1, 3):
        cases.assert_every_parameter_learns(cases.encoder("mlp", TABULAR, {"num_layers": num_layers, "hidden": 16}), TABULAR)


def test_statistics_are_those_of_the_training_rows() -> None:
    """The unit of measurement does not matter."""
    modality = cases.array(5)
    cases.assert_fitted_on_training_rows(cases.encoder("mlp", modality, {"hidden": 8}), modality)


def test_it_has_the_parameters_of_its_formula() -> None:
    """K h + h + (k - 2)(h^2 + h) + h P D + P D; one layer is a single Linear."""
    out = cases.NUM_PATCHES * cases.HIDDEN_DIM
    hidden = 8
    expanded = len(["a", "b", "I10", "I20"]) + len(["female", "male", "other"]) + len(TABULAR.features)
    deep = cases.encoder("mlp", TABULAR, {"num_layers": 3, "hidden": hidden})
    assert cases.num_parameters(deep) == expanded * hidden + hidden + hidden**2 + hidden + hidden * out + out
    assert cases.num_parameters(cases.encoder("mlp", TABULAR, {"num_layers": 1})) == expanded * out + out


def test_one_raw_token_is_the_released_encoder() -> None:
    """With P = 1 and `raw` it is Linear, ReLU, Linear over the columns as they are, by the released positions 0 and 3."""
    model = cases.encoder("mlp", TABULAR, {"raw": True, "hidden": 6}, num_patches=1)
    assert [name for name, _ in model.named_parameters()] == [
        f"network.{i}.{part}" for i in (0, 3) for part in ("weight", "bias")
    ]
    x = cases.values(TABULAR, 5)
    model.fit(x)  # learns nothing
    first, last = model.network[0], model.network[3]
    wanted = (x @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias
    torch.testing.assert_close(model(x), wanted[:, None])


def test_missing_and_mean_are_told_apart() -> None:
    """A missing number is not the same as the training mean, thanks to the flags."""
    model = cases.encoder("mlp", TABULAR)
    model.fit(torch.tensor([[1.0, 2.0, 0.0, 1.0, 0.0], [3.0, 4.0, 1.0, 0.0, 1.0]]))
    mean, missing = torch.tensor([[2.0, 3.0, 0.0, 1.0, 0.0]]), torch.tensor([[torch.nan, 3.0, 0.0, 1.0, 0.0]])
    assert not torch.allclose(model(mean), model(missing))


def test_it_exports() -> None:
    """Parity to 1e-5 at batch sizes 1, 2 and 7."""
    cases.assert_exports(cases.encoder("mlp", TABULAR, {"hidden": 8}), TABULAR)


def test_bad_options_are_told() -> None:
    """Validation errors name the key."""
    cases.assert_refused("mlp", TABULAR, "model.encoders.mixed.hidden: Input should be greater than or equal to 1", {"hidden": 0})
