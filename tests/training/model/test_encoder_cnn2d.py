import collections
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.model import encoder_cases as cases
from training.errors import RecipeError
from training.model.encoders.image import GridPool

IMAGE = cases.array(3, 9, 21)
SMALL = {"hidden": 6}


def state(**changes: Tensor | None) -> dict[str, Tensor]:
    """A torchvision-style state dict that fits the small architecture; None removes a key."""
    model = cases.encoder("cnn2d", IMAGE)
    torch.manual_seed(7)
    found: dict[str, Tensor | None] = {
        f"features.{k}": torch.rand_like(v.float()) for k, v in model.features.state_dict().items()
    }
    found |= {"classifier.0.weight": torch.zeros(3, 3)} | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in found.items() if value is not None}


def save(folder: Path, document: object) -> str:
    torch.save(document, folder / "weights.pt")
    return str(folder / "weights.pt")


def test_tokens_are_finite() -> None:
    """(B, P, D) of finite numbers, whatever is missing, for a training batch of one row or none that is there, too."""
    cases.assert_tokens_are_finite(cases.encoder("cnn2d", IMAGE, SMALL), IMAGE)


def test_rows_are_independent() -> None:
    """An image's tokens in evaluation do not depend on its batch."""
    cases.assert_rows_are_independent(cases.encoder("cnn2d", IMAGE, SMALL), IMAGE)


def test_every_parameter_learns() -> None:
    """All parameters get a gradient."""
    cases.assert_every_parameter_learns(cases.encoder("cnn2d", IMAGE, SMALL), IMAGE)


def test_statistics_are_those_of_the_training_rows() -> None:
    """The unit of measurement does not matter."""
    cases.assert_fitted_on_training_rows(cases.encoder("cnn2d", IMAGE, SMALL), IMAGE)


def test_channels_have_scales_of_their_own() -> None:
    """Missing cells are their channel's training mean, ImageNet's, or 0."""
    x = cases.values(IMAGE, 10) + torch.arange(3.0).repeat_interleave(9 * 21)
    pixels = x.unflatten(1, (3, 189))
    missing = torch.full((1, IMAGE.width), torch.nan)
    means = {"training": pixels.mean(dim=(0, 2)), "imagenet": torch.tensor([0.485, 0.456, 0.406]), "none": torch.zeros(3)}
    for scaling, mean in means.items():
        model = cases.encoder("cnn2d", IMAGE, SMALL | {"scaling": scaling})
        model.fit(x)
        torch.testing.assert_close(model.standardise.mean.flatten(), mean)
        torch.testing.assert_close(model(missing), model(mean.repeat_interleave(189)[None]), rtol=0, atol=1e-6)


def test_vgg11_has_torchvisions_parameters() -> None:
    """9,225,984 in `features`, convolutions at torchvision's positions, Linear(25088, 1024) as released."""
    with torch.device("meta"):
        model = cases.encoder("cnn2d", cases.array(3, 256, 128), {"architecture": "vgg11"}, num_patches=4, hidden_dim=8)
    assert cases.num_parameters(model.features) == 9_225_984
    assert [i for i, layer in enumerate(model.features) if isinstance(layer, nn.Conv2d)] == [0, 4, 8, 11, 15, 18, 22, 25]
    assert "features.26.running_mean" in model.state_dict()
    assert model.classifier.weight.shape == (1024, 25088)
    assert model.patches.projection.weight.shape == (8, 256)


@pytest.mark.parametrize(("height", "width", "grid"), [(8, 4, 7), (7, 7, 7), (1, 1, 2), (5, 3, 2), (14, 21, 7)])
def test_the_grid_is_torchs_adaptive_average(height: int, width: int, grid: int) -> None:
    """GridPool answers as nn.AdaptiveAvgPool2d, which cannot be exported for sizes that do not divide."""
    maps = torch.randn(2, 3, height, width)
    torch.testing.assert_close(GridPool(height, width, grid)(maps), nn.AdaptiveAvgPool2d(grid)(maps))


def test_weights_are_read_when_training_starts(tmp_path: Path) -> None:
    """`fit` fills the convolutions from the file; building does not need it; other layers stay, as the file's classifier does."""
    document = state()
    path = save(tmp_path, collections.OrderedDict(document))
    model = cases.encoder("cnn2d", IMAGE, SMALL | {"weights": path})
    classifier = model.classifier.weight.clone()
    model.fit(cases.values(IMAGE, 5))
    for key, tensor in model.features.state_dict().items():
        torch.testing.assert_close(tensor, document[f"features.{key}"].to(tensor.dtype))
    assert torch.equal(model.classifier.weight, classifier)
    (tmp_path / "weights.pt").unlink()
    cases.encoder("cnn2d", IMAGE, SMALL | {"weights": path})  # a checkpoint is rebuilt without the file


