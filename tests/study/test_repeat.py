"""What it takes to repeat a study: its command, and what a paper states."""

from pathlib import Path

from altcore.config import TrainConfig
from altcore.errors import DEFAULT
from altcore.study import Entrants, Options, Own
from altcore.study.repeat import to_repeat

GIVEN = [("gpt.size", "tiny", ""), ("eval_steps", 64, DEFAULT), ("data", "my data", "")]


def shell(options, asked=None):
    """The command that repeats a study; of `explain`, if there are no entrants."""
    command = "explain" if asked is None else "compare"
    study = Path("studies/mine")
    return to_repeat(command, options, TrainConfig(), asked or {}, study, {})["shell"]


def test_the_command_is_whole():
    """Lists, keys of all arms and of one, and every option that decides the answer."""
    entrants = Entrants(
        formats=["E4M3", "E7M0"],
        recipes=["pure"],
        roundings=["stored_weight=up", "up"],
        arms={"full": "nvfp4"},
        settings={"full": {"grad_clip": 0.5}},
        against="up",
        metric="val",
    )
    options = Options("all.yaml", GIVEN, seeds=3, rates=(1.0, 3.0), null=False, all_seeds=True)
    assert shell(options, entrants.to_plain()) == (
        "altcore compare --formats E4M3,E7M0 --recipes pure --roundings stored_weight=up,up --arms "
        "full=nvfp4 --set full:grad_clip=0.5 --against up --metric val --config all.yaml --set "
        "gpt.size=tiny --set 'data=my data' --seeds 3 --within 0.05 --rates 1,3 --no-null "
        "--all-seeds --name mine"
    )


def test_what_is_usual_is_left_out():
    explained = Options(None, [("format", "E7M0", "")], budget=20.0)
    assert shell(explained) == (
        "altcore explain --set format=E7M0 --seeds 5 --within 0.05 --budget 20 --name mine"
    )
    texts = Options(None, [("a", "1", ""), ("b", "no", ""), ("c", [1, 2], "")])
    assert shell(texts).startswith("""altcore explain --set 'a="1"' --set 'b="no"' --set 'c=[1""")
    plain = Entrants(ablate={"nvfp4": "nvfp4"}).to_plain()
    assert shell(Options(None, []), plain) == (
        "altcore compare --ablate nvfp4=nvfp4 --seeds 5 --within 0.05 --name mine"
    )


def test_what_was_passed_in_from_python_is_named():
    own = Own(loss=lambda model, batch: 0.0)
    assert shell(Options(None, [], own=own)).endswith("--name mine  # with loss from Python")


def test_a_warmup_that_the_study_shortens_is_named():
    """The command has what was given, and shortens it again; the training has what ran."""
    options = Options(None, [("warmup_steps", 200, "")])
    found = to_repeat("explain", options, TrainConfig(warmup_steps=12), {}, Path("mine"), {})
    assert found["shell"].startswith("altcore explain --set warmup_steps=200 ")
    assert found["shell"].endswith("--name mine  # which shortens warmup_steps to 12")
    assert found["training"]["warmup_steps"] == 12


def test_what_a_paper_states_is_there():
    config = TrainConfig(schedule="cosine", warmup_steps=6)
    facts = {"sha256": "1e0a", "parameters": 34688}
    found = to_repeat("explain", Options(None, []), config, {}, Path("studies/mine"), facts)
    assert (found["study"], found["workload_facts"]) == ("mine", facts)
    assert (found["training"]["warmup_steps"], found["training"]["grad_clip"]) == (6, 1.0)
