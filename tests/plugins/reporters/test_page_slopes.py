"""Pictures of loss-slope, noise and curvature: what they show is what was recorded."""

import math

import numpy as np
import pytest
from helpers_pages import run
from scipy import signal

from altcore_reporters.page.reporter import html_of
from altcore_reporters.page.slopes import _early, _law, _periodogram, fits_of_runs, spectrum

EACH, EPOCHS = 20, 10
SLOPE = -0.07


def lines():
    """A loss whose epochs' means fall along a line, and what the diagnostics say of it."""
    made = []
    for step in range(1, EACH * EPOCHS + 1):
        epoch = math.ceil(step / EACH)
        line = {"step": step, "loss": 2 + SLOPE * epoch + 0.1 * math.sin(2.6 * step)}
        if step % 5 == 0:
            line["loss-slope/point_loss"] = line["loss"]
        if step % EACH == 0:
            line |= {"loss-slope/epoch_loss": 2 + SLOPE * epoch, "loss-slope/knee_epoch": 3}
            line |= {"loss-slope/alpha_2_6": SLOPE, "noise/psd_tail": 0.5}
        made.append(line)
    made[-1] |= {
        "loss-slope/power_law_amplitude": 3.0,
        "loss-slope/power_law_slope": -0.5,
        "loss-slope/r_squared": 0.99,
        "curvature/lambda_max": 12.0,
        "curvature/hutchinson_trace": 345.0,
    }
    return made


def record(**parts):
    return run(steps=EACH * EPOCHS, metrics=lines(), config={"steps_per_epoch": EACH}, **parts)


def test_the_curves_are_those_that_were_fitted():
    (law,) = _law(lines(), EACH)
    assert (law.steps[0], law.steps[-1]) == (3 * EACH, EPOCHS * EACH)
    assert law.values[-1] == pytest.approx(3.0 * EPOCHS**-0.5)
    (early,) = _early(lines(), EACH)
    assert early.steps == [30, 90]  # the middles of epochs 2 and 5
    assert early.values == pytest.approx([2 + SLOPE * 2, 2 + SLOPE * 5])


def test_the_spectrum_is_that_of_the_last_losses():
    found = spectrum(record())
    assert found.about == "steps 181 to 200, power by frequency"
    x = [line["loss"] for line in lines()[-EACH:]]
    frequencies, power = _periodogram(x)
    expected = signal.periodogram(x, window="hann", detrend="constant")
    assert np.allclose(frequencies, expected[0])
    assert np.allclose(power, expected[1])
    assert spectrum(run(metrics=lines()[: EACH - 1])) is None


def test_the_page_of_a_run_shows_them():
    page = html_of([record()])
    for told in (
        "Mean loss and its fits",
        "power law -0.5, R² 0.990; early slope -0.07 an epoch",
        "Largest eigenvalue of the Hessian",
        "Trace of the Hessian",
        "Spectrum of the training loss",
        "psd_tail is 0.5",
    ):
        assert told in page
    assert "Noise and fits" not in html_of([run()])


def test_a_run_whose_length_is_in_steps_has_its_curves_too():
    """Its configuration does not say how long an epoch is; its lines do."""
    counted = [{**line, "epoch": line["step"] / EACH} for line in lines()]
    page = html_of([run(steps=EACH * EPOCHS, metrics=counted)])
    assert "<title>power law</title>" in page
    assert "<title>early slope</title>" in page


def finding(r_squared):
    row = {"alpha_full": None, "r_squared": r_squared}
    return {"findings": {"loss-slope": [row, "a line"]}}


def test_how_well_the_law_fits_several_runs():
    """Runs that were not fitted are counted; runs without the diagnostic are not."""
    records = [run(seed=i, summary=finding(r)) for i, r in enumerate((0.99, 0.981, 0.5, None))]
    found = fits_of_runs([*records, run(seed=9)])
    assert found.note == "2 of 4 runs (50\u00a0%) reach 0.98. Not fitted: 1."
    assert found.rows == [
        ("0.5 to 0.525", ["1"]), ("0.975 to 1", ["2"])
    ]  # fmt: skip
    assert "How well a power law fits the loss" in html_of([*records, run(seed=9)])
    assert fits_of_runs([run(), run(seed=9)]) is None
