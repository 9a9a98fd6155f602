"""Conditions: what differs between runs but what is compared."""

from helpers_records import Told

from altcore_reporters.analysis import FormatComparison
from altcore_reporters.conditions import (
    apart_from_format,
    apart_from_optimizer,
    formats_of,
    optimizers_of,
)
from altcore_reporters.pictures import differences, grouped


def told(facts=None, code=None, files=None, **config):
    summary = {"optimizer": config.get("optimizer"), "workload_facts": facts or {}}
    return Told("r", summary, config, code=code, files=files)


def test_format_seed_and_names_make_no_condition():
    """Nor does what changes no weight, such as diagnostics and their settings."""
    runs = [
        told(format="E5M2", seed=1, name="a", plugins=["progress", "ulp-stats"], recipe="pure",
             settings={"ulp-stats": {"interval": 10}}),
        told(format="E3M4", seed=2, name="b", plugins=[], eval_interval=50, recipe="pure"),
        told(fp8_format="E3M4", run_name="c", recipe="pure"),
    ]  # fmt: skip
    assert apart_from_format(runs) == ["", "", ""]


def test_a_setting_that_was_given_at_its_default_makes_no_condition():
    """Nor one at the value of the run's key, which it has unless it is given."""
    keys = {"optimizer": "adamw", "plugins": ["mantissa-shift"], "bit_stall_threshold": 0.9}

    def condition(**settings):
        return apart_from_format([told(**keys), told(**keys, settings=settings)])

    assert condition(adamw={"beta1": 0.9, "weight_decay": 0.1}) == ["", ""]
    assert condition(adamw={"beta1": 0.8}) == ["adamw.beta1 0.9", "adamw.beta1 0.8"]
    assert condition(**{"mantissa-shift": {"stall_threshold": 0.9}}) == ["", ""]
    assert condition(**{"mantissa-shift": {"stall_threshold": 0.5}})[1].endswith("threshold 0.5")
    assert condition(unknown={"beta1": 0.9})[1] == "unknown.beta1 0.9"


def test_a_condition_is_called_by_what_tells_it_apart():
    """Interventions count; a second key that goes with the first is not repeated."""
    first = told(recipe={"name": "mine.yaml", "weight": "E5M2"}, learning_rate=1e-3, max_steps=9)
    second = told(recipe="pure", learning_rate=2e-3, max_steps=9)
    third = told(recipe="pure", learning_rate=2e-3, max_steps=9, plugins=["mantissa-shift"])
    assert apart_from_format([first, second, second, third]) == [
        "recipe mine, plugins none",
        "recipe pure, plugins none",
        "recipe pure, plugins none",
        "recipe pure, plugins mantissa-shift",
    ]
    assert apart_from_format([]) == []


def test_neither_the_order_of_runs_nor_that_of_keys_names_a_condition():
    """W&B returns runs and keys in another order than a folder does."""
    one = {"warmup_steps": 1, "learning_rate": 1e-3, "recipe": "pure", "batch_size": 8}
    two = {"warmup_steps": 2, "learning_rate": 2e-3, "recipe": "master", "batch_size": 8}
    three = {**one, "batch_size": 16, "seed": 3}
    runs = [told(**own) for own in (one, two, three)]
    turned = [told(**dict(reversed(own.items()))) for own in (three, two, one)]
    assert apart_from_format(runs) == apart_from_format(turned)[::-1]
    assert apart_from_format(runs[:2]) == ["recipe pure", "recipe master"]
    assert [g.label for g in grouped(runs)] == [g.label for g in grouped(turned)][::-1]
    tied = [{"warmup_steps": n, "learning_rate": n / 1e3} for n in (1, 2)]
    labels = [g.label for g in grouped([told(**own) for own in tied])]
    other = [g.label for g in grouped([told(**dict(reversed(o.items()))) for o in tied[::-1]])]
    assert labels == other[::-1]


