import torch
from torch.optim.swa_utils import AveragedModel

from tests.training.model import encoder_cases as cases
from tests.training.model.encoder_cases import TABULAR
from training.model.encoders.maxout import Maxout

SMALL = {"hidden": [6, 5]}


def test_tokens_are_finite() -> None:
    """(B, P, D) of finite numbers, whatever is missing, for a training batch of one row or none that is there, too."""
    cases.assert_tokens_are_finite(cases.encoder("maxout", TABULAR, SMALL), TABULAR)


def test_rows_are_independent() -> None:
    """A row's tokens in evaluation do not depend on its batch."""
    cases.assert_rows_are_independent(cases.encoder("maxout", TABULAR, SMALL), TABULAR)


def test_every_parameter_learns() -> None:
    """All parameters get a gradient."""
    cases.assert_every_parameter_learns(cases.encoder("maxout", TABULAR, SMALL), TABULAR)


def test_statistics_are_those_of_the_training_rows() -> None:
    """The unit of measurement does not matter."""
    modality = cases.array(5)
    cases.assert_fitted_on_training_rows(cases.encoder("maxout", modality, SMALL), modality)


def test_a_unit_is_the_largest_of_its_neighbours() -> None:
    """y_j is the maximum over the k outputs from j k on."""
    layer = Maxout(4, 3, 2)
    x = torch.randn(5, 4)
    torch.testing.assert_close(layer(x), layer.lin(x).view(5, 3, 2).max(dim=2).values)


def test_it_has_the_released_layout() -> None:
    """The released MM-IMDB encoders, text 300 and images 4096, by name and shape."""
    text = cases.encoder("maxout", cases.array(300), {"raw": True}, num_patches=16, hidden_dim=8)
    shapes = {name: tuple(tensor.shape) for name, tensor in text.state_dict().items()}
    assert shapes["op0.running_var"] == (300,)
    assert shapes["op1.lin.weight"] == (1024, 300)
    assert shapes["op2.0.num_batches_tracked"] == ()
    assert shapes["op3.lin.weight"] == (1024, 512)
    assert shapes["op4.0.weight"] == (512,)
    assert shapes["patches.projection.weight"] == (8, 512 // 16)
    assert cases.num_parameters(text) == 600 + 1024 * 301 + 1024 + 1024 * 513 + 1024 + 32 * 8 + 8
    image = cases.encoder("maxout", cases.array(4096), {"hidden": [1024, 512], "raw": True}, num_patches=16, hidden_dim=8)
    assert image.op1.lin.weight.shape == (2048, 4096)
    assert image.op3.lin.weight.shape == (1024, 1024)
    assert image.op0.eps == 1e-4


def test_absent_rows_do_not_touch_the_statistics() -> None:
    """Rows without a value move neither the batch's nor the running statistics; a row alone leaves them as they are."""
    x = cases.values(TABULAR, 8)
    holes = torch.cat([x, torch.full((5, 5), torch.nan)])[[0, 8, 1, 9, 2, 3, 10, 4, 5, 11, 6, 12, 7]]
    plain, mixed = (cases.encoder("maxout", TABULAR, SMALL | {"dropout": 0}).train() for _ in range(2))
    tokens = mixed(holes)
    torch.testing.assert_close(tokens[~holes.isnan().all(dim=1)], plain(x))
    assert not tokens[holes.isnan().all(dim=1)].any()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(mixed.state_dict()[name], tensor)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    plain(x[:1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_an_averaged_copy_has_the_live_statistics() -> None:
    """AveragedModel, which the trainer evaluates, follows the running statistics with every step."""
    model = cases.encoder("maxout", TABULAR, SMALL).train()
    average = AveragedModel(model)
    for seed in range(3):
        model(cases.values(TABULAR, 8, seed=seed))
        average.update_parameters(model)
    live = dict(model.named_buffers())
    assert all(torch.equal(tensor, live[name]) for name, tensor in average.module.named_buffers())
    assert live["op0.num_batches_tracked"] == 3


def test_it_exports() -> None:
    """Parity to 1e-5 at batch sizes 1, 2 and 7, with running statistics of its own."""
    model = cases.encoder("maxout", TABULAR, SMALL).train()
    model(cases.values(TABULAR, 20))
    cases.assert_exports(model, TABULAR)


def test_bad_options_are_told() -> None:
    """Validation errors name the key."""
    cases.assert_refused("maxout", TABULAR, "model.encoders.mixed.hidden", {"hidden": [0, 3]})
