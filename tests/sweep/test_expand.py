"""The jobs of a sweep file: every combination once, checked, with the keys that were given."""

import pytest

from altcore.config import load_config
from altcore.errors import BadInput
from altcore.sweep import Job, SweepFile, jobs_of, read_sweep, sweep_text

STUDY = """
base: {gpt.size: tiny, max_steps: 6, warmup_steps: 0}
variants:
  base: {}
  pure: {recipe: pure, format: E5M2, gpt: {n_head: 2}}
grid:
  learning_rate: [0.1, 5e-2]
  gpt.batch_size: [4, 8]
seeds: [3, 5]
priority: {pure: 1}
"""


def written(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def sweep(tmp_path, text=STUDY):
    return read_sweep(written(tmp_path, text))


def test_every_combination_is_a_job(tmp_path):
    """With the configuration that the same keys give a run."""
    jobs = jobs_of(sweep(tmp_path))
    assert len(jobs) == 2 * 2 * 2 * 2
    assert len({job.name for job in jobs}) == 16
    by_name = {job.name: job for job in jobs}
    job = by_name["pure-learning_rate0.05-batch_size8-seed5"]
    assert job.factors == {"learning_rate": 0.05, "gpt.batch_size": 8, "seed": 5}
    assert (job.variant, job.priority) == ("pure", 1)
    keys = {
        "gpt.size": "tiny",
        "max_steps": 6,
        "warmup_steps": 0,
        "recipe": "pure",
        "format": "E5M2",
        "gpt.n_head": 2,
        "learning_rate": 0.05,
        "gpt.batch_size": 8,
        "seed": 5,
    }
    assert job.train_config("x", {}) == load_config(
        None, {**keys, "name": job.name, "runs_dir": "x", "label": "pure"}
    )


def test_a_variant_wins_however_a_key_is_spelled(tmp_path):
    """A number of seeds begins with the one that is given."""
    text = """
    base: {settings: {gpt: {size: tiny, n_head: 2}}, batch_size: 4, seed: 3}
    variants: {a: {gpt: {batch_size: 8}}, b: {settings: {gpt: {n_head: 1}}, seed: 5}}
    grid: {workload: [gpt]}
    """
    one, other = (job.config["settings"]["gpt"] for job in jobs_of(sweep(tmp_path, text)))
    assert one == {"size": "tiny", "n_head": 2, "batch_size": 8}
    assert other == {"size": "tiny", "n_head": 1, "batch_size": 4}
    assert [job.factors["seed"] for job in jobs_of(sweep(tmp_path, text))] == [3, 5]


def test_keys_that_change_the_same_value(tmp_path):
    """A preset and a key that it sets: combinations are read one by one."""
    text = "base: {gpt.size: tiny}\ngrid: {steps: [2], max_steps: [3]}\n"
    with pytest.raises(BadInput, match="steps"):
        jobs_of(sweep(tmp_path, text))
    text = (
        "grid: {format: [E5M2, E4M3], recipe: [master, pure]}\nseeds: 1\nbase: {gpt.size: tiny}\n"
    )
    found = {(j.config["format"], j.config["recipe"]) for j in jobs_of(sweep(tmp_path, text))}
    assert len(found) == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "grids: {}",
            r"line 1: unknown key 'grids' \(did you mean grid\?\): keys of a sweep file are",
        ),
        ("max_steps: 3", "line 1: unknown key 'max_steps': keys of a run stand under base$"),
        (
            "max_step: 3",
            r"'max_step' \(did you mean max_steps\?\): keys of a run stand under base$",
        ),
        ("grid: {max_grad: [1]}", "unknown key 'max_grad'$"),
        ("columns: [val_loss, steps, val_loss]", "^columns: val_loss is given twice .*line 1"),
        (
            "base: {max_step: 3}",
            r"study\.yaml, line 1: unknown key 'max_step' \(did you mean max_steps\?",
        ),
        ("grid: {learning_rate: [0.1, fast]}", r"learning_rate.*'fast' is not a number.*line 1"),
        ("grid: {learning_rate: 0.1}", "^grid learning_rate: 0.1 is not a list of .*line 1"),
        ("base: {}\nvariants:\n  b: {}\n  a:\n", "^variants a: null is not a mapping .*line 4"),
        ("variants: {1: {}}", "^variants: the name 1 is not text: put it in quotes .*line 1"),
        ("variants: {yes: {}}", "^variants: the name true is not text: put it in quotes: YAML"),
        ("grid: {learning_rate: []}", r"grid\.learning_rate: no value is given"),
        ("grid: {learning_rate: [0.1, 0.1]}", r"grid\.learning_rate: 0\.1 is given twice .*line 1"),
        ("grid: {tags: [[a], [b], [a]]}", r"grid\.tags: \['a'\] is given twice"),
        ("grid: {seed: [1]}", r"grid\.seed: seeds have a key of their own"),
        (
            "grid: {learning_rate: [1]}\nvariants: {a: {}, b: {learning_rate: 2}}",
            r"learning_rate: grid.learning_rate \(.*line 1\) and variants.b \(.*line 2\) both",
        ),
        (
            "grid: {gpt.batch_size: [1]}\nbase: {batch_size: 2}",
            r"gpt.batch_size: grid.gpt.batch_size \(.*line 1\) and base \(.*line 2\) both give it",
        ),
        ("base: {seed: 3}\nseeds: [4]", r"seed: seeds and base \(.*line 1\) both give it"),
        ("grid: {name: [a]}", r"grid\.name: the sweep names its runs"),
        ("base: {runs_dir: x}", r"runs_dir: the sweep names its runs .*line 1"),
        ("variants: {a: {run_name: x}}", r"label: the sweep names its runs .*line 1"),
        ("seeds: 0", "seeds: no seed is given: 3 is three of them, .*line 1"),
        ("seeds:", "seeds: no seed is given"),
        ("seeds: []", "seeds: no seed is given"),
        ("seeds: '3'", "seeds: '3' is a text: leave the quotes out"),
        ("seeds: [3, 1, 3]", "seeds: 3 is given twice .*line 1"),
        ("seeds: [9223372036854775808]", r"seeds: 9223372036854775808 is not >= 0 and < 2\*\*63"),
        ("seeds: [1, a]", "a number of seeds, or a list of them"),
        ("seeds: true", "a number of seeds"),
        ("variants: {../x: {}}", "is not a name"),
        ("priority: {x: 1}", "x: there is no such variant"),
        ("collapse_is: fine", "collapse_is"),
        ("lost_after: 0", "lost_after"),
        ("requires: [3]", "a measure is a name"),
        ("requires: [{name: loss, often: 3}]", "often"),
        ("retry: {mine: {limits: 3}}", r"retry\.mine\.limits.*did you mean"),
        (
            "retry: {grdient: {limit: 3, halve: {learning_rate: 0}}}",
            r"retry\.grdient: no failure has this cause \(did you mean gradient\?\).*line 1",
        ),
        ("retry: {unknown: {limit: 2}}", r"retry\.unknown: a run that is repeated unchanged fails"),
        (
            "retry: {gradient: {halve: {learningrate: 0}}}",
            r"retry\.gradient\.halve: no job has .*'learningrate' \(did you mean learning_rate\?"
            r"\) \(given in .*line 1",
        ),
        ("retry: {gradient: {halve: {resnet.batch_size: 1}}}", r"did you mean gpt\.batch_size"),
        ("retry: {gradient: {halve: {format: 1}}}", "no job has a number 'format'"),
        ("retry: {gradient: {halve: {seed: 1}}}", "the seed is a factor of the sweep"),
        ("seeds: 100000000000", "^seeds: 100000000000 seeds: a sweep has at most 100000 jobs"),
        (
            "seeds: 1000\ngrid: {learning_rate: [0.1, 0.2], min_lr_ratio: "
            f"[{', '.join(map(str, range(60)))}]}}",
            r"^seeds: 1000 seeds x 2 values of learning_rate x 60 values of min_lr_ratio: a sweep",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, told):
    """With the key, and where it was given."""
    with pytest.raises(BadInput, match=told):
        jobs_of(sweep(tmp_path, text))