def test_old_files_without_counters_are_read(tmp_path: Path) -> None:
    """torchvision's own file lacks num_batches_tracked."""
    path = save(tmp_path, {key: tensor for key, tensor in state().items() if not key.endswith("num_batches_tracked")})
    cases.encoder("cnn2d", IMAGE, SMALL | {"weights": path}).fit(cases.values(IMAGE, 5))


@pytest.mark.parametrize(
    ("document", "told"),
    [(state(features__0__weight=None), r"expected 18 keys features\.\*, found 1 missing: features.0.weight"),
     (state(head__weight=torch.zeros(1)), "found 1 unknown: head.weight"),
     (state(features__0__bias=torch.zeros(2)), r"found 1 unfit: features.0.bias of shape \(2,\) instead of \(16,\)"),
     ({"conv1.weight": torch.zeros(1)}, "found 18 missing: .* and 13 more; 1 unknown: conv1.weight"),
     ({"state_dict": {}}, "expected a state dict of tensors"),
     ([1, 2], "expected a state dict of tensors"),
     (Path, "is not a state dict saved with torch.save")],
)  # fmt: skip
def test_weights_that_do_not_fit_are_told(document: object, told: str, tmp_path: Path) -> None:
    """Missing, unknown and reshaped keys by name, in one line that begins with the recipe's key; pickled code is never run."""
    model = cases.encoder("cnn2d", IMAGE, SMALL | {"weights": save(tmp_path, document)})
    with pytest.raises(RecipeError, match=told) as error:
        model.fit(cases.values(IMAGE, 5))
    assert str(error.value).startswith("model.encoders.signal.weights: ")
    assert "\n" not in str(error.value)


def test_a_weights_file_must_exist(tmp_path: Path) -> None:
    """Nothing is downloaded in its place."""
    model = cases.encoder("cnn2d", IMAGE, SMALL | {"weights": tmp_path / "none.pt"})
    with pytest.raises(RecipeError, match=r"model\.encoders\.signal\.weights: .*none.pt: no such file"):
        model.fit(cases.values(IMAGE, 5))


def test_frozen_convolutions_do_not_change(tmp_path: Path) -> None:
    """frozen: no gradient and no new statistics in the convolutional part; the rest learns."""
    model = cases.encoder("cnn2d", IMAGE, SMALL | {"weights": save(tmp_path, state()), "frozen": True})
    model.fit(cases.values(IMAGE, 16))
    before = {key: tensor.clone() for key, tensor in model.features.state_dict().items()}
    cases.assert_every_parameter_learns(model, IMAGE)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"classifier", "patches"}
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.features.state_dict().items())


def test_absent_images_do_not_touch_the_statistics() -> None:
    """Rows without a value leave the running statistics to the others."""
    x = cases.values(IMAGE, 4)
    plain, mixed = (cases.encoder("cnn2d", IMAGE, SMALL | {"dropout": 0}).train() for _ in range(2))
    plain(x)
    mixed(torch.cat([torch.full((3, IMAGE.width), torch.nan), x]))
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(mixed.state_dict()[name], tensor)


def test_the_small_one_exports() -> None:
    """Parity to 1e-5 at batch sizes 1, 2 and 7, where a 1 x 2 map is averaged to 2 x 2."""
    model = cases.encoder("cnn2d", IMAGE, SMALL).train()
    model(cases.values(IMAGE, 9))
    cases.assert_exports(model, IMAGE)


def test_vgg11_exports() -> None:
    """Parity to 1e-5 at batch sizes 1, 2 and 7, where a 1 x 2 map is averaged to 7 x 7."""
    modality = cases.array(3, 32, 64)
    cases.assert_exports(cases.encoder("cnn2d", modality, {"architecture": "vgg11", "hidden": 6}), modality)


def test_what_is_no_image_is_refused() -> None:
    """One array of rank 3, channels first, large enough; frozen only with weights."""
    told = "modality signal: the cnn2d encoder expects one array of shape (channels, height, width), found signal of shape (9, 9)"
    cases.assert_refused("cnn2d", cases.array(9, 9), told)
    cases.assert_refused("cnn2d", cases.array(64, 48, 3), "the cnn2d encoder expects channels first, found shape (64, 48, 3)")
    cases.assert_refused("cnn2d", cases.array(3, 7, 9), "expects at least 8 x 8 pixels for small, found shape (3, 7, 9)")
    told = "expects at least 32 x 32 pixels for vgg11, found shape (3, 31, 64)"
    cases.assert_refused("cnn2d", cases.array(3, 31, 64), told, {"architecture": "vgg11"})
    told = "expects 3 channels for scaling = 'imagenet', found shape (1, 9, 9)"
    cases.assert_refused("cnn2d", cases.array(1, 9, 9), told, {"scaling": "imagenet"})
    cases.assert_refused("cnn2d", IMAGE, "frozen = true expects weights, found none", {"frozen": True})
