"""Scales of all ranks' samples."""

import pytest
import torch
from torch import nn

from altcore import quantize_model
from altcore.errors import BadInput
from altcore.quantization import amax_histories, share_amax


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def twice(seen):
    def largest(amax):
        seen.append(tuple(amax.shape))
        return 2 * amax

    return largest


def passes(net):
    net(torch.randn(6, 4)).sum().backward()


@pytest.mark.parametrize(
    ("cast", "shared"),
    [
        ({"activation": "E4M3", "gradient": "E5M2", "weight": "E4M3"}, 4),
        ({"activation": {"format": "E4M3", "scaling": "delayed"}}, 2),
        # A sample's own scale stays its own; a channel's over all samples does not.
        ({"activation@fwd": {"format": "E4M3", "scaling": "channel"}}, 0),
        ({"activation@wgrad": {"format": "E4M3", "scaling": "channel"}}, 2),
        ({"activation": "MXFP8-E4M3"}, 0),
        ({"weight": "E4M3", "weight_gradient": "E5M2"}, 0),
    ],
)
def test_what_is_made_of_samples_is_shared(cast, shared):
    seen = []
    net = model()
    with quantize_model(net, cast, head=None) as q:
        share_amax(q, twice(seen))
        net.eval()
        passes(net)
        assert seen == [], "not in an evaluation: each rank looks at whole batches"
        net.train()
        with q.frozen():
            passes(net)
        assert seen == []
        passes(net)
    assert len(seen) == shared


def test_the_shared_amax_makes_the_scale():
    scales = []
    for share in (False, True):
        net = model()
        with quantize_model(net, {"activation": "E4M3"}, head=None) as q:
            if share:
                share_amax(q, twice([]))
            torch.manual_seed(1)
            passes(net)
            scales.append(q.quantizers[0].last_scale)
    assert scales[1] == 2 * scales[0]


@pytest.mark.parametrize(
    ("cast", "why"),
    [
        ({"format": "E4M3", "scaling": "rms"}, "a root mean square"),
        ({"format": "E4M3", "scaling": {"kind": "tensor", "quantile": 0.9}}, "a quantile"),
        ("NVFP4", "the scale that NVFP4 gives the whole tensor cannot be shared"),
    ],
)
def test_what_cannot_be_shared_is_refused(cast, why):
    with (
        quantize_model(model(), {"activation": cast}, head=None) as q,
        pytest.raises(BadInput, match=rf"shared_amax: 0:activation@fwd\S*: .*{why}"),
    ):
        share_amax(q, twice([]))
    with quantize_model(model(), {"weight": cast}, head=None) as q:  # the same on all ranks
        share_amax(q, twice([]))


def test_histories_are_as_many_before_the_first_step():
    net = model()
    with quantize_model(net, {"activation": {"format": "E4M3", "scaling": "delayed"}}) as q:
        before = amax_histories(q)
        assert [h.count_nonzero().item() for h in before] == [0] * len(before)
        passes(net)
        assert [h.count_nonzero().item() for h in amax_histories(q)] == [1] * len(before)