def test_a_rule_may_halve_what_the_workload_chooses(tmp_path):
    """Though no key of the sweep file says how large it is."""
    keys = "gpt.batch_size: 4, batch_size: 2, learning_rate: 0"
    assert jobs_of(sweep(tmp_path, f"retry: {{gradient: {{halve: {{{keys}}}}}}}"))


def test_a_file_is_written_as_it_was_read(tmp_path):
    """For the sweep's own folder."""
    first = sweep(tmp_path)
    assert sweep(tmp_path, sweep_text(first)) == first
    assert first.name == "study"
    assert sweep_text(SweepFile()) == "{}\n"


def test_long_names_stay_apart(tmp_path):
    """Names have 100 characters at most."""
    name = "v" * 95
    text = (
        f"variants: {{{name}: {{}}}}\nbase: {{gpt.size: tiny}}\ngrid: {{learning_rate: [0.1, 0.2]}}"
    )
    names = [job.name for job in jobs_of(sweep(tmp_path, text))]
    assert len(set(names)) == 2
    assert {len(n) for n in names} == {100}


def test_names_that_would_be_the_same_stay_apart(tmp_path):
    """Whatever a file's name leaves out of a value, and where capitals are small letters."""
    text = (
        "base: {gpt.size: tiny}\nvariants: {a: {}, A: {}}\nseeds: [1]\ngrid:\n"
        "  learning_rate: [1e+30, 1e-30]\n  project: [a-b, a+b, A-b, data/a, data-a, '1', '1 ']\n"
    )
    names = [job.name for job in jobs_of(sweep(tmp_path, text))]
    assert len({name.casefold() for name in names}) == len(names) == 2 * 2 * 7
    # All of its values are there, and it was first.
    assert names[0] == "a-learning_rate1e30-projecta-b-seed1"
    assert names[4] == "a-learning_rate1e30-projectdata-a-seed1"
    assert names[7] == "a-learning_rate1e-30-projecta-b-seed1"