def test_other_data_are_another_condition():
    """Known by their digest: neither where they lie nor a seed is; or by what they are called."""
    gpt = {"workload": "gpt", "recipe": "pure"}
    runs = [
        told({"sha256": digest * 8}, **gpt, seed=seed, settings={"gpt": {"data": path}})
        for seed, (digest, path) in enumerate([("0123456789", "a.txt"), ("0123456789", "b.txt")])
    ]
    assert apart_from_format(runs) == ["", ""]
    runs.append(told({"sha256": "f" * 64}, **gpt, settings={"gpt": {"data": "a.txt"}}))
    runs.append(told({"data": "a function that was given"}, **gpt))
    expected = ["data 012345", "data 012345", "data ffffff", "data a function that was given"]
    assert apart_from_format(runs) == apart_from_optimizer(runs) == expected


def test_snapshots_make_a_condition_where_a_plugin_may_go_back_to_one():
    """A rollback lands on the newest that is old enough: other weights come of other intervals."""
    for plugins, expected in (
        (["rollback"], ["snapshot_interval 5", "snapshot_interval 9"]),
        (["ulp-stats"], ["", ""]),
    ):
        runs = [told(plugins=plugins, snapshot_interval=n, seed=n) for n in (5, 9)]
        assert apart_from_format(runs) == expected


def test_another_version_of_a_plugin_is_another_condition():
    """And another arm of the page; that of a diagnostic, or of a plugin of one run only, is not."""
    plugins = {"plugins": ["shrink", "ulp-stats"]}
    runs = [told(code={"shrink": f"third {v}", "ulp-stats": v}, **plugins) for v in ("1", "1", "2")]
    runs.append(told(code={"shrink": "third 1", "other": "third 9"}, **plugins))
    expected = ["shrink third 1", "shrink third 1", "shrink third 2", "shrink third 1"]
    assert apart_from_format(runs) == apart_from_optimizer(runs) == expected
    assert [len(group.records) for group in grouped(runs)] == [3, 1]
    assert "third 2" in grouped(runs)[1].label
    assert [d.key for d in differences(runs)] == ["shrink", "ulp-stats"]


def test_another_version_of_what_is_compared_is_another_format_or_optimizer():
    """And no condition, in which it would have nothing to compare with."""
    versions = [
        told(format="E4M3", optimizer="sgd"),
        told(format="MINE", optimizer="own", code={"format MINE": "1", "optimizer own": "1"}),
        told(format="MINE", optimizer="own", code={"format MINE": "2", "optimizer own": "1"}),
        told(format="MINE", optimizer="own", code={"format MINE": "1", "optimizer own": "2"}),
    ]
    assert apart_from_format(versions[:3]) == [
        "optimizer sgd", "optimizer own", "optimizer own"
    ]  # fmt: skip
    assert apart_from_optimizer([versions[1], versions[3]]) == ["", ""]
    assert optimizers_of([versions[0], versions[1], versions[3]]) == ["sgd", "own 1", "own 2"]
    assert len(grouped(versions)) == 4


def test_another_file_that_a_setting_names_is_another_condition():
    """By what it holds, as of a workload that digests nothing."""
    digests = ("0123456789", "abcdef0123")
    runs = [told(files={"own.table": digest * 8}, format="E4M3") for digest in digests]
    assert apart_from_format(runs) == [
        "file of own.table 012345678901", "file of own.table abcdef0123ab"
    ]  # fmt: skip
    assert len(grouped(runs)) == 2
    watched = [told(files={"ulp-stats.table": digest}, format="E4M3") for digest in digests]
    assert apart_from_format(watched) == ["", ""]
    assert len(grouped(watched)) == 1


