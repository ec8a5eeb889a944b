import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export.errors import ExportError
from export.released_keys import expert_key
from tests.training.model.fusion_cases import (
    assert_every_parameter_learns,
    assert_exports,
    assert_rows_are_independent,
    fusion,
    num_parameters,
    tokens,
)
from training.model.encoders import PatchProjection
from training.model.fusion.moepp import Experts, MoEPlusPlusFusion, Router, top_two


@pytest.mark.parametrize("compat", ["paper", "released"])
def test_rows_are_independent(compat: str) -> None:
    """No capacity: the answer to a row does not depend on the rows it is batched with."""
    assert_rows_are_independent(fusion("moepp", 3, {"compat": compat}))


@pytest.mark.parametrize(("num_layers", "e", "f"), [(2, 4, 64), (1, 5, 64), (3, 8, 16)])
def test_parameter_count(num_layers: int, e: int, f: int) -> None:
    """Weights number what the layer sizes add up to; the first layer has no gating residual to learn."""
    n, p, d, c = 3, 3, 8, 3
    layer = (4 * d**2 + 5 * d) + (e - 4) * (2 * f * d + f * d) + 2 * (d + 2 * d) + 8 * e * d + 8 * e * e
    wanted = num_layers * layer + (num_layers - 1) * e * e + n * p * d + n * d * c + c
    assert wanted == num_parameters(fusion("moepp", n, {"num_experts": e, "ffn_dim": f}, num_layers=num_layers))


def test_experts_do_what_their_names_say() -> None:
    """FFN experts are SwiGLU networks, constant ones blend in a vector, copy returns its input, zero nothing."""
    torch.manual_seed(0)
    experts, x = Experts(8, 6, 5), torch.randn(7, 8)
    with torch.no_grad():
        *ffn, first, second, copied, zero = experts(x)
        for i, answer in enumerate(ffn):
            a, b = (x @ experts.up.weight_SOI[i].T).chunk(2, dim=-1)
            wanted = (a * torch.sigmoid(a) * b) @ experts.down.weight_SOI[i].T
            torch.testing.assert_close(answer, wanted, rtol=0, atol=1e-6)
        for i, answer in enumerate((first, second)):
            u, v = torch.softmax(x @ experts.proportion.weight_SOI[i].T, dim=-1).T[..., None]
            torch.testing.assert_close(answer, u * x + v * experts.constant[i], rtol=0, atol=1e-6)
    assert len(ffn) == 2
    assert torch.equal(x, copied)
    assert torch.equal(torch.zeros(7, 8), zero)


def test_four_experts_have_no_network() -> None:
    """With 4 experts a token is blended with constants, copied or dropped, and the width of FFN experts means nothing."""
    torch.manual_seed(0)
    experts, x = Experts(8, 4, 5), torch.randn(7, 8)
    assert sorted(experts.state_dict()) == ["constant", "proportion.weight_SOI"]
    first, second, copied, zero = experts(x)
    for i, answer in enumerate((first, second)):
        u, v = torch.softmax(x @ experts.proportion.weight_SOI[i].T, dim=-1).T[..., None]
        torch.testing.assert_close(answer, u * x + v * experts.constant[i], rtol=0, atol=1e-6)
    assert torch.equal(x, copied)
    assert torch.equal(torch.zeros(7, 8), zero)


def test_four_experts_learn() -> None:
    """A training step reaches every weight of a model without FFN experts, and a row's answer is its own."""
    assert_every_parameter_learns(fusion("moepp", 3, {"num_experts": 4}))
    assert_rows_are_independent(fusion("moepp", 3, {"num_experts": 4}))


def test_weights_are_the_renormalised_softmax() -> None:
    """The two best experts share a weight of 1 in proportion to the softmax; a chosen zero expert leaves it all."""
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 1.0, -1.0, 3.0], [-5.0, -5.0, 4.0, 5.0]])
    weights, chosen = top_two(scores)
    p = torch.softmax(scores, dim=-1)
    wanted = torch.zeros(3, 4)
    wanted[0, :2] = p[0, :2] / p[0, :2].sum()
    wanted[1, 1] = wanted[2, 2] = 1.0
    torch.testing.assert_close(weights, wanted)
    assert [row.nonzero().flatten().tolist() for row in chosen] == [[0, 1], [1, 3], [2, 3]]


