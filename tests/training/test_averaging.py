import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from training.averaging import WeightAverage

DECAY = 0.9


def growing(averages, currents, num_averaged):  # type: ignore[no-untyped-def]
    """The average's rule, for torch's own class."""
    updates = float(num_averaged)
    with torch.no_grad():
        torch._foreach_lerp_(averages, currents, 1 - min(DECAY, (1 + updates) / (10 + updates)))


def test_averages_are_those_of_torchs_own_class_bit_for_bit() -> None:
    """Weights by the rule, buffers copied, the number of updates counted, over a model with frozen weights and statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(requires_grad=False)
    ours, theirs = WeightAverage(model, DECAY), AveragedModel(model, multi_avg_fn=growing)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        ours.update_parameters(model)
        theirs.update_parameters(model)
    wanted, found = theirs.state_dict(), ours.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_an_average_goes_on_after_it_was_loaded() -> None:
    """Loaded weights are averaged in place: what is remembered are the model's own tensors."""
    model = nn.Linear(2, 1)
    first = WeightAverage(model, DECAY)
    first.update_parameters(model)
    second = WeightAverage(model, DECAY)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        model.weight.add_(1.0)
    second.update_parameters(model)
    torch.testing.assert_close(second.module.weight, first.module.weight + 1 - 2 / 11)
