"""The diagnostic ``attention-logits``: logits and entropies that are known, and an equal run."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import weights_sha256
from helpers_diagnostics import NoHostRead
from torch import nn
from torch.nn import functional

import altcore
from altcore.config import TrainConfig
from altcore.engine import Run, Step
from altcore_diagnostics import attention_logits
from altcore_diagnostics.attention_logits import AttentionLogits, attention_layers


class OwnAttention(nn.Module):
    """Attention of query, key and value that the test gives, by torch's call or by hand."""

    def __init__(self, by_hand=False, **options):
        super().__init__()
        self.by_hand, self.options = by_hand, options
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, qkv):
        q, k, v = qkv
        if not self.by_hand:
            return functional.scaled_dot_product_attention(q, k, v, **self.options) + self.weight
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if self.options.get("is_causal"):
            hidden = torch.full(scores.shape[-2:], torch.finfo(scores.dtype).min).triu(1)
            scores = scores + hidden
        return functional.softmax(scores, dim=-1) @ v + self.weight


def run_of(model, recipe=None):
    """A Run of a model of the test's own."""
    return Run(
        config=TrainConfig(device="cpu"),
        directory=None,
        device=torch.device("cpu"),
        workload=SimpleNamespace(model=model, loss=lambda model, batch: model(batch).sum()),
        model=model,
        optimizer=None,
        quantization=altcore.quantize_model(model, recipe or {}),
        on_event=None,
    )


def measure(model, batch, recipe=None):
    """The measures of a batch, as numbers."""
    run = run_of(model, recipe)
    with NoHostRead():
        found = AttentionLogits().post_backward(run, Step(1, batch=batch))
    run.quantization.remove()
    return None if found is None else {key: float(value) for key, value in found.items()}


def qkv(batch=2, heads=3, length=5, width=4, seed=0):
    """Query, key and value of a call."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, length, width, generator=generator) for _ in range(3))


@pytest.mark.parametrize("by_hand", [False, True])
def test_uniform_attention_has_the_entropy_of_its_length(by_hand):
    """Equal keys: every position gets 1/n, and every logit is the same."""
    q, k, v = qkv(length=6)
    k = torch.ones_like(k)
    found = measure(nn.Sequential(OwnAttention(by_hand)), (q, k, v))
    assert found["entropy/0"] == found["entropy_mean"] == pytest.approx(math.log(6))
    assert found["entropy_share/0"] == found["entropy_share_min"] == pytest.approx(1.0)
    assert found["max_logit/0"] == pytest.approx(float(q.sum(-1).abs().max() / 2))


@pytest.mark.parametrize("by_hand", [False, True])
def test_uniform_causal_attention(by_hand):
    """Query i sees i positions: the mean of ln i; the share is 1, the first query left out."""
    q, k, v = qkv(length=4)
    k = torch.ones_like(k)
    found = measure(nn.Sequential(OwnAttention(by_hand, is_causal=True)), (q, k, v))
    assert found["entropy/0"] == pytest.approx(sum(map(math.log, (1, 2, 3, 4))) / 4)
    assert found["entropy_share/0"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "softmax",
    [torch.softmax, torch.special.softmax, functional.softmax],
    ids=lambda f: f.__module__,
)
def test_softmax_by_any_of_its_names(softmax):
    class NamedAttention(nn.Module):
        def forward(self, x):
            return softmax(x, -1)

    found = measure(nn.Sequential(NamedAttention(), nn.Linear(3, 1)), torch.zeros(2, 3))
    assert found["entropy/0"] == pytest.approx(math.log(3))


def test_a_logit_by_hand_and_attention_on_one_position():
    """One logit of 60, scaled by 1/2, against 0: all probability is there."""
    q = torch.tensor([[[[60.0, 0.0, 0.0, 0.0]]]])
    k = torch.tensor([[[[-1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]]])
    found = measure(nn.Sequential(OwnAttention()), (q, k, torch.ones(1, 1, 2, 4)))
    assert found["max_logit/0"] == found["max_logit"] == 30.0
    assert found["entropy/0"] == pytest.approx(0.0, abs=1e-6)
    assert found["entropy_share/0"] == pytest.approx(0.0, abs=1e-6)


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()},
    "float": {"attn_mask": torch.full((5, 5), -math.inf).triu(1) + 0.5},
    "lowest": {"attn_mask": torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)},
    "a billion": {"attn_mask": torch.full((5, 5), -1e9).triu(1)},
    "scale": {"scale": 2.0},
    "dropout": {"dropout_p": 0.5},
}


@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_against_the_definition(options):
    """Logits, probabilities and entropies, row by row in Python."""
    q, k, v = qkv()
    found = measure(nn.Sequential(OwnAttention(**options)), (q, k, v))
    mask = options.get("attn_mask", torch.ones(5, 5, dtype=torch.bool))
    mask = mask.tril() if options.get("is_causal") else mask
    largest, entropies, shares = 0.0, [], []
    scores = q @ k.mT * options.get("scale", 0.5)
    for block in scores.flatten(0, 1):
        for i, row in enumerate(block):
            added = [0.0 if m is True else m for m in mask[i].tolist()]
            logits = [
                x + a for x, a in zip(row.tolist(), added, strict=True) if a is not False and a > -9
            ]
            total = sum(map(math.exp, logits))
            p = [math.exp(x) / total for x in logits]
            entropies.append(-sum(x * math.log(x) for x in p))
            if len(p) > 1:
                shares.append(entropies[-1] / math.log(len(p)))
            largest = max(largest, *map(abs, logits))
    assert found["max_logit/0"] == pytest.approx(largest, rel=1e-5)
    assert found["entropy/0"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    assert found["entropy_share/0"] == pytest.approx(sum(shares) / len(shares), rel=1e-5)


def test_fewer_keys_than_queries():
    """Grouped heads: each key serves two queries."""
    q, k, v = qkv(heads=4)
    grouped = measure(nn.Sequential(OwnAttention(enable_gqa=True)), (q, k[:, :1], v[:, :1]))
    model = nn.Sequential(OwnAttention())
    expected = measure(model, (q, *(t[:, :1].expand(-1, 4, -1, -1) for t in (k, v))))
    assert grouped == pytest.approx(expected)


def test_several_calls_and_layers():
    """A layer's calls are one sample; aggregates are over layers."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = OwnAttention(), OwnAttention()

        def forward(self, batch):
            a, b = batch
            return (self.first(a) + self.first(b)).sum() + self.second(b)

    a, b = qkv(), qkv(seed=1)
    found = measure(Twice(), (a, b))
    apart = [measure(nn.Sequential(OwnAttention()), x) for x in (a, b)]
    assert found["max_logit/first"] == max(x["max_logit"] for x in apart) == found["max_logit"]
    mean = sum(x["entropy/0"] for x in apart) / 2
    assert found["entropy/first"] == pytest.approx(mean)
    assert found["entropy/second"] == pytest.approx(apart[1]["entropy/0"])
    assert found["entropy_mean"] == pytest.approx((mean + apart[1]["entropy/0"]) / 2)


