"""The grid that each weight is on, or is seen on."""

import copy

import pytest
import torch
from helpers_quantization import Looped, Weird, quantize_in_float32
from torch import nn

import altcore
from altcore import get_format, quantize_model


class Turned(nn.Module):
    """Multiplies by its weight from the right."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return x @ self.w


def test_the_grid_of_a_weight_is_its_own():
    """Of experts seen one by one, and of weights computed from others, there is none to tell."""
    model = nn.Sequential(Looped(), nn.Linear(6, 4), Weird(4, 4), Turned())
    fine = {"format": "E3M4", "scaling": "channel"}
    with quantize_in_float32(model, {"weight": fine}, head=None) as q:
        q.begin_step(1, tracking=True)
        model(torch.randn(5, 4)).sum().backward()
        grids = [q.grid_of(p) for p in model.parameters() if p.dim() > 1]
        assert [grid is None for grid in grids] == [True, False, True, False]
        for grid, w in zip(grids[1::2], (model[1].weight, model[3].w), strict=True):
            sums = [0] if w is model[3].w else [1]  # the axis that the product sums over
            largest = w.detach().abs().amax(sums, keepdim=True)
            torch.testing.assert_close(grid.scale, largest / altcore.get_format("E3M4").max)
        q.measure_views()
        assert q.counters.view_layers == ["1", "3"]
        assert not q.counters.view_moves.any()


@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("fmt", ["MXFP8-E4M3", "NVFP4", "NVFP4-square"])
def test_views_and_grids_of_block_formats(fmt, is_recorded, draw_uneven):
    """A weight's grid is that of its elements, each scaled, on every step.

    On recorded ones a view's movement is counted.
    """
    layer = nn.Linear(64, 32, bias=False)
    layer.weight.data = draw_uneven(32, 64)
    with quantize_model(nn.Sequential(layer), {"layers": {"0": {"weight": fmt}}}) as q:
        q.begin_step(1, tracking=is_recorded)
        seen = layer(torch.eye(64)).detach().T
        with torch.no_grad():
            layer.weight.add_(1e-6 * layer.weight)
        q.measure_views()
        grid = q.grid_of(layer.weight)
    if is_recorded:
        moved, stalled = q.counters.view_moves.sum(0).tolist()
        assert moved > 1000
        assert stalled > 0.99 * moved
    assert grid.format == get_format(fmt).element
    places = seen / grid.scale
    values = torch.tensor(grid.format.values)
    nearest = (places[..., None] - values).abs().amin(-1)
    assert float(nearest[~places.isnan()].max()) < 1e-5


def test_a_weight_that_was_replaced_is_found_again():
    """Its grid and its optimizer state's cast are those of its place in the model."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    q = altcore.quantize_model(model, {"weight": "E4M3", "optimizer_state": "E4M3"})
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    before = optimizer.state[model[0].weight]["exp_avg"].clone()
    q.store(optimizer)
    assert q.grid_of(model[0].weight).format.name == "E4M3"
    assert q.grid_of(model[0].bias) is None
    assert list(q.weights.parameters.values()) == [model[0].weight, model[1].weight]
    assert not torch.equal(optimizer.state[model[0].weight]["exp_avg"], before)
    twin = copy.deepcopy(q)
    assert twin.grid_of(twin.model[1].weight).format.name == "E4M3"
    assert twin.grid_of(model[1].weight) is None
    q.remove()
    kept = optimizer.state[model[0].weight]["exp_avg"].add_(0.1234567).clone()
    q.store(optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], kept)
    assert q.grid_of(model[0].weight) is None
