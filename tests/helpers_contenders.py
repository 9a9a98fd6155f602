"""Arms of a comparison for a small model that is only a list of layers."""

from altcore.config import load_config
from altcore.recipes import Layer
from altcore.study import Entrants
from altcore.study.contenders import contenders

LAYERS = [Layer(f"h.{i}.fc", "linear") for i in range(4)] + [Layer("head", "linear", is_head=True)]


def made(**asked):
    """Return the contenders that are asked for as `Entrants` takes them."""

    def configure(plugins, overrides):
        return load_config(None, overrides, plugins)

    return contenders(load_config(), LAYERS, Entrants(**asked), configure)