def test_weights_survive_a_certain_router() -> None:
    """Where the zero expert has all the probability float32 can express, weights are still finite."""
    weights, _ = top_two(torch.tensor([[0.0, -1.0, 500.0]]))
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


def test_copy_adds_its_input_once() -> None:
    """Where all tokens choose copy and zero, a layer adds its normed input once: inputs are not doubled."""
    layer, x = fusion("moepp", 2, num_layers=1).layers[0].eval(), tokens(2, 4).flatten(1, 2)
    with torch.no_grad():
        layer.attention.projection.weight.zero_()
        layer.attention.projection.bias.zero_()
        layer.mlp_norm.weight.zero_()
        layer.mlp_norm.bias.fill_(0.5)  # every token looks the same to the router, which has no bias
        layer.router.score[0].weight.fill_(1.0)
        layer.router.score[2].weight.copy_(torch.tensor([0.0] * 6 + [1.0] * 2)[:, None].expand(-1, 64))
        torch.testing.assert_close(layer(x, None)[0], x + 0.5)


def test_scores_follow_the_layer_before() -> None:
    """A router adds a linear map of the previous scores; the first one has none."""
    torch.manual_seed(0)
    router, x, previous = Router(8, 5, is_first=False), torch.randn(3, 8), torch.randn(3, 5)
    with torch.no_grad():
        wanted = router.score(x) + previous @ router.carry.weight.T
        torch.testing.assert_close(router(x, previous), wanted)
    assert Router(8, 5, is_first=True).carry is None


def test_layers_build_on_each_other() -> None:
    """A change in the first layer's FFN experts changes the answer."""
    model, x = fusion("moepp", 2).eval(), tokens(2, 8)
    with torch.no_grad():
        before = model(x).logits_BC
        model.layers[0].experts.up.weight_SOI.mul_(3.0)
        assert not torch.allclose(before, model(x).logits_BC)


def test_loss_by_hand() -> None:
    """The loss weighs the load of FFN experts by 1 and that of the four others by tau."""
    torch.manual_seed(0)
    layer = fusion("moepp", 2, {"num_experts": 6, "tau": 0.25}, num_layers=1).layers[0].eval()
    with torch.no_grad():
        _, scores, loss = layer(torch.randn(3, 6, 8), None)
    chosen = torch.zeros(18, 6).scatter_(1, scores.topk(2, dim=1).indices, 1.0)
    load = chosen.mean(dim=0) * torch.softmax(scores, dim=1).mean(dim=0)
    torch.testing.assert_close(loss, load[:2].sum() + 0.25 * load[2:].sum())


def test_gate_loss_is_the_sum_over_layers() -> None:
    """The gate loss adds up every layer's own loss."""
    model, x = fusion("moepp", 2).eval(), tokens(2, 16)
    with torch.no_grad():
        x_BTD, scores, first = model.layers[0](x.flatten(1, 2) + model.position, None)
        *_, second = model.layers[1](x_BTD, scores)
        torch.testing.assert_close(model(x).gate_loss, first + second)


def test_gate_loss_balances_the_experts() -> None:
    """Training on the gate loss alone moves every router away from one that prefers two experts."""
    model, x = fusion("moepp", 3, num_layers=2, dropout=0.0), tokens(3, 32)
    routers = [layer.router for layer in model.layers]
    weights = [p for router in routers for p in router.parameters()]
    start = [p.detach().clone() for p in weights]
    before = model(x).gate_loss.item()
    optimizer = torch.optim.SGD(weights, lr=1.0)
    for _ in range(30):
        optimizer.zero_grad()
        model(x).gate_loss.backward()
        optimizer.step()
    assert model(x).gate_loss.item() < before
    assert all(not torch.equal(old, new) for old, new in zip(start, weights, strict=True))


def test_smaller_tau_prefers_zero_computation() -> None:
    """After training on the gate loss alone, a smaller tau has sent more tokens to the experts that compute nothing."""
    shares = []
    for tau in (0.1, 1.0):
        model, x = fusion("moepp", 3, {"tau": tau}, num_layers=1, dropout=0.0), tokens(3, 32)
        layer = model.layers[0]
        optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            model(x).gate_loss.backward()
            optimizer.step()
        _, chosen = top_two(layer(x.flatten(1, 2), None)[1])
        shares.append(chosen.float().mean(dim=0)[-4:].sum().item())
    assert shares[0] > shares[1]


