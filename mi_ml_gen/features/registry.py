"""The networks by whose features images are measured, by name; this file imports no torch.

    imagenet          EfficientNet-Lite0 with ImageNet weights, from a small package (extra `features`)
    inception:FILE    the Inception network of published Frechet distances, from a weight file of yours

A network of the package is a function here that imports it when it is asked for. A user's enters by
`FEATURES.add("mine", Mine)` of a class derived from `FeatureNetwork`, by an entry point of the group
"mi_ml_gen.features", or as --features path/to/file.py:Mine. Your own encoder or classifier needs no entry:
`encoders.features` reads its file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import user_path
from mi_ml_gen.core.registry import Registry
from mi_ml_gen.hub.assets import check_path

if TYPE_CHECKING:
    from mi_ml_gen.features.base import FeatureNetwork


def _network_of_class(name: str, found: Any) -> type[FeatureNetwork]:
    from mi_ml_gen.features.base import FeatureNetwork

    if not (isinstance(found, type) and issubclass(found, FeatureNetwork)):
        raise UsageError(f"--features {name}: must be a class derived from mi_ml_gen.features.FeatureNetwork")
    return found


FEATURES: Registry[type[FeatureNetwork]] = Registry("features", "--features", "mi_ml_gen.features", _network_of_class)
"""Classes of feature networks by name."""


def is_network(reference: str) -> bool:
    """Whether a reference names a network of the registry or FILE.py:CLASS, and no file of a user's encoder."""
    name, _, _ = reference.partition(":")
    return name in FEATURES or reference.rpartition(":")[0].endswith(".py")


def check_features(flag: str, reference: str) -> None:
    """Refuse, by UsageError, what is neither a network of the registry nor a file or run folder that is there."""
    name, _, path = reference.partition(":")
    if name in FEATURES:
        if path and not user_path(path).is_file():
            raise UsageError(f"{flag} {reference}: no such file: {path}")
        if name == "inception" and not path:
            raise UsageError(f"{flag} inception: write inception:FILE with the weights of Frechet distances")
    elif not is_network(reference):
        check_path(flag, reference)


def load_network(reference: str) -> FeatureNetwork:
    """The network of NAME, NAME:FILE or FILE.py:CLASS, frozen, in evaluation mode.

    Raises UsageError where there is no such network, and what its `load` raises.
    """
    name, _, path = reference.partition(":")
    if name in FEATURES:
        network = FEATURES[name].load(path or None)
    else:
        network = FEATURES[reference].load()
    return network.eval().requires_grad_(False)


@FEATURES.lazily("imagenet")
def _imagenet() -> type[FeatureNetwork]:
    from mi_ml_gen.features.efficientnet import EfficientNetLite0

    return EfficientNetLite0


@FEATURES.lazily("inception")
def _inception() -> type[FeatureNetwork]:
    from mi_ml_gen.features.inception import InceptionFID

    return InceptionFID
