"""A patched forward runs, is copied as the plain one, and is never traced."""

import copy
import functools
import io
import subprocess
import sys

import pytest
import torch
from helpers_quantization import (
    E2M1_EVERYWHERE,
    E2M1_OPERANDS,
    E3M4_OPERANDS,
    Lora,
    quantize_in_float32,
    rounded,
)
from torch import nn
from torch.nn import functional

from altcore import BadInput, quantize_model


def patched(module, log):
    """What accelerate's hooks do: a forward on the instance, around the one before."""
    before = module.forward

    @functools.wraps(before)
    def forward(*args, **kwargs):
        log.append(1)
        return before(*args, **kwargs) * 2

    module.forward = forward
    return forward


def is_plain(module):
    """Whether a Linear computes what torch's function does."""
    x = torch.randn(5, module.in_features)
    return torch.equal(module(x), functional.linear(x, module.weight, module.bias))


def encoder():
    """Two of torch's encoder layers, which fuse themselves for inference."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_patched_forward_runs(when):
    """And stays when the quantization is taken back."""
    model, x, log = nn.Sequential(nn.Linear(4, 4, bias=False)), torch.randn(3, 4), []
    layer = model[0]
    expected = 2 * functional.linear(rounded(x), rounded(layer.weight))
    forward = patched(layer, log) if when == "before" else None
    q = quantize_in_float32(model, E3M4_OPERANDS)
    forward = forward or patched(layer, log)
    torch.testing.assert_close(model(x), expected)
    assert log == [1]
    q.remove()
    assert layer.forward is forward
    assert torch.equal(model(x), 2 * functional.linear(x, layer.weight))
    with quantize_in_float32(model, E3M4_OPERANDS):
        torch.testing.assert_close(model(x), expected)


def test_a_model_patched_in_torch_itself_is_met(monkeypatch):
    """Some libraries replace the forward of torch's class: it runs."""
    monkeypatch.setattr(nn.Linear, "forward", lambda m, x: functional.linear(x, m.weight) + 1)
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    with quantize_in_float32(model, E3M4_OPERANDS):
        y = model(x)
    torch.testing.assert_close(y, functional.linear(rounded(x), rounded(model[0].weight)) + 1)


@pytest.mark.filterwarnings("ignore")
def test_tracing_and_exporting_are_refused(tmp_path):
    """A traced model would have today's roundings in it as constants."""
    model, x = nn.Sequential(nn.Linear(4, 4), Lora(4)), torch.randn(2, 4)
    with quantize_in_float32(model, E3M4_OPERANDS, head=None) as q:
        for export in (
            lambda: torch.jit.trace(model, x),
            lambda: torch.export.export(model, (x,)),
            lambda: torch.export.export(model, (x,), strict=True),
            lambda: torch.jit.script(model),
            lambda: torch.onnx.export(model, (x,), str(tmp_path / "x.onnx"), dynamo=False),
            lambda: torch.fx.symbolic_trace(nn.Sequential(q.model)),
        ):
            with pytest.raises(Exception, match=r"cannot be traced, scripted or exported"):
                export()
    assert torch.jit.trace(model, x)(x).shape == (2, 4)


def test_a_deep_copy_has_its_own_weights():
    """It is a plain model: neither the original's weights nor its quantization act in it."""
    model = nn.Sequential(nn.Linear(4, 4))
    with quantize_model(model, E2M1_EVERYWHERE):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin[0].weight.mul_(3)
        assert is_plain(twin[0])
        assert not is_plain(model[0])
        with quantize_model(twin, E2M1_EVERYWHERE):
            assert not is_plain(twin[0])
        assert is_plain(twin[0])


def test_a_quantized_model_can_be_pickled():
    """What comes back is the plain model with the same weights."""
    model = nn.Sequential(nn.Linear(4, 4))
    with quantize_model(model, E2M1_EVERYWHERE):
        file = io.BytesIO()
        torch.save(model, file)
    file.seek(0)
    back = torch.load(file, weights_only=False)
    assert is_plain(back[0])
    assert torch.equal(back[0].weight, model[0].weight)


def test_a_layer_is_quantized_once():
    """Two at once would undo each other in the wrong order; layers apart do not meet."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with quantize_model(model, {"layers": {"0": E2M1_OPERANDS}}):
        with pytest.raises(BadInput, match=r"^model: layer 0 is Linear: it is quantized already"):
            quantize_model(model, E2M1_EVERYWHERE)
        with quantize_model(model, {"layers": {"1": E2M1_OPERANDS}}):
            assert not is_plain(model[1])
        assert is_plain(model[1])
        assert not is_plain(model[0])
    assert is_plain(model[0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("recipe", [E2M1_OPERANDS, {"layers": {"<any>": {"weight": "E2M1"}}}])
@pytest.mark.parametrize("padded", [False, True])
def test_torchs_encoder_is_quantized_in_evaluation_too(recipe, padded):
    """Its fused kernel would pass by the layers; afterwards it may be taken again."""
    model, x = encoder().eval(), torch.randn(2, 5, 8)
    padding = torch.tensor([[0, 0, 0, 1, 1], [0] * 5]).bool() if padded else None
    with torch.no_grad():
        plain = model(x, src_key_padding_mask=padding)
    with quantize_model(model, recipe):
        expected = model(x, src_key_padding_mask=padding).detach()
        with torch.no_grad():
            found = model(x, src_key_padding_mask=padding)
    valid = slice(None) if padding is None else ~padding
    torch.testing.assert_close(found[valid], expected[valid])
    assert not torch.allclose(found[valid], plain[valid], atol=1e-3)
    assert model.use_nested_tensor
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_model_that_another_copy_of_altcore_quantized_is_named_as_one(tmp_path):
    """Its scales would be in no checkpoint, and its values rounded twice."""
    code = """
import sys
import torch
import altcore
E4M3 = altcore.float_format("MINE", 4, 3)
model = torch.nn.Sequential(torch.nn.Linear(2, 2))
optimizer = torch.optim.SGD(model.parameters())
q = altcore.quantize_model(model, {"weight": E4M3})
for name in [name for name in sys.modules if name.split(".")[0].startswith("altcore")]:
    del sys.modules[name]
import altcore
E4M3 = altcore.float_format("MINE", 4, 3)
for call in (
    lambda: altcore.save_checkpoint(sys.argv[1], model, optimizer, None, 1),
    lambda: altcore.save_checkpoint(sys.argv[1], model, optimizer, q, 1),
    lambda: altcore.quantize_model(model, {"weight": E4M3}),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "is of another copy of altcore, which this process imported before this" in line
    assert not (tmp_path / "c").exists()
