"""Whole models train under a recipe without a line changed in them.

GPT-2, BERT and Llama of the transformers library with random weights, and a ResNet.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from altcore import quantize_model

transformers = pytest.importorskip("transformers")

WIDTH, HEADS, LAYERS, WORDS = 32, 2, 2, 61


def gpt2():
    """GPT-2: Hugging Face's Conv1D, whose weight is transposed, and a tied output head."""
    config = transformers.GPT2Config(
        n_embd=WIDTH,
        n_head=HEADS,
        n_layer=LAYERS,
        vocab_size=WORDS,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama():
    """Llama: no biases, grouped queries, rotary positions, a head of its own."""
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        num_hidden_layers=LAYERS,
        vocab_size=WORDS,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def bert():
    """BERT: an encoder, whose tied head has a bias."""
    config = transformers.BertConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        vocab_size=WORDS,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForMaskedLM(config)


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.around = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x):
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.around(x)).relu()


def resnet():
    """A small ResNet (He et al. 2015)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        Residual(8, 8, 1),
        Residual(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def batch_of(model):
    """Inputs and labels that a model can learn by heart."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, nn.Sequential):
        return torch.randn(16, 3, 8, 8, generator=generator), torch.arange(16) % 10
    words = torch.randint(WORDS, (4, 16), generator=generator)
    return words, words


def loss_of(model, batch):
    """The loss of a batch, as users of each library compute it."""
    x, y = batch
    if isinstance(model, nn.Sequential):
        return functional.cross_entropy(model(x), y)
    return model(input_ids=x, labels=y).loss


def train(model, quantization, steps=30):
    """A plain training loop; the losses."""
    batch = batch_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantization.store(optimizer)
        losses.append(float(loss.detach()))
    return losses


MODELS = [gpt2, llama, bert, resnet]
RECIPES = {
    "E4M3": "E4M3",
    "mxfp8": "mxfp8",
    "stored": {
        "weight": "E4M3",
        "activation": "E4M3",
        "gradient": "E5M2",
        "stored_weight": {"format": "E5M10", "rounding": "stochastic"},
    },
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("build", MODELS)
def test_it_trains_and_comes_back(build, recipe):
    """The loss falls as without quantization, and remove() leaves the model as it was made."""
    torch.manual_seed(0)
    model = build().train()
    keys, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    plain = train(copy.deepcopy(model), quantize_model(copy.deepcopy(model), {}))
    with quantize_model(model, RECIPES[recipe]) as q:
        assert q.coverage().parameter_share > 0.4
        losses = train(model, q)
        assert list(model.state_dict()) == keys
        assert [type(m) for m in model.modules()] == kinds
    assert losses != plain
    assert losses[-1] < plain[0] - 0.6 * (plain[0] - plain[-1])
    assert all("forward" not in vars(m) for m in model.modules())


def test_products_of_a_transposed_weight():
    """Hugging Face's Conv1D under a recipe is the Linear with its weight turned round."""
    torch.manual_seed(0)
    conv = transformers.pytorch_utils.Conv1D(24, 16)
    linear = nn.Linear(16, 24)
    linear.weight.data = conv.weight.data.t().clone()
    linear.bias.data = conv.bias.data.clone()
    x, dy = torch.randn(5, 16), torch.randn(5, 24)
    found = []
    for layer in (conv, linear):
        recipe = {"weight": "MXFP8-E4M3", "activation": "E4M3", "gradient": "E5M2"}
        with quantize_model(nn.Sequential(layer), recipe) as q:
            q.begin_step(1, tracking=True)
            a = x.clone().requires_grad_()
            y = layer(a)
            y.backward(dy)
            with torch.no_grad():
                layer.weight.mul_(1 + 1e-6)
            q.measure_views()
            grid = q.grid_of(layer.weight)
        turned = layer is conv
        found.append(
            (
                y.detach(),
                a.grad,
                layer.weight.grad.t() if turned else layer.weight.grad,
                grid.scale.t() if turned else grid.scale,
                q.counters.view_moves,
            )
        )
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_tied_weights_stay_tied():
    """The embedding and the output head share one stored parameter on one grid."""
    torch.manual_seed(0)
    model = gpt2().train()
    with quantize_model(model, {"stored_weight": "E4M3"}) as q:
        train(model, q, steps=3)
        assert model.lm_head.weight is model.transformer.wte.weight
        names = [n for n in q.stored if "wte" in n or "lm_head" in n]
        assert len(names) == 1


ATTENTION = {"attention": "E3M4"}


@pytest.mark.parametrize("build", [gpt2, llama, bert])
def test_attention_operands(build):
    """The operands of attention's two products can be rounded, and the model still trains."""
    torch.manual_seed(0)
    model = build().train()
    batch = batch_of(model)
    before = float(loss_of(model, batch).detach())
    with quantize_model(model, ATTENTION) as q:
        rounded = float(loss_of(model, batch).detach())
        operands = {r["operand"] for r in q.stats() if r["elements"]}
        losses = train(model, q)
    assert rounded != before
    assert rounded == pytest.approx(before, rel=1e-2)
    assert operands == {f"attention@{o}" for o in ("query", "key", "probability", "value")}
    assert losses[-1] < 0.8 * losses[0]
    assert float(loss_of(copy.deepcopy(model), batch).detach()) > 0


def test_attention_that_multiplies_by_hand():
    """Its products are met too: the same operands, so that only the order of sums differs."""
    torch.manual_seed(0)
    model, losses = gpt2(), []
    for kind in ("sdpa", "eager"):
        model.set_attn_implementation(kind)
        with quantize_model(model, {"attention": "E4M3"}) as q:
            losses.append(float(loss_of(model, batch_of(model)).detach()))
            operands = {r["operand"] for r in q.stats() if r["elements"]}
        assert operands == {f"attention@{o}" for o in ("query", "key", "probability", "value")}
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_attention_that_is_out_of_reach_is_told():
    """A module that has the name and no product cannot have the role; the others do."""

    class SelfAttention(nn.Module):
        def forward(self, x):
            return x

    model, x = nn.Sequential(SelfAttention(), nn.Linear(4, 4)), torch.randn(2, 4)
    told = pytest.warns(RuntimeWarning, match=r"layer 0 \(SelfAttention\) computes no attention")
    with quantize_model(model, {"attention": "E4M3"}) as q:
        with told:
            model(x)
        assert q.coverage().rows[0].why_not == "it computes no attention that can be seen"
