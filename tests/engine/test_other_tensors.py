"""Tensors whose numbers are in no memory of their own, as those of DTensor: refused by name."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils._pytree import tree_map

import altcore
from altcore import BadInput, CheckpointManager


class Wrapper(torch.Tensor):
    """Has another tensor, as torchao's classes do, and no memory."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        plain = tree_map(lambda x: x.held if isinstance(x, cls) else x, (args, kwargs or {}))
        made = function(*plain[0], **plain[1])
        return tree_map(lambda x: cls(x) if isinstance(x, torch.Tensor) else x, made)


def faked():
    with FakeTensorMode():
        return torch.zeros(3)


def nested(**layout):
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], **layout)


OTHERS = {
    "Wrapper": lambda: Wrapper(torch.zeros(3)),
    "FakeTensor": faked,
    "NestedTensor": lambda: nested(layout=torch.jagged),
    "nested tensor": nested,
    "mkldnn tensor": lambda: torch.zeros(3).to_mkldnn(),
}


@pytest.fixture
def group():
    """Be in a group of one process."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1)


def refused(model, folder, told):
    """Whether all that saves or loads refuses a model, before it does anything else."""
    other, optimizer = nn.Linear(3, 3), sgd(model)
    with pytest.raises(BadInput, match=f"^model: {told}"):
        CheckpointManager(folder, model, optimizer)
    with pytest.raises(BadInput, match=f"^also.ema: {told}"):
        CheckpointManager(folder, other, sgd(other), also={"ema": model})
    with pytest.raises(BadInput, match=f"^model: {told}"):
        altcore.save_checkpoint(folder, model, optimizer, None, 1)
    with pytest.raises(BadInput, match=f"^model: {told}"):
        altcore.load_checkpoint(folder, model, None, None)
    return not [*folder.iterdir()]


def test_a_sharded_model_is_told_to_use_torchs_checkpoints(group, tmp_path):
    told = r"weight is a DTensor, .* save by torch\.distributed\.checkpoint$"
    assert refused(fully_shard(nn.Linear(3, 3)), tmp_path, told)


@pytest.mark.filterwarnings("ignore:When using ``NO_SHARD``")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.distributed")
@pytest.mark.parametrize("is_original", [True, False])
def test_a_model_of_fsdp1_is_refused(group, tmp_path, start, is_original):
    """Also the model within, which was wrapped after the manager was made."""
    told = "FullyShardedDataParallel gives each rank a part of .*torch.distributed.checkpoint"
    given = {"device_id": torch.device("cpu"), "use_orig_params": is_original}
    flat = FullyShardedDataParallel(model := nn.Linear(3, 3), **given)
    assert refused(flat, tmp_path, told)
    with pytest.raises(BadInput, match=f"^model: {told}"):
        CheckpointManager(tmp_path, model, sgd(flat))
    with pytest.raises(BadInput, match=r"model: .*FullyShardedDataParallel.*fully_shard"):
        altcore.train(start.config(), model=flat)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("kind", OTHERS)
def test_a_module_with_another_tensor_is_refused(kind, tmp_path, start):
    model = nn.Linear(3, 3)
    model.register_buffer("odd", OTHERS[kind]())
    told = f"odd is a {kind}, which no checkpoint of altcore holds: use an ordinary tensor$"
    assert refused(model, tmp_path, told)
    with pytest.raises(BadInput, match=f"^model: {told}"):
        altcore.train(start.config(), model=model)


class Keeps:
    """States one tensor."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"one": self.value}

    def load_state_dict(self, state):
        self.value = state["one"]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("where", ["also", "group"])
@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "nested tensor"])
def test_a_state_with_another_tensor_is_refused(kind, where, tmp_path):
    """By name, and not by an error of torch's."""
    model = nn.Linear(3, 3)
    optimizer, value = sgd(model), OTHERS[kind]()
    also = {"kept": Keeps(value)} if where == "also" else {}
    if where == "group":
        optimizer.param_groups[0]["odd"] = value
    manager = CheckpointManager(tmp_path, model, optimizer, also=also)
    with pytest.raises(BadInput, match=r"^(also\.kept\.one|optimizer\.param_groups\.0\.odd)"):
        manager.save(1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_kept_and_looked_at(tmp_path):
    model, kept = nn.Linear(3, 3), Keeps(nested())
    manager = CheckpointManager(tmp_path, model, sgd(model), also={"kept": kept})
    manager.save(1)
    value, kept.value = kept.value, None
    assert manager.restore() == 1
    assert torch.equal(kept.value.to_padded_tensor(1.0), value.to_padded_tensor(1.0))
    kept.value.unbind()[1][2] = torch.nan
    assert manager.save(2).name == "anomaly_00000002"


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_an_option_in_any_layout_is_looked_at(tmp_path):
    model = nn.Linear(3, 3)
    optimizer = sgd(model)
    manager = CheckpointManager(tmp_path, model, optimizer)
    optimizer.param_groups[0]["odd"] = torch.eye(3).to_sparse_csr()
    manager.save(1)
    optimizer.param_groups[0]["odd"] = [(torch.eye(3) * torch.nan).to_sparse_csr()]
    assert manager.save(2).name == "anomaly_00000002"


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_the_momentum_of_a_sparse_embedding_is_kept(tmp_path):
    """SGD makes it sparse: a loop that goes on has the same weights as one that never stopped."""

    def loop(steps, model, optimizer):
        for i in steps:
            optimizer.zero_grad()
            model(torch.tensor([1, 2, i])).square().sum().backward()
            optimizer.step()

    def made():
        torch.manual_seed(0)
        model = nn.Embedding(10, 4, sparse=True)
        return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    whole, again = made(), made()
    with CheckpointManager(tmp_path, *whole) as manager:
        loop(range(3), *whole)
        manager.save(3)
        loop(range(3, 6), *whole)
    manager = CheckpointManager(tmp_path, *again)
    loop(range(manager.restore(), 6), *again)
    assert torch.equal(again[0].weight, whole[0].weight)
    (momentum,) = (state["momentum_buffer"] for state in again[1].state.values())
    assert momentum.is_sparse
    momentum._values()[0, 0] = torch.nan
    assert manager.save(6).name == "anomaly_00000006"
