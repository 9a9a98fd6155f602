"""Every diagnostic that is installed takes a sample at the first step, whatever its interval."""

from altcore.registry import entries

DIAGNOSTICS = [e.name for e in entries() if e.kind == "diagnostic"]


def test_every_diagnostic_measures_the_first_step(start):
    """The record shows how the run began; step 2 is no business of theirs."""
    run = start(DIAGNOSTICS, strict=True, format="E4M3", recipe="master", max_steps=2)
    (line,) = run.diagnostics_history
    assert line["step"] == 1
    assert {key.partition("/")[0] for key in line} == {"step", *DIAGNOSTICS}


def test_so_it_does_with_weights_on_a_grid(start):
    """Where weights are stored and gradients rounded, each has something to say, too."""
    run = start(DIAGNOSTICS, strict=True, format="E3M4", recipe="pure", max_steps=2)
    (line,) = run.diagnostics_history
    assert {key.partition("/")[0] for key in line} == {"step", *DIAGNOSTICS}
