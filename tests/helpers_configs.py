"""The original experiments' files, and configurations as files and flags give them."""

import yaml
from helpers_cli import ROOT

from altcore.errors import Source
from altcore.yaml_files import load_yaml

CONFIGS = ROOT / "experiments" / "configs"
NAMES = (
    "bf16_baseline",
    "e5m2_fp8",
    "e5m2_short",
    "e0m7_uniform",
    "e1m6_uniform",
    "e3m4_uniform",
    "e7m0_uniform",
    "e5m2_standard",
    "e5m2_manifold",
)


def path(name):
    return CONFIGS / f"{name}.yaml"


def held(name):
    return load_yaml(path(name).read_text(), Source(name))


def by_set(**keys):
    return [(k.replace("__", "."), v, Source(flag="--set")) for k, v in keys.items()]


def preset(name="format-experiment"):
    return [("preset", name, Source(flag="--preset"))]


def write(folder, **keys):
    file = folder / "flat.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file