def test_a_jobs_file_that_was_changed_is_refused(tmp_path):
    """Its digest says so; its priority is no part of it."""
    job = jobs_of(sweep(tmp_path))[0]
    plain = job.to_plain({})
    assert Job.from_plain(plain, None) == job
    for key, value in (("name", "other"), ("variant", "x"), ("config", {}), ("digest", "0")):
        with pytest.raises(BadInput, match="is not what a sweep wrote"):
            Job.from_plain({**plain, key: value}, None)
    assert Job.from_plain({**plain, "priority": 7}, None).priority == 7


def test_settings_of_an_optimizer_are_for_the_variants_that_use_it(tmp_path):
    """Those of one that no variant uses are refused, as in a run."""
    text = """
base: {gpt.size: tiny, max_steps: 2, warmup_steps: 0, optimizer: sgd,
  sgd: {momentum: 0.5}, adamw: {beta2: 0.9}}
variants: {plain: {}, adam: {optimizer: adamw}}
grid: {weight_decay: [0.25]}
"""
    plain, adam = jobs_of(sweep(tmp_path, text))
    assert plain.config["settings"]["sgd"] == {"momentum": 0.5, "weight_decay": 0.25}
    assert adam.config["settings"]["adamw"] == {"beta2": 0.9, "weight_decay": 0.25}
    assert "adamw" not in plain.config["settings"]
    assert "sgd" not in adam.config["settings"]
    with pytest.raises(
        BadInput, match="lion: settings are given for an optimizer that is not active"
    ):
        jobs_of(sweep(tmp_path, text.replace("adamw: {beta2", "lion: {beta2")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base:\n  workload: gtp", "workload: unknown workload 'gtp' (did you mean gpt?)"),
        ("variants:\n  a: {optimizer: adamv}", "optimizer: unknown optimizer 'adamv'"),
        ("grid:\n  optimizer: [adamw, adamv]", "optimizer: unknown optimizer 'adamv'"),
        ("base:\n  plugins: [ulp-stat]", "plugins: unknown plugin 'ulp-stat' (did you mean"),
        ("base:\n  format: E9X9", "format: unknown format 'E9X9'"),
    ],
)
def test_what_is_not_installed_is_named_before_anything_runs(tmp_path, text, told):
    """With its line, and without importing a plugin."""
    with pytest.raises(BadInput) as refused:
        jobs_of(sweep(tmp_path, text))
    assert str(refused.value).startswith(told)
    assert refused.value.source.line == 2


@pytest.mark.parametrize(
    "grid",
    [
        "{gpt: [{size: tiny, batch_size: 4}, {size: tiny, n_head: 2}]}",
        "{optimizer: [adamw, sgd], weight_decay: [0.25, 0.5]}",
        "{optimizer: [adamw, sgd], adamw.beta2: [0.9]}",
        "{workload: [gpt, resnet18-cifar], batch_size: [4, 8]}",
    ],
)
def test_a_job_has_the_settings_that_the_same_keys_give_a_run(tmp_path, grid):
    """Nothing of the grid's first point is left in another one."""
    asked = sweep(tmp_path, f"base: {{max_steps: 2, warmup_steps: 0}}\ngrid: {grid}\n")
    if "beta2" in grid:  # which the other optimizer has not
        with pytest.raises(BadInput, match="adamw: settings are given"):
            jobs_of(asked)
        return
    for job in jobs_of(asked):
        given = {"max_steps": 2, "warmup_steps": 0, "label": "base", **job.factors}
        assert job.config == {
            k: v for k, v in load_config(None, given).to_plain().items() if k in job.config
        }


@pytest.mark.parametrize(
    "grid",
    [
        "{evals_per_epoch: [null, 4], learning_rate: [0.1, 0.2]}",
        "{epochs: [0.5, null], learning_rate: [0.1, 0.2]}",
        "{learning_rate: [0.1, 0.2], warmup_epochs: [null, 0.5]}",
    ],
)
def test_a_length_in_epochs_takes_the_default_steps_away(tmp_path, grid):
    """Or its run would be refused: both were given."""
    for job in jobs_of(sweep(tmp_path, f"base: {{gpt.size: tiny}}\ngrid: {grid}\n")):
        given = {"gpt.size": "tiny", "label": "base", **job.factors}
        config = load_config(None, given).to_plain()
        assert job.config == {k: v for k, v in config.items() if k not in ("name", "runs_dir")}
