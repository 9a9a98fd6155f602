"""The training loop, and what it alone needs: the run and the step, dispatch, measuring, collapse.

Uses every room below: runs, quantization, config, hooks, numerics, recipes and formats.
"""

from altcore.engine.ambient_modes import only_run_autocast, plain_modes
from altcore.engine.as_built import AsBuilt
from altcore.engine.batch_digests import digest_of_weights
from altcore.engine.building import (
    build_alone,
    build_workload,
    choose_device,
    counted_in_steps,
    freeze,
    given_data,
    owners_of,
    workload_settings,
)
from altcore.engine.collapse import StallWindow, Trend
from altcore.engine.deferred_errors import DeferredErrors
from altcore.engine.epochs import Epoch
from altcore.engine.given_parts import given_from_python, identity_given
from altcore.engine.identity import changed_weights, data_of
from altcore.engine.loop import Engine
from altcore.engine.loop_warnings import LoopWarnings
from altcore.engine.measuring import (
    MeasureTable,
    QuantizedWeight,
    active_quantizers,
    interval_width_of,
    inverse_scale,
    join_moments,
    last_input,
    layer_of,
    mean_and_std,
    moments_without_zeros,
    nan_where_not_finite,
    on_grid,
    quantized_weights,
)
from altcore.engine.model_state import put_model
from altcore.engine.module_kinds import kinds_of
from altcore.engine.one_run import only_run
from altcore.engine.own_loop import OwnLoop
from altcore.engine.own_steps import StepWatch, unkept
from altcore.engine.own_stillness import standing_still
from altcore.engine.process_possessions import process_kept
from altcore.engine.randomness import random_state, seeded, set_random_state
from altcore.engine.resuming import resumed_with_keys, resumed_with_sources
from altcore.engine.setup import prepare
from altcore.engine.state import Run, Step, Workload
from altcore.engine.state_checks import check_weights
from altcore.engine.stateful import Stateful
from altcore.engine.torch_bindings import lasting_changes
from altcore.engine.torchrun import world_size

__all__ = [
    "AsBuilt",
    "DeferredErrors",
    "Engine",
    "Epoch",
    "LoopWarnings",
    "MeasureTable",
    "OwnLoop",
    "QuantizedWeight",
    "Run",
    "StallWindow",
    "Stateful",
    "Step",
    "StepWatch",
    "Trend",
    "Workload",
    "active_quantizers",
    "build_alone",
    "build_workload",
    "changed_weights",
    "check_weights",
    "choose_device",
    "counted_in_steps",
    "data_of",
    "digest_of_weights",
    "freeze",
    "given_data",
    "given_from_python",
    "identity_given",
    "interval_width_of",
    "inverse_scale",
    "join_moments",
    "kinds_of",
    "last_input",
    "lasting_changes",
    "layer_of",
    "mean_and_std",
    "moments_without_zeros",
    "nan_where_not_finite",
    "on_grid",
    "only_run",
    "only_run_autocast",
    "owners_of",
    "plain_modes",
    "prepare",
    "process_kept",
    "put_model",
    "quantized_weights",
    "random_state",
    "resumed_with_keys",
    "resumed_with_sources",
    "seeded",
    "set_random_state",
    "standing_still",
    "unkept",
    "workload_settings",
    "world_size",
]