def test_what_was_changed_half_way_is_another_condition():
    """Named with the step; two changes of one key to two values are two."""
    change = {"step": 4, "what": "learning_rate", "before": 0.1, "now": 0.2}
    (plain, changed), other = (
        apart_from_format([told(), told(changes=[change])]),
        apart_from_format([told(changes=[{**change, "now": now}]) for now in (0.2, 0.3)]),
    )
    assert (plain, changed) == ("changed none", "changed learning_rate after step 4")
    assert len(set(other)) == 2
    assert all(text.startswith(changed) for text in other)


def test_what_is_measured_otherwise_is_another_condition():
    """A validation loss is of so many batches; rates and the best loss are of the logged steps."""
    runs = [told(eval_steps=5, log_interval=1), told(eval_steps=500, log_interval=1)]
    assert apart_from_format(runs) == ["eval_steps 5", "eval_steps 500"]
    assert apart_from_optimizer([told(log_interval=n) for n in (1, 10)]) == [
        "log_interval 1",
        "log_interval 10",
    ]


def test_two_recipes_of_one_name_are_two_conditions():
    """They are called by their digests."""
    runs = [told(recipe={"name": "mine", "weight": fmt}) for fmt in ("E5M2", "E3M4", "E5M2")]
    one, other, again = apart_from_format(runs)
    assert one == again != other
    assert one.startswith("recipe mine ")


def test_settings_count_by_their_owner():
    """As --set calls them."""
    runs = [told(settings={"gpt": {"size": size}}) for size in ("tiny", "small")]
    assert apart_from_format(runs) == ["gpt.size tiny", "gpt.size small"]


def test_an_optimizer_and_its_settings_make_no_condition_of_it():
    """But the settings of anything else do."""
    aware = {"optimizer": "manifold-adamw", "use_manifold_aware": True}
    runs = [
        told(optimizer="adamw", settings={"adamw": {"weight_decay": 0.2}}),
        told(**aware, settings={"manifold-adamw": {"mode": "gradient"}}),
        told(**aware, settings={"manifold-adamw": {"mode": "update"}}),
        told(optimizer="adamw", settings={"gpt": {"size": "small"}}),
    ]
    assert apart_from_optimizer(runs) == ["gpt.size none"] * 3 + ["gpt.size small"]
    assert optimizers_of(runs) == [
        "adamw weight_decay=0.2",
        "manifold-adamw mode=gradient",
        "manifold-adamw mode=update",
        "adamw weight_decay=0.1",
    ]


def test_two_definitions_of_one_name_are_two_formats():
    """Written into the configuration, or installed; where none is recorded, the name is all."""
    mine = [{"name": "MINE", "mantissa": bits} for bits in (3, 1, 3)]
    runs = [Told("r", {"format": "MINE"}, {"format": own}) for own in mine]
    one, other, again = formats_of(runs)
    assert one == again != other
    assert one.startswith("MINE ")
    assert formats_of(runs[::2]) == ["MINE", "MINE"]
    digests = [{"format": "X", "format_digests": {"X": d, "Y": d}} for d in "ab"]
    installed = [Told("r", {"format": "X"}, own) for own in (*digests, {"format": "X"})]
    one, other, unknown = formats_of(installed)
    assert len({one, other, unknown}) == 3
    assert unknown == "X"
    assert formats_of(installed[1:]) == ["X", "X"]


def test_a_report_averages_no_two_formats_of_one_name(tmp_path):
    """Their losses are 1 and 3: nothing has a mean of 2."""
    about = {"format": "MINE", "status": "finished"}
    runs = [
        Told(
            f"{bits}-{seed}",
            {**about, "seed": seed, "final_loss": float(bits)},
            {"format": {"name": "MINE", "mantissa": bits}},
            run_id=f"{bits}-{seed}",
        )
        for bits in (3, 1)
        for seed in (1, 2)
    ]
    (path,) = FormatComparison().render(runs, tmp_path)
    assert "4 runs of 2 formats" in path.read_text()
    assert "| 1.0000 (no spread over the seeds)" in path.read_text()
