"""Several processes, as torchrun starts them, train one run."""

import pytest
from helpers import Starter, sha256, state
from helpers_distributed import by_torchrun

from altcore.runs import read_lines

BATCHES = {"eval_steps": 3, "eval_interval": 2, "max_steps": 4, "gpt__batch_size": 8}
SAME = [
    # Bit for bit would be luck: the ranks' halves of a sum are added in another order.
    {"format": "none", "name": "float32"},
    {"format": "E4M3", "name": "shared", "shared_amax": True},
    {
        "format": "E4M3",
        "name": "accumulated",
        "shared_amax": True,
        "gradient_accumulation_steps": 2,
    },
    {
        "format": "E4M3",
        "name": "delayed",
        "shared_amax": True,
        "recipe": {"activation": {"format": "FORMAT", "scaling": "delayed"}},
    },
]


def alike(rank, runs, corpus):
    start = Starter(runs, corpus)
    for keys in SAME:
        engine = start.engine(**keys, **BATCHES)
        assert (engine.run.rank, engine.run.world_size) == (rank, 2)
        engine.train()
        saved = state(engine.run.directory)
        assert sha256(engine.run.model.state_dict()) == sha256(saved["model"])
        assert len(saved["ranks"]) == 2


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(tmp_path, corpus, start):
    """With half of each micro-batch; both end with the weights of rank 0's checkpoint."""
    by_torchrun(alike, tmp_path / "two", corpus)
    for keys in SAME:
        one, two = start(**keys, **BATCHES).run_directory, tmp_path / "two" / keys["name"]
        lines = [read_lines(run / "metrics.jsonl") for run in (one, two)]
        for own, other in zip(*lines, strict=True):
            assert own.keys() == other.keys()
            # Sums are made in another order. Some values of the format are then the next ones.
            near = 1e-5 if own["step"] == 1 or keys["format"] == "none" else 1e-3
            for key in {"loss", "grad_norm", "val_loss"} & {*own}:
                assert own[key] == pytest.approx(other[key], rel=near), (keys, key)
