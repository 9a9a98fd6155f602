"""Answers of studies that tests make up: what explain.json and compare.json hold."""

from __future__ import annotations

from typing import Any

HOSTILE = "a_b|<i>&50%\u202e"
"""A name that each format of a rendering has to escape."""


def estimate(mean: float, half: float = 0.1, **more: Any) -> dict[str, Any]:
    """Return a row of an answer."""
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "n": 2,
        "p": 0.5,
        "stalled": None,
        **more,
    }


def about(command: str) -> dict[str, Any]:
    """Return what every answer says about its runs."""
    return {
        "command": command,
        "page": command,
        "study": "mine",
        "shell": f"altcore {command} --name mine",
        "altcore": "0.1.0",
        "torch": "2.13.0",
        "optimizer": "adamw",
        "workload_facts": {"sha256": "1e0a", "parameters": 34688, "batch_size": 8},
        "training": {"schedule": "cosine", "warmup_steps": 6, "grad_clip": 1.0},
        "format": HOSTILE,
        "seeds": [42, 43],
        "looks": {"2": 1.0},
        "within": 0.05,
        "recipe_files": {},
        "workload": "gpt",
        "settings": {},
        "plugins": [],
        "steps": 60,
        "learning_rate": 0.002,
        "rates": None,
        "compute": "float32",
        "cautions": ["60 steps are few"],
    }


def curve(best: float, *points: tuple[float, list[Any]], edge: str | None = None) -> dict[str, Any]:
    """Return an arm's losses over its learning rates."""
    told = [{"factor": f, "losses": x, "diverged": x.count("inf")} for f, x in points]
    return {"factor": best, "edge": edge, "curve": told}


RATES = curve(1.0, (1 / 3, [3.2]), (1.0, [3.0, 3.1]), (3.0, ["inf"]))


MEASURED = (
    "overflow_rate",
    "gradient_clipped_by_plugins",
    "gradient_clipped",
    "flushed_rate",
    "stored_stall_rate",
    "view_stall_rate",
)


def explain_answer() -> dict[str, Any]:
    """Return an explanation of a recipe that stores weights and does nothing else."""
    row = estimate(0.4, p=0.01, p_holm=0.01, diverged=0, guilty=True)
    verdict = {"verdict": "beyond", "reason": "the interval begins above 0.05"}
    cause = {"operands": ["stored_weight"], "group": None, "roundings": ["nearest-even"]}
    cause |= {"gap": row, "cause": "finer", "fixed_point": False}
    cause |= {"counterfactuals": {"finer": estimate(0.3, recovered=0.75)}}
    return {
        "about": {**about("explain"), "recipe": "pure"},
        "operands_of": {"U": ["stored_weight"]},
        "arms": {"U": row},
        "frozen": estimate(1.5, diverged=0),
        "null": estimate(0.0, 0.01, detectable=0.02),
        "effects": {"U": estimate(0.4)},
        "shapley": {"U": estimate(0.4)},
        "full": {**row, **verdict},
        "onset": {"42": None},
        "factor": "U",
        "factor_distinguishable": True,
        "learning_rate_factor_inside": 1.0,
        "operands": {"stored_weight": row},
        "groups": {HOSTILE: row, "h.0": estimate(-0.01, p_holm=1.0, diverged=0, guilty=False)},
        "operand": "stored_weight",
        "group": HOSTILE,
        "layer": None,
        "causes": [cause],
        "cause": "finer",
        "candidates": [
            {
                "change": "left in float32",
                "gap": estimate(0.0),
                "closed": 1.0,
                "stalled": None,
                **verdict,
            }
        ],
        "recommendation": "left in float32",
        "learning_rates": {"twin": RATES, "U": RATES, "frozen": RATES},
    }


def compare_answer() -> dict[str, Any]:
    """Return a comparison of two arms, one of which is held against the other."""
    arms = {HOSTILE: 0.4, "E4M3": 0.02}
    overflow = {"mean": 0.001, "largest": 0.01, "step": 7, "seed": 42}
    rows = [
        {
            "arm": arm,
            "key": "one",
            "format": arm,
            "recipe": "pure",
            "rounding": None,
            "optimizer": "adamw",
            "plugins": "none",
            "gap": estimate(gap, p=0.01),
            "p_holm": 0.01,
            "frozen": estimate(1.5),
            "detectable": 0.03,
            "diverged": 0,
            "learned": 2,
            "twin_learned": 2,
            "verdict": "beyond",
            "reason": "why",
            "settings": {},
            "loss": estimate(2.9 + gap),
            "val_loss": estimate(3.0 + gap),
            "bits_per_byte": None,
            "rates": {**dict.fromkeys(MEASURED), "overflow_rate": overflow},
        }
        for arm, gap in arms.items()
    ]
    difference = {"arm": "E4M3", "against": HOSTILE, "difference": estimate(-0.38), "p_holm": 0.02}
    judged = {"verdict": "better", "reason": ""}
    entrants = {"formats": list(arms), "recipes": ["pure"], "arms": {}, "ablate": {}}
    entrants |= {"against": None, "metric": "train"}
    twin = {"loss": estimate(2.9), "val_loss": estimate(3.0), "bits_per_byte": None}
    twin |= {"key": "twin", "learned": 2}
    twin |= {"null": estimate(0.0, 0.01, detectable=0.02)}
    return {
        "about": {**about("compare"), **entrants},
        "contenders": rows,
        "differences": [{**difference, "share_closed": estimate(0.95), **judged}],
        "twins": {"adamw": twin},
        "validation": {"batches": 8, "items": 64, "error": 0.02, "enough": 40},
        "learning_rates": {"twin": RATES, "one": RATES},
    }
