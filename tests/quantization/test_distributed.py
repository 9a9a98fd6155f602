"""Two processes that train one model: replicas (DDP), shards (FSDP2), and what is refused."""

import pytest
import torch
import torch.distributed as dist
from helpers_distributed import Net, gathered, in_ranks, join, loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from altcore import BadInput, quantize_model

NEAREST = {
    "weight": "E4M3",
    "activation": "E4M3",
    "gradient": "E5M2",
    "layers": {"embed": {"weight@lookup": "E3M4"}},
}
NOISY = {"format": "E4M3", "rounding": "stochastic"}


def assert_replicas(model, optimizer=None, q=None):
    """Parameters, optimizer moments and stored scales have the same bits in both ranks."""
    states = optimizer.state.values() if optimizer else ()
    moments = [t for state in states for t in state.values() if t.dim()]
    scales = [weight.scale for weight in q.stored.values()] if q else []
    for tensor in (*model.parameters(), *moments, *scales):
        assert torch.equal(*gathered(tensor))


def assert_same(model, other, **bounds):
    """Two models have the same parameters, within a bound if one is given."""
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        a = a.full_tensor() if hasattr(a, "full_tensor") else a
        torch.testing.assert_close(a, b, **bounds or {"rtol": 0, "atol": 0}, msg=name)


# ------------------------------------------------------------------------------- replicas


def replicas(rank):
    for recipe, fmt in ((NEAREST, None), ("full", "E4M3")):
        for is_first in (True, False):
            model, lone = Net(), Net()
            q = quantize_model(model, recipe, format=fmt) if is_first else None
            parallel = DistributedDataParallel(model)
            q = q or quantize_model(parallel, recipe, format=fmt)
            r = quantize_model(lone, recipe, format=fmt)
            assert list(q.layers) == list(r.layers)
            pairs = [(m, torch.optim.AdamW(m.parameters(), 1e-2)) for m in (model, lone)]
            for step in range(3):
                loss_of(parallel, rank, step).backward()
                for of in range(2):
                    (loss_of(lone, of, step) / 2).backward()
                for (_, optimizer), quantization in zip(pairs, (q, r), strict=True):
                    optimizer.step()
                    optimizer.zero_grad()
                    quantization.store(optimizer)
                assert_replicas(model, pairs[0][1], q)
                assert_same(model, lone)


def test_replicas_are_one_process_that_accumulates(tmp_path):
    """Bit for bit, whether the model is quantized before DDP wraps it or after."""
    in_ranks(tmp_path, replicas)


def keys(model, recipe):
    """Where each quantizer has its next random bits from, after a step."""
    with quantize_model(model, recipe) as q:
        loss_of(model, 0, 0).backward()
        return {str(x.site): x.key(training=True) for x in q.quantizers}


OPERANDS = ("weight", "activation", "gradient", "weight_gradient")
DRAWING = {"layers": {"<linear>": dict.fromkeys(OPERANDS, NOISY), "embed": {"weight": NOISY}}}


def noise(rank, lone):
    for name, key in keys(Net(), DRAWING).items():
        is_shared = rank == 0 or ":weight@" in name
        assert (key == lone[name]) == is_shared, name
    recipe = dict.fromkeys((*OPERANDS, "stored_weight"), NOISY)
    recipe |= {"optimizer_state": {"format": "E5M2", "rounding": "stochastic"}}
    model = Net()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    with quantize_model(model, recipe, optimizer=optimizer) as q:
        for step in range(4):
            loss_of(parallel, rank, step).backward()
            optimizer.step()
            optimizer.zero_grad()
            q.store(optimizer)
            assert_replicas(model, optimizer, q)
        assert q.context.clock.step == 4


def late(rank, folder):
    dist.destroy_process_group()
    with quantize_model(Net(), DRAWING) as q:
        join(rank, f"{folder}/late again")
        found = {str(x.site): x.key(training=True) for x in q.quantizers}
    both = [None, None]
    dist.all_gather_object(both, found)
    for name in found:
        assert (both[0][name] == both[1][name]) == (":weight@" in name), name


@pytest.mark.slow
def test_ranks_draw_noise_of_their_own_for_what_is_their_own(tmp_path):
    """And the same for weights, stored ones and moments; rank 0 draws what a lone process does."""
    in_ranks(tmp_path, noise, keys(Net(), DRAWING))


@pytest.mark.slow
def test_a_process_may_join_after_the_model_was_quantized(tmp_path):
    in_ranks(tmp_path, late, tmp_path)


