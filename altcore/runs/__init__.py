"""The run directory: writing, reading back, provenance and checkpoints.

Uses config, recipes and formats. What reads and writes tensors is loaded when it is first used, so
that a record is read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from altcore.builtin_types import to_json
from altcore.durable import no_space_named, replace_text
from altcore.run_files import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    EVENTS,
    METRICS,
    SUMMARY,
    TIMINGS,
)
from altcore.runs.alike import other_code, other_data, several, unlike_most
from altcore.runs.as_left import altered, lines_of, warn_of_altered
from altcore.runs.digests import contents, stamps
from altcore.runs.directory import RunDirectory, write_configuration
from altcore.runs.directory_lock import DirectoryLock, OtherWriter, is_being_written
from altcore.runs.edited_files import edited
from altcore.runs.environment_file import check_environment, has_environment, read_environment
from altcore.runs.files_in_settings import file_digests, named_files, stamps_of_files
from altcore.runs.history import TAIL, early_and_late, finite, mean_of, step_lines, tail
from altcore.runs.identity import (
    BUFFERS,
    CHANGES,
    CODE,
    DIGITS,
    HOOKS,
    INITIAL_WEIGHTS,
    MODULES,
    NAME,
    OPTIONS,
    UNKNOWN,
    VALUES,
    code_given,
    code_of,
    configuration_identity,
    data_identity,
    entries_of,
    files_of,
    given_in,
    identity_of,
    platform_of,
    plugin_digest,
    whole_settings,
)
from altcore.runs.identity_changes import (
    BITS,
    DECIDES,
    KEPT,
    NAMES,
    NOTED,
    Change,
    ChangedRun,
    about_platform,
    changed_modules,
    check_changes,
    compare,
)
from altcore.runs.json_files import DIGEST, is_as_written, read_json, with_digest
from altcore.runs.json_lines import (
    AFTER_PLUGINS,
    damaged_lines,
    from_json,
    read_lines,
    read_new_lines,
)
from altcore.runs.kept import Kept, by_merit, list_checkpoints
from altcore.runs.log_file import has_lost_lines
from altcore.runs.manifest import (
    ANOMALY,
    ENDED_PHASE,
    REGULAR,
    TRAINED,
    TRAINING,
    WEIGHTS,
    check_no_linked,
    checkpoints_in,
    folder_of,
    is_checkpoint,
)
from altcore.runs.missing import (
    BEST,
    LATEST,
    kept_checkpoints,
    lost_since,
    missing_checkpoints,
    warn_of_missing,
)
from altcore.runs.naming import as_name, recipe_label
from altcore.runs.other_ranks import UnwrittenDirectory
from altcore.runs.own_checkpoint import has_record_of, restorable
from altcore.runs.reading import (
    find_run,
    identity_in,
    last_written,
    list_runs,
    read_configuration,
    sample_losses,
    summary_of,
)
from altcore.runs.record import DirectoryRecord, RunRecord, full_summary, read_run, read_runs
from altcore.runs.record_problems import differences_of, problems_of
from altcore.runs.restoring import bring_back_environment, is_edited, restore
from altcore.runs.run_id import RUN_ID, check_run_id, run_id_of
from altcore.runs.source import source_digest
from altcore.runs.summary import (
    ENDED,
    EVALUATED,
    STATUSES,
    UNFINISHED,
    Summary,
    has_summary,
)
from altcore.runs.summary_text import change_line, number, summary_lines
from altcore.runs.verdict import has_learned, verdict_of

if TYPE_CHECKING:
    from altcore.runs.checkpoint import (
        WEIGHTS_FILE,
        Checkpoint,
        NoCheckpoint,
        find_end,
        has_checkpoint,
        load_checkpoint,
        load_if_valid,
        load_newest,
        save_checkpoint,
        save_snapshot,
        set_aside,
        tidy,
        update_manifest,
    )
    from altcore.runs.loop_folder import (
        OWN,
        VALUE,
        check_loop_folder,
        check_newest,
        comparable,
        folder_at,
        lock_folder,
        save_of_loop,
        saving_alone,
    )
    from altcore.runs.loop_id import newest_in, of_loop, take_over
    from altcore.runs.provenance import environment
    from altcore.runs.retention import retain
    from altcore.runs.tensor_files import check_readable

_NEED_TORCH = {
    "WEIGHTS_FILE": "checkpoint",
    "Checkpoint": "checkpoint",
    "NoCheckpoint": "checkpoint",
    "find_end": "checkpoint",
    "has_checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
    "load_if_valid": "checkpoint",
    "load_newest": "checkpoint",
    "save_checkpoint": "checkpoint",
    "save_snapshot": "checkpoint",
    "set_aside": "checkpoint",
    "tidy": "checkpoint",
    "update_manifest": "checkpoint",
    "OWN": "loop_folder",
    "VALUE": "loop_folder",
    "check_loop_folder": "loop_folder",
    "check_newest": "loop_folder",
    "comparable": "loop_folder",
    "folder_at": "loop_folder",
    "lock_folder": "loop_folder",
    "save_of_loop": "loop_folder",
    "saving_alone": "loop_folder",
    "newest_in": "loop_id",
    "of_loop": "loop_id",
    "take_over": "loop_id",
    "environment": "provenance",
    "retain": "retention",
    "check_readable": "tensor_files",
}
"""Names that need torch, and their modules."""

__all__ = [
    "AFTER_PLUGINS",
    "ANOMALY",
    "BEST",
    "BITS",
    "BUFFERS",
    "CHANGES",
    "CHECKPOINTS",
    "CODE",
    "CONFIG",
    "DECIDES",
    "DIGEST",
    "DIGITS",
    "ENDED",
    "ENDED_PHASE",
    "ENVIRONMENT",
    "EVALUATED",
    "EVENTS",
    "HOOKS",
    "INITIAL_WEIGHTS",
    "KEPT",
    "LATEST",
    "METRICS",
    "MODULES",
    "NAME",
    "NAMES",
    "NOTED",
    "OPTIONS",
    "OWN",
    "REGULAR",
    "RUN_ID",
    "STATUSES",
    "SUMMARY",
    "TAIL",
    "TIMINGS",
    "TRAINED",
    "TRAINING",
    "UNFINISHED",
    "UNKNOWN",
    "VALUE",
    "VALUES",
    "WEIGHTS",
    "WEIGHTS_FILE",
    "Change",
    "ChangedRun",
    "Checkpoint",
    "DirectoryLock",
    "DirectoryRecord",
    "Kept",
    "NoCheckpoint",
    "OtherWriter",
    "RunDirectory",
    "RunRecord",
    "Summary",
    "UnwrittenDirectory",
    "about_platform",
    "altered",
    "as_name",
    "bring_back_environment",
    "by_merit",
    "change_line",
    "changed_modules",
    "check_changes",
    "check_environment",
    "check_loop_folder",
    "check_newest",
    "check_no_linked",
    "check_readable",
    "check_run_id",
    "checkpoints_in",
    "code_given",
    "code_of",
    "comparable",
    "compare",
    "configuration_identity",
    "contents",
    "damaged_lines",
    "data_identity",
    "differences_of",
    "early_and_late",
    "edited",
    "entries_of",
    "environment",
    "file_digests",
    "files_of",
    "find_end",
    "find_run",
    "finite",
    "folder_at",
    "folder_of",
    "from_json",
    "full_summary",
    "given_in",
    "has_checkpoint",
    "has_environment",
    "has_learned",
    "has_lost_lines",
    "has_record_of",
    "has_summary",
    "identity_in",
    "identity_of",
    "is_as_written",
    "is_being_written",
    "is_checkpoint",
    "is_edited",
    "kept_checkpoints",
    "last_written",
    "lines_of",
    "list_checkpoints",
    "list_runs",
    "load_checkpoint",
    "load_if_valid",
    "load_newest",
    "lock_folder",
    "lost_since",
    "mean_of",
    "missing_checkpoints",
    "named_files",
    "newest_in",
    "no_space_named",
    "number",
    "of_loop",
    "other_code",
    "other_data",
    "platform_of",
    "plugin_digest",
    "problems_of",
    "read_configuration",
    "read_environment",
    "read_json",
    "read_lines",
    "read_new_lines",
    "read_run",
    "read_runs",
    "recipe_label",
    "replace_text",
    "restorable",
    "restore",
    "retain",
    "run_id_of",
    "sample_losses",
    "save_checkpoint",
    "save_of_loop",
    "save_snapshot",
    "saving_alone",
    "set_aside",
    "several",
    "source_digest",
    "stamps",
    "stamps_of_files",
    "step_lines",
    "summary_lines",
    "summary_of",
    "tail",
    "take_over",
    "tidy",
    "to_json",
    "unlike_most",
    "update_manifest",
    "verdict_of",
    "warn_of_altered",
    "warn_of_missing",
    "whole_settings",
    "with_digest",
    "write_configuration",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module 'altcore.runs' has no attribute {name!r}")
    return getattr(import_module(f"altcore.runs.{_NEED_TORCH[name]}"), name)
