"""Any configuration is refused by the key that is wrong, or comes back from its own file."""

import math
from typing import Any

import pytest
from attrs import fields
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altcore.config import TrainConfig, load_config, save_config
from altcore.errors import BadInput, shown

KEYS = [f.name for f in fields(TrainConfig)]
SETTINGS = ["gpt.size", "gpt.n_layer", "gpt.data", "gpt.dropout", "adamw.beta1", "adamw.wd"]
SETTINGS += ["rollback.steps", "ulp-stats.interval", "gpt", "rollback", "size"]
ORIGINAL = ["batch_size", "block_size", "n_layer", "use_ulp_stats", "preset", "num_epochs"]
WORDS = ["E4M3", "E5M2", "MXFP4", "none", "master", "pure", "nvfp4", "gpt", "adamw", "sgd", "cpu"]
WORDS += ["cuda:1", "tiny", "cosine", "wsd", "min", "val_loss", "rollback", "ulp-stats", "auto"]
WORDS += ["stochastic", "1 epoch", "1/4 epoch", "../x", "a b", "", "<script>", "\x1b[31m", "~"]
ROLES = ["weight", "activation@fprop", "gradient", "stored_weight", "skip", "layers", "optimizer"]

scalars = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=12),
    st.integers(-3, 400),
    st.sampled_from([0, 1, 2, 10**20, -(2**63), 1e-3, 0.5, 1.0, math.nan, math.inf, -0.0]),
    st.floats(),
    st.booleans(),
    st.none(),
)
recipes = st.dictionaries(
    st.sampled_from(ROLES) | st.text(max_size=6),
    st.sampled_from(WORDS)
    | st.fixed_dictionaries({"format": st.sampled_from(WORDS)}, optional={"rounding": scalars}),
    max_size=3,
)
values = st.one_of(
    scalars,
    scalars,
    recipes,
    st.lists(scalars, max_size=3),
    st.dictionaries(st.sampled_from([*WORDS, 3, None]), scalars, max_size=3),
)


def likely(key: str) -> st.SearchStrategy[Any]:
    """Values of the type that a key has by default, and a few of any other."""
    default = DEFAULTS.get(key)
    kinds: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(0, 300),
        float: st.floats(0, 2),
        str: st.sampled_from(WORDS),
        tuple: st.lists(st.sampled_from(WORDS), max_size=3),
    }
    usual = next((s for kind, s in kinds.items() if isinstance(default, kind)), scalars)
    return st.one_of(usual, usual, usual, values)


DEFAULTS = {name: getattr(TrainConfig(), name) for name in KEYS}
NAMES = [*KEYS, *SETTINGS, *ORIGINAL]
pairs = st.sampled_from(NAMES).flatmap(lambda key: st.tuples(st.just(key), likely(key)))
odd = st.tuples(st.text(max_size=10), scalars)
configurations = st.lists(st.one_of(*[pairs] * 9, odd), max_size=4, unique_by=lambda pair: pair[0])


def check(pairs: list[tuple[str, Any]], folder: Any) -> None:
    """Load a configuration; if it is valid, load its file as well."""
    try:
        config = load_config(overrides=[(key, value, None) for key, value in pairs])
    except BadInput as error:
        refused = error
    else:
        file = save_config(config, folder / "config.yaml")
        assert repr(load_config(file).to_plain()) == repr(config.to_plain())
        return
    text = str(refused)
    named = any(repr(key)[1:-1] in text or shown(key) in text for key, _ in pairs)
    assert refused.key or named, (pairs, text)


def checked(number: int) -> Any:
    """A test of this many configurations."""

    @settings(max_examples=number, suppress_health_check=list(HealthCheck))
    @given(pairs=configurations)
    def test(pairs: list[tuple[str, Any]], tmp_path_factory: Any) -> None:
        check(pairs, tmp_path_factory.getbasetemp())

    return test


test_any_configuration_is_refused_by_name_or_comes_back = checked(500)
test_many_configurations_are_refused_by_name_or_come_back = pytest.mark.exhaustive(checked(10_000))
