import numpy as np
import pytest
import torch

from training.model.calibration import Calibration


def drawn(scale: float, bias: list[float], num_rows: int = 40_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose truth is softmax(scale x logits + bias)."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num_rows, len(bias), generator=generator)
    target = torch.multinomial(torch.softmax(scale * logits + torch.tensor(bias), dim=1), 1, generator=generator)[:, 0]
    return logits, target


@pytest.mark.parametrize(("scale", "bias"), [(0.4, [0.5, -0.5]), (2.0, [-1.0, 1.0]), (0.6, [1.0, -0.3, -0.7])])
def test_a_known_scale_and_bias_are_recovered(scale: float, bias: list[float]) -> None:
    """Fitted to labels drawn from softmax(scale x logits + bias), for two classes and for three."""
    calibration = Calibration(len(bias), "multiclass" if len(bias) > 2 else "binary")
    calibration.fit(*drawn(scale, bias))
    np.testing.assert_allclose(calibration.scale, [scale] * len(bias), rtol=0.05)
    np.testing.assert_allclose(calibration.bias, np.array(bias) - np.mean(bias), atol=0.05)


def test_separated_rows_stay_finite() -> None:
    """Perfect logits would ask for an infinite scale; the fit stays finite and confident."""
    logits = torch.tensor([[4.0, -4.0], [3.0, -3.0], [-5.0, 5.0], [-2.0, 2.0]])
    calibration = Calibration(2, "binary")
    calibration.fit(logits, torch.tensor([0, 0, 1, 1]))
    assert torch.isfinite(calibration.scale).all()
    assert torch.isfinite(calibration.bias).all()
    prediction = calibration(logits)
    assert (prediction.max(dim=1).values > 0.9).all()


@pytest.mark.parametrize("logits", [torch.zeros(6, 2), 1e4 * torch.eye(2).repeat(3, 1), -1e4 * torch.eye(2).repeat(3, 1)])
def test_hopeless_logits_stay_finite(logits: torch.Tensor) -> None:
    """Constant, enormous and reversed logits leave a finite calibration."""
    calibration = Calibration(2, "binary")
    calibration.fit(logits, torch.tensor([0, 1, 0, 1, 0, 1]))
    assert torch.isfinite(calibration(logits)).all()
    assert (calibration.scale > 0).all()


def test_the_fit_never_makes_the_log_loss_worse() -> None:
    """On the rows it was fitted to, calibrated answers are at least as good as uncalibrated ones."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(50, 3, generator=generator)
        target = torch.randint(3, (50,), generator=generator)
        calibration = Calibration(3, "multiclass")
        before = -calibration(logits).log()[torch.arange(50), target].mean()
        calibration.fit(logits, target)
        assert -calibration(logits).log()[torch.arange(50), target].mean() <= before


def test_order_and_decisions_follow_one_positive_scale() -> None:
    """A binary fit keeps the ranking of rows: the risk rises with the margin."""
    logits, target = drawn(0.5, [0.2, -0.2], 500)
    calibration = Calibration(2, "binary")
    calibration.fit(logits, target)
    order = (logits[:, 1] - logits[:, 0]).argsort()
    assert (calibration(logits)[order, 1].diff() >= -1e-6).all()


def test_unfitted_calibration_is_the_link_alone() -> None:
    """Scale 1 and bias 0: softmax; sigmoid for many labels; regression passes through."""
    logits = torch.randn(4, 3)
    torch.testing.assert_close(Calibration(3, "multiclass")(logits), logits.softmax(dim=1))
    torch.testing.assert_close(Calibration(3, "multilabel")(logits), logits.sigmoid())
    assert torch.equal(Calibration(1, "regression")(logits[:, :1]), logits[:, :1])


def test_the_prediction_is_the_link_of_scaled_and_shifted_logits() -> None:
    """softmax(scale x logits + bias), with both of them in it."""
    calibration, logits = Calibration(3, "multiclass"), torch.randn(4, 3)
    calibration.scale.copy_(torch.tensor([0.5, 0.5, 0.5]))
    calibration.bias.copy_(torch.tensor([1.0, -2.0, 1.0]))
    torch.testing.assert_close(calibration(logits), (0.5 * logits + torch.tensor([1.0, -2.0, 1.0])).softmax(dim=1))


def test_calibration_travels_with_the_weights() -> None:
    """Scale and bias are buffers: in the state, never trained."""
    calibration = Calibration(2, "binary")
    assert set(calibration.state_dict()) == {"scale", "bias"}
    assert not list(calibration.parameters())