@pytest.mark.parametrize("num_experts", [4, 8])
def test_exports(num_experts: int) -> None:
    """The ONNX graph answers like torch, with the batch free and no operator that cannot be served."""
    assert_exports(fusion("moepp", 3, {"num_experts": num_experts}))


def test_released_forward_is_one_attention_block() -> None:
    """compat "released" is x + 2 attention(norm(x)) of the last layer, whatever the layers before hold."""
    model, x = fusion("moepp", 2, {"compat": "released"}).eval(), tokens(2, 4)
    with torch.no_grad():
        before = model(x)
        for parameter in model.layers[0].parameters():
            parameter.add_(1.0)
        flat = x.flatten(1, 2) + model.position
        mixed = flat + 2 * model.layers[-1].attention(model.layers[-1].attention_norm(flat))
        wanted = model.head(mixed.unflatten(1, (2, -1)).mean(dim=2).flatten(1))
        torch.testing.assert_close(model(x).logits_BC, wanted, rtol=0, atol=1e-6)
        assert torch.equal(before.logits_BC, model(x).logits_BC)
    assert before.gate_loss.item() == 0.0


def released_expert(state: dict[str, torch.Tensor], position: int, config: dict[str, int]) -> MoEPlusPlusFusion:
    """One expert of a released checkpoint in our module, loaded strictly."""
    prefix = f"interaction_experts.{position}.fusion_model."
    weights = {}
    for key, tensor in state.items():
        if key.startswith(prefix) and (name := expert_key("moepp", key.removeprefix(prefix))) is not None:
            weights[name] = tensor.squeeze(0) if name == "position" else tensor
    model = MoEPlusPlusFusion(
        config=MoEPlusPlusFusion.Config(compat="released"),
        num_modalities=len(config["modalities"]),
        num_patches=config["num_patches"],
        hidden_dim=config["hidden_dim"],
        num_layers=config["num_layers_fus"],
        num_heads=config["num_heads"],
        num_outputs=config["num_classes"],
        dropout=0.5,
    )
    model.load_state_dict(weights)
    return model.eval()


def test_golden_outputs_of_the_released_code(shared_data: Path) -> None:
    """A released MoE++ checkpoint, loaded strictly, gives the released code's expert logits to 1e-5."""
    folder = shared_data / "golden/moepp_mimic"
    checkpoint = torch.load(folder / "checkpoint.pth", weights_only=True)
    config, expected = json.loads((folder / "config.json").read_bytes()), np.load(folder / "expected.npz")
    parts = []
    for modality, num_columns in config["modalities"].items():
        patches = PatchProjection(num_columns, config["num_patches"], config["hidden_dim"])
        patches.load_state_dict(checkpoint["encoder_dict"][modality])
        parts.append(patches(torch.from_numpy(expected[f"input_{modality}"]).float()))
    with torch.no_grad():
        x = torch.stack(parts, dim=1)
        experts = [released_expert(checkpoint["ensemble_model"], i, config) for i in range(len(parts) + 2)]
        found = torch.stack([expert(x).logits_BC for expert in experts], dim=1).numpy()
    np.testing.assert_allclose(found, expected["expert_logits"], rtol=0, atol=1e-5)
    mixed = np.einsum("be,bec->bc", expected["weights"], found)
    np.testing.assert_allclose(mixed, expected["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("pos_embed", "position"),
        ("layers.1.norm1.bias", "layers.1.attention_norm.bias"),
        ("layers.0.attn.kv.weight", "layers.0.attention.key_value.weight"),
        ("classification_head.fc.weight", "head.weight"),
        ("layers.0.norm2.weight", None),
        ("layers.1.mlp.moe.experts.experts.4.constant", None),
    ],
)
def test_released_keys(key: str, name: str | None) -> None:
    """Released names have ours, or None where the tensor has no part in the answer."""
    assert name == expert_key("moepp", key)


def test_unknown_released_key() -> None:
    """A name that no released MoE++ expert has is an error that quotes it."""
    with pytest.raises(ExportError, match=r"network\.0\.fc\.bias is not one of"):
        expert_key("moepp", "network.0.fc.bias")
