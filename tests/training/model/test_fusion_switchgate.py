import pytest
import torch

from tests.training.model.fusion_cases import (
    assert_exports,
    assert_rows_are_independent,
    fusion,
    num_parameters,
    tokens,
)
from training.model.fusion.switchgate import SwitchLayer, SwitchMLP
from training.model.fusion.transformer import TransformerLayer


def mlp(**changes) -> SwitchMLP:
    torch.manual_seed(0)
    return SwitchMLP(8, 4, **({"jitter": 0.1, "dispatch": True} | changes))


@pytest.mark.parametrize("residual", ["input", "released"])
def test_rows_are_independent(residual: str) -> None:
    """No capacity: the answer to a row does not depend on the rows it is batched with."""
    assert_rows_are_independent(fusion("switchgate", 3, {"residual": residual}))


def test_a_crowded_expert_drops_nothing() -> None:
    """A hundred copies of one row, all sent to the same expert, get the answer of the row alone."""
    model, x = fusion("switchgate", 3).eval(), tokens(3, 1)
    with torch.no_grad():
        crowd = model(x.expand(100, -1, -1, -1)).logits_BC
        torch.testing.assert_close(crowd, model(x).logits_BC.expand(100, -1), rtol=0, atol=1e-6)


def test_layers_alternate() -> None:
    """Layers 0 and 2 are sparse, layer 1 is dense."""
    kinds = [type(layer) for layer in fusion("switchgate", 2, num_layers=3).layers]
    assert [SwitchLayer, TransformerLayer, SwitchLayer] == kinds


@pytest.mark.parametrize(("num_layers", "num_sparse"), [(1, 1), (2, 1), (3, 2)])
def test_parameter_count(num_layers: int, num_sparse: int) -> None:
    """Weights number what the published layer sizes add up to."""
    n, p, d, c, e = 3, 3, 8, 3, 6
    sparse = 4 * d**2 + d + 4 * d + e * (4 * d**2 + 3 * d) + e * d + e
    wanted = num_sparse * sparse + (num_layers - num_sparse) * (8 * d**2 + 8 * d) + n * p * d + n * d * c + c
    assert wanted == num_parameters(fusion("switchgate", n, {"num_experts": e}, num_layers=num_layers))


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_dispatch_equals_dense(shift: float) -> None:
    """Sending each token to its own expert gives answers and gradients of computing all, also with idle experts."""
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    answers, gradients = [], []
    for dispatch in (True, False):
        module = mlp(dispatch=dispatch, jitter=0.0).train()
        with torch.no_grad():
            module.router.bias[2] += shift
        y, loss = module(x)
        (y.square().sum() + loss).backward()
        answers.append(y)
        gradients.append([parameter.grad for parameter in module.parameters()])
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5)


def test_token_by_token() -> None:
    """A token's answer is its best expert's GELU MLP, scaled by that expert's probability."""
    module = mlp().eval()
    x = torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, _ = module(x)
        for token, answer in zip(x, y, strict=True):
            p = torch.softmax(module.router.weight @ token + module.router.bias, dim=0)
            e = int(p.argmax())
            hidden = torch.nn.functional.gelu(module.expand.weight_SOI[e] @ token + module.expand.bias_SO[e])
            wanted = p[e] * (module.contract.weight_SOI[e] @ hidden + module.contract.bias_SO[e])
            torch.testing.assert_close(answer, wanted, rtol=0, atol=1e-6)


def test_loss_is_one_when_even_and_num_experts_when_not() -> None:
    """The loss is 1 when every expert gets the same share, and the number of experts when one takes all."""
    module = mlp().eval()
    with torch.no_grad():
        module.router.weight.zero_()
        module.router.weight[:, :4] = 50 * torch.eye(4)
        module.router.bias.zero_()
        even = torch.cat([torch.eye(4), torch.zeros(4, 4)], dim=1)
        torch.testing.assert_close(module(even)[1], torch.tensor(1.0))
        torch.testing.assert_close(module(even[:1].expand(7, 8))[1], torch.tensor(4.0))


def test_gate_loss_balances_the_experts() -> None:
    """Training on the gate loss alone moves the router until no expert takes nearly everything."""
    model, x = fusion("switchgate", 3), tokens(3, 32)
    router = model.layers[0].mlp.router
    with torch.no_grad():
        router.bias[0] += 2.0
    before = model(x).gate_loss.item()
    optimizer = torch.optim.SGD(router.parameters(), lr=1.0)
    for _ in range(30):
        optimizer.zero_grad()
        model(x).gate_loss.backward()
        optimizer.step()
    assert before > 2.0
    assert model(x).gate_loss.item() < 1.2


def test_gate_loss_is_the_sum_over_sparse_layers() -> None:
    """The gate loss adds up every sparse layer's own loss."""
    model, x = fusion("switchgate", 2, num_layers=3).eval(), tokens(2, 16)
    with torch.no_grad():
        x_BTD, first = model.layers[0](x.flatten(1, 2) + model.position)
        _, second = model.layers[2](model.layers[1](x_BTD))
        torch.testing.assert_close(model(x).gate_loss, first + second)


def test_jitter_is_for_training_only() -> None:
    """Router noise changes training answers and leaves evaluation alone."""
    model, x = fusion("switchgate", 2, {"jitter": 5.0}, dropout=0.0), tokens(2, 16)
    with torch.no_grad():
        assert not torch.equal(model.train()(x).logits_BC, model(x).logits_BC)
        assert torch.equal(model.eval()(x).logits_BC, model(x).logits_BC)


def test_released_residual_loses_the_input() -> None:
    """With zero attention weights the released block forgets its input, the default one does not."""
    for residual, spread in (("released", False), ("input", True)):
        model = fusion("switchgate", 2, {"residual": residual}, num_layers=1).eval()
        with torch.no_grad():
            for parameter in model.layers[0].attention.parameters():
                parameter.zero_()
            logits = model(tokens(2, 8)).logits_BC
        assert spread is bool((logits.std(dim=0) > 1e-6).all())


def test_exports() -> None:
    """The ONNX graph answers like torch, with the batch free and no operator that cannot be served."""
    assert_exports(fusion("switchgate", 3))