def scales(rank):
    for seed in range(0, 48, 2):
        model = Net(seed + rank)
        with quantize_model(model, "pure", format="E2M1") as q:
            parallel = DistributedDataParallel(model)
            loss_of(parallel, rank, 0).backward()
            q.store()
            assert_replicas(model, q=q)


@pytest.mark.slow
def test_weights_that_another_rank_sends_have_its_scale(tmp_path):
    """DDP overwrites what ranks of different seeds have stored."""
    in_ranks(tmp_path, scales)


def accumulation(rank):
    recipe = {**NEAREST, "weight_gradient": "E5M2"}
    for is_first in (True, False):
        model, lone = Net(), Net()
        q = quantize_model(model, recipe) if is_first else None
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        q = q or quantize_model(model, recipe)
        with quantize_model(lone, recipe):
            for step in range(0, 6, 2):
                branch = {"branch": step != 2}
                with parallel.no_sync():
                    loss_of(parallel, rank, step, **branch).backward()
                loss_of(parallel, rank, step + 1, **branch).backward()
                for of in range(2):
                    for micro in range(2):
                        (loss_of(lone, of, step + micro, **branch) / 2).backward()
                for name, p in lone.named_parameters():
                    mine = model.get_parameter(name).grad
                    if p.grad is None:
                        assert mine is None
                        continue
                    torch.testing.assert_close(mine, p.grad, rtol=1e-6, atol=1e-9, msg=name)
                    assert torch.equal(*gathered(mine))
                model.zero_grad()
                lone.zero_grad()


@pytest.mark.slow
def test_ranks_accumulate(tmp_path):
    """Without a message for each micro-batch, and with parameters that a step does not use."""
    in_ranks(tmp_path, accumulation)


def sharded_optimizer(rank):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = Net()
    parallel = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-2)
    with quantize_model(model, "full", format="E4M3") as q:
        loss_of(parallel, rank, 0).backward()
        optimizer.step()
        with pytest.warns(RuntimeWarning, match="ZeroRedundancyOptimizer has no state to round"):
            q.store(optimizer)
        assert_replicas(model, q=q)


@pytest.mark.slow
def test_an_optimizer_that_shards_its_state_is_told(tmp_path):
    in_ranks(tmp_path, sharded_optimizer)


# --------------------------------------------------------------------------------- shards


def shard(model, *, is_nested=True, **given):
    """Shard a model by FSDP2: layer by layer, or as one."""
    from torch.distributed.fsdp import fully_shard

    for module in (model.first, model.own) if is_nested else ():
        fully_shard(module, **given)
    fully_shard(model, **given)


WAYS = [(is_first, is_nested) for is_first in (True, False) for is_nested in (True, False)]


def shards(rank):
    for recipe in (NEAREST, "mxfp8"):
        for is_first, is_nested in WAYS:
            model, lone = Net(), Net()
            q = quantize_model(model, recipe) if is_first else None
            shard(model, is_nested=is_nested)
            q = q or quantize_model(model, recipe)
            r = quantize_model(lone, recipe)
            pairs = [(m, torch.optim.AdamW(m.parameters(), 1e-2)) for m in (model, lone)]
            for step in range(3):
                q.begin_step(step, tracking=True)
                loss_of(model, rank, step).backward()
                for of in range(2):
                    (loss_of(lone, of, step) / 2).backward()
                for _, optimizer in pairs:
                    optimizer.step()
                    optimizer.zero_grad()
                q.measure_views()  # their memory is gone
                assert q.counters.view_moves is None
            assert_same(model, lone, rtol=1e-5, atol=1e-6)
            rows = [[row.operands for row in x.coverage().rows] for x in (q, r)]
            assert rows[0] == rows[1]
            assert q.coverage().parameter_share == r.coverage().parameter_share
            q.remove()


def same_shards(rank):
    for recipe, fmt in (("master", "E4M3"), ("mxfp8", None)):
        for is_nested in (True, False):
            model, lone = Net(), Net()
            shard(model, is_nested=is_nested)
            pairs = [(m, torch.optim.AdamW(m.parameters(), 1e-2)) for m in (model, lone)]
            with (
                quantize_model(model, recipe, format=fmt) as q,
                quantize_model(lone, recipe, format=fmt) as r,
            ):
                for step in range(4):
                    losses = []
                    for own, optimizer in pairs:
                        losses.append(loss_of(own, 0, step))  # both ranks have rank 0's samples
                        losses[-1].backward()
                        optimizer.step()
                        optimizer.zero_grad()
                    assert torch.equal(*losses)
                    assert_same(model, lone)
                assert q.stats() == r.stats()


