"""Keys that are drawn where none is given, and formats that torch.compile finds by name."""

import warnings

import pytest
import torch
from format_checks import PATHS, assert_same, needs_vmap, path
from grid_formats import E3M4, E4M3, normal

from altcore import fake_quantize
from altcore.errors import BadInput
from altcore.numerics import Rule, round_to_grid
from altcore.numerics.codes import encode
from altcore.numerics.functional import quantize
from altcore.numerics.packing import pack

DRAWING = {
    "quantize": lambda x, **key: quantize(x, E3M4, rounding="stochastic", **key)[0],
    "by channel": lambda x, **key: quantize(x, E3M4, "channel", rounding="stochastic", **key)[0],
    "quantize blocks": lambda x, **key: quantize(x, "MXFP4", rounding="stochastic", **key)[0],
    "fake": lambda x, **key: fake_quantize(x, E3M4, rounding="stochastic", **key),
    "fake amax": lambda x, **key: fake_quantize(x, "NF4", "amax", rounding="stochastic", **key),
    "fake blocks": lambda x, **key: fake_quantize(x, "MXFP4", rounding="stochastic", **key),
    "encode": lambda x, **key: encode(x, E3M4, rounding="stochastic", **key).double(),
    "pack": lambda x, **key: pack(x, E3M4, rounding="stochastic", **key).codes.double(),
    "pack blocks": lambda x, **key: pack(x, "MXFP4", rounding="stochastic", **key).codes.double(),
}


@pytest.mark.parametrize("draw", DRAWING.values(), ids=DRAWING)
def test_torch_draws_a_key_where_there_is_none(draw):
    """So that its seed decides; a call with a key stays a function of that, and draws nothing."""
    x = normal(8, 64)
    torch.manual_seed(5)
    key = torch.randint(-(2**63), 2**63 - 1, ())
    after = torch.get_rng_state()
    torch.manual_seed(5)
    first, second = draw(x), None
    assert torch.equal(torch.get_rng_state(), after)
    second = draw(x)
    assert_same(first, draw(x, key=key))
    assert_same(first, draw(x, key=int(key)))
    assert not torch.equal(first, second)
    for way in PATHS:
        torch.manual_seed(5)
        with path(way):
            assert_same(draw(x.clone().requires_grad_()).detach(), first)
            assert_same(draw(x), second)
            state = torch.get_rng_state()
            draw(x, key=1)
            assert torch.equal(torch.get_rng_state(), state)


@needs_vmap
def test_keys_that_are_drawn_under_vmap():
    """As its randomness says: none, one for all, or one for each."""
    x = normal(1, 64).expand(3, 64)
    draw = DRAWING["fake"]
    with pytest.raises(BadInput, match=r"^key: one is drawn under vmap if"):
        torch.func.vmap(draw)(x)
    same = torch.func.vmap(draw, randomness="same")(x)
    assert torch.equal(same[0], same[1])
    different = torch.func.vmap(draw, randomness="different")(x)
    assert len(different.unique(dim=0)) == 3


def test_only_stochastic_rounding_draws():
    state = torch.get_rng_state()
    fake_quantize(normal(4), E3M4)
    encode(normal(4), E3M4)
    quantize(normal(32), "MXFP4")
    assert torch.equal(torch.get_rng_state(), state)
    for wrong in (torch.tensor([1]), [1.0]):
        with pytest.raises(BadInput, match=r"^x: "):
            fake_quantize(wrong, E3M4, rounding="stochastic")
    with pytest.raises(BadInput, match="needs a key"):  # what runs are made of draws no keys
        round_to_grid(normal(3), E4M3, Rule("stochastic"))


@pytest.mark.slow
def test_names_under_torch_compile(tmp_path):
    """Formats by name and by file are part of one graph, without a word; bad ones are BadInput."""
    (tmp_path / "mine.yaml").write_text("{values: [-1.0, 0.5, 2.0]}")
    names = ("E4M3", "E7M0-by-log", "MXFP4", str(tmp_path / "mine.yaml"))

    def total(x):
        return sum(fake_quantize(x, name) for name in names)

    x = normal(2, 32)
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = torch.compile(total, backend="eager", fullgraph=True)(x)
    assert not [w for w in seen if "cache" in str(w.message)]
    assert_same(found, total(x))
    with pytest.raises(BadInput, match="unknown format 'E4MM3'"):
        torch.compile(lambda x: fake_quantize(x, "E4MM3"), backend="eager")(x)


@pytest.mark.parametrize("dynamic", [None, True])
def test_numbers_that_change_under_torch_compile(dynamic):
    """torch.compile takes them for symbols, and with dynamic=True the formats' own numbers, too."""

    def rounded(x, scale):
        values = fake_quantize(x, "NF4", "amax"), fake_quantize(x, "E4M3", scale)
        return torch.cat(values)

    x = torch.linspace(-3, 3, 99)
    torch.compiler.reset()
    compiled = torch.compile(rounded, backend="eager", fullgraph=True, dynamic=dynamic)
    for scale in (0.3, 0.7, 0.9):
        assert torch.equal(compiled(x, scale), rounded(x, scale))