def test_quantized_attention_is_seen_too():
    """Its logits are those of the rounded query and key."""
    q, k, v = qkv()
    recipe = {"layers": {"0": {"attention": {"format": "E2M1", "scaling": "none"}}}}
    found = measure(nn.Sequential(OwnAttention()), (q, k, v), recipe)
    on_grid = [altcore.fake_quantize(t, "E2M1") for t in (q, k)]
    expected = float((on_grid[0] @ on_grid[1].mT / 2).abs().max())
    assert found["max_logit"] == pytest.approx(expected)
    assert found["max_logit"] != measure(nn.Sequential(OwnAttention()), (q, k, v))["max_logit"]


def test_a_query_that_sees_nothing_is_left_out():
    """A row that a mask hides altogether has no entropy."""
    q, k, v = qkv(length=3)
    mask = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])
    found = measure(nn.Sequential(OwnAttention(attn_mask=mask)), (q, torch.ones_like(k), v))
    assert found["entropy/0"] == pytest.approx(math.log(3) / 2)
    assert found["entropy_share/0"] == pytest.approx(1.0)


def test_what_counts_as_attention():
    """The innermost module that is called so; softmax elsewhere or over another axis is not."""

    class SelfAttn(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = OwnAttention()

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = OwnAttention()

        def forward(self, qkv):
            q = qkv[0]
            return self.attn(qkv) + q.softmax(-1) + functional.scaled_dot_product_attention(q, q, q)

    assert list(attention_layers(nn.Sequential(SelfAttn(), nn.Linear(2, 2)))) == ["0.core"]
    batch = qkv()
    found = measure(Other(), batch)
    assert found["entropy/attn"] == measure(nn.Sequential(OwnAttention()), batch)["entropy/0"]
    assert set(found) == {
        *("max_logit", "entropy_mean", "entropy_share_mean", "entropy_share_min"),
        *(f"{key}/attn" for key in ("max_logit", "entropy", "entropy_share")),
    }


def test_without_attention_there_is_no_measure():
    """Neither of a model without such a layer, nor of one that computes it otherwise."""

    class Attention(nn.Linear):
        pass

    assert measure(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)) is None
    assert measure(nn.Sequential(Attention(2, 2)), torch.ones(1, 2)) is None


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_in_a_run(start, compiled):
    """It is measured when due, and changes no number, dropout and stochastic rounding included."""
    recipe = {
        "weight": {"format": "E4M3", "scaling": "delayed"},
        "activation": {"format": "E4M3", "rounding": "stochastic"},
        "layers": {"<attention>": {"attention": {"format": "E4M3", "rounding": "stochastic"}}},
    }
    keys = {"recipe": recipe, "gpt__dropout": 0.2, "compile": compiled}
    plain = start(name="plain", **keys)
    due = {"attention-logits.interval": 2}
    measured = start(["attention-logits"], name="measured", **keys, **due)
    assert weights_sha256(measured.run_directory) == weights_sha256(plain.run_directory)
    assert [line["step"] for line in measured.diagnostics_history] == [1, 2]
    for a, b in zip(plain.metrics_history, measured.metrics_history, strict=True):
        assert a == {k: v for k, v in b.items() if not k.startswith("attention-logits/")}
    line = measured.diagnostics_history[0]
    layer = "transformer.h.0.attn"
    assert line[f"attention-logits/max_logit/{layer}"] > 0
    # Untrained attention is nearly uniform.
    assert 0.9 < line[f"attention-logits/entropy_share/{layer}"] <= 1 + 1e-6


def test_it_makes_no_pass_of_its_own(monkeypatch, start):
    """Of two micro-batches it tells what was seen in the last."""
    seen, own = [], attention_logits.Calls

    def counted():
        seen.append(own())
        return seen[-1]

    monkeypatch.setattr(attention_logits, "Calls", counted)
    monkeypatch.setattr(attention_logits, "quantized", None)  # what a pass would begin with
    due = {"attention-logits.interval": 2, "gradient_accumulation_steps": 2}
    result = start(["attention-logits"], max_steps=2, **due)
    assert result.summary["degraded"] == []
    assert len(seen) == 2 * 2  # on the first step, and on the second
    *_, line = result.diagnostics_history
    expected = float(seen[-1].measures()["max_logit"])
    assert line["attention-logits/max_logit"] == pytest.approx(expected)
    assert expected != float(seen[2].measures()["max_logit"])