def short_shards(rank):
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model, lone = Net(), Net().bfloat16()
    shard(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    with quantize_model(model, NEAREST), quantize_model(lone, NEAREST):
        for ids in torch.arange(11).split(4):
            assert torch.equal(model(ids), lone(ids))


@pytest.mark.slow
@pytest.mark.parametrize("function", [shards, same_shards, short_shards])
def test_shards_compute_what_the_whole_model_does(tmp_path, function):
    """Quantized before it is sharded or after, layer by layer or as one; in bfloat16, too.

    To the bit if every rank has the same samples.
    """
    in_ranks(tmp_path, function)


def refused_shards(rank):
    for role in ("stored_weight", "optimizer_state", "weight_gradient"):
        for is_first, is_nested in WAYS:
            model = Net()
            recipe = {"layers": {"first": {"weight": "E4M3", role: "E4M3"}}}
            text = rf"layer first: weight is sharded .*, and {role} needs the whole parameter"
            if is_first:
                q = quantize_model(model, recipe)
                shard(model, is_nested=is_nested)
                optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
                with pytest.raises(BadInput, match=text):
                    step_of(model, rank, optimizer, q)
            else:
                shard(model, is_nested=is_nested)
                with pytest.raises(BadInput, match=text):
                    quantize_model(model, recipe)


def step_of(model, rank, optimizer, q):
    loss_of(model, rank, 0).backward()
    optimizer.step()
    q.store(optimizer)


def refused_values(rank):
    model = Net()
    with torch.no_grad():
        model.first.weight[0, 0] = torch.inf
    shard(model)
    if rank == 0:  # which has the first rows
        with pytest.raises(BadInput, match="layer first: weight has elements that are not finite"):
            quantize_model(model, NEAREST)
    with torch.device("meta"):
        model = Net()
    shard(model)
    with pytest.raises(BadInput, match="layer embed: weight is a meta tensor"):
        quantize_model(model, NEAREST)


@pytest.mark.slow
@pytest.mark.parametrize("function", [refused_shards, refused_values])
def test_what_needs_whole_parameters_is_refused(tmp_path, function):
    """By layer and parameter: at the start, or, if it was sharded later, when the model runs."""
    in_ranks(tmp_path, function)


PARALLEL = [
    ("first", "ColwiseParallel", ("weight", "activation", "gradient", "stored_weight")),
    ("head", "RowwiseParallel", ("weight", "activation", "gradient", "stored_weight")),
    ("embed", "RowwiseParallel", ("weight@lookup", "stored_weight")),
]


def refused_tensors(rank):
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    for layer, way, casts in PARALLEL:
        for cast in casts:
            for is_first in (True, False):
                recipe = {"layers": {layer: {cast: "E4M3"}}}
                with pytest.raises(BadInput, match=rf"layer {layer}: (weight|input) is .*DTensor"):
                    run_parallel(Net(), recipe, rank, mesh, {layer: way}, is_first)


def run_parallel(model, recipe, rank, mesh, ways, is_first):
    from torch.distributed.tensor import parallel

    if is_first:
        quantize_model(model, recipe)
    plan = {layer: getattr(parallel, way)() for layer, way in ways.items()}
    parallel.parallelize_module(model, mesh, plan)
    if not is_first:
        quantize_model(model, recipe)
    loss_of(model, rank, 0)


def refused_flat(rank):
    from torch.distributed.fsdp import FullyShardedDataParallel

    for is_original in (True, False):
        given = {"device_id": torch.device("cpu"), "use_orig_params": is_original}
        with pytest.raises(BadInput, match="model: it: FullyShardedDataParallel makes one flat"):
            quantize_model(FullyShardedDataParallel(Net(), **given), NEAREST)
        quantize_model(model := Net(), NEAREST)
        with pytest.raises(BadInput, match="layer embed: FullyShardedDataParallel makes one flat"):
            loss_of(FullyShardedDataParallel(model, **given), rank, 0)


@pytest.mark.slow
@pytest.mark.parametrize("function", [refused_tensors, refused_flat])
def test_tensor_parallelism_and_flat_parameters_are_refused(tmp_path, function):
    """By layer and argument, whichever came first."""
    in_ranks(tmp_path, function)


def test_data_parallel_is_refused():
    with pytest.raises(BadInput, match=r"model: nn\.DataParallel copies .* DistributedDataPar"):
        quantize_model(nn.DataParallel(Net()), NEAREST)
