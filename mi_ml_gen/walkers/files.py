"""Walkers in files: ours, and the published ones, of which nothing is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.weights import Content, Kind, Published, register_kind
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers import directions, grouped, noise, scaled  # noqa: F401 - they register their walkers
from mi_ml_gen.walkers.base import Walker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.published import read_walker
from mi_ml_gen.walkers.registry import build_walker

FORMAT = "mi_ml_gen walker"


def save_walker(path: str | Path, walker: Walker, **about: Any) -> Path:
    """Write `path`.safetensors, with the walker's configuration and `about` (generator, number of training samples,
    seed ...) in its head, and the same for people as `path`.json. The suffix may be given or left out. Gives the
    safetensors path. Raises NonFiniteError, and writes nothing, for weights that are no finite numbers."""
    path = _with_suffix(Path(path), ".safetensors")
    weights.write(path, WalkerFiles.name, walker.state_dict(), walker.config(), about)
    return path


def load_walker_file(path: str | Path, device: torch.device | str | None = None) -> Walker:
    """Read one walker that `save_walker` wrote (either of its two files), or a published pickle, which is never run."""
    path = hub.local_path(path)
    if path.suffix not in (".safetensors", ".json"):
        return read_published(path).to(device)
    walker = weights.load(_weights_of(path), WalkerFiles.name)
    assert isinstance(walker, Walker)
    walker.about = read_about(path)
    return walker.to(device)


def read_published(path: str | Path) -> NonlinearWalker:
    """The walker in a published pickle, whatever its name; raises as `load_walker`."""
    path = hub.local_path(path)
    published = read_walker(path)
    weights.check_finite(path, published.state)
    width = len(published.state["walker.0.bias"])
    # COP-Gen's walker records no chunks: it perturbs all of BigBiGAN's.
    start, stop = published.attributes.get("start", 0), published.attributes.get("stop", 6)
    walker = NonlinearWalker(Chunks(start, stop), width)
    walker.load_state_dict(published.state)
    return walker


def read_about(path: str | Path) -> dict[str, Any]:
    """What `save_walker` was told about a walker; empty for a published file."""
    path = Path(path)
    if path.suffix not in (".safetensors", ".json"):
        return {}
    return weights.read(_weights_of(path), WalkerFiles.name).about


@register_kind
class WalkerFiles(Kind[Walker]):
    """Walkers of all kinds in files."""

    name = "walker"
    models = Walker
    file = "walker.safetensors"
    about = (
        "A walker: it perturbs chunks (latent variables) of a generator, learned so that an image and its perturbed "
        "partner share as little information as a critic can find. The generator has weights and a licence of its own."
    )
    use = (
        "from mi_ml_gen.generators import load_generator\n"
        "from mi_ml_gen.latents import TruncatedNormal\n"
        "from mi_ml_gen.walkers import Walker\n\n"
        'generator = load_generator("{generator}")\n'
        'walker = Walker.from_pretrained("{repo}")\n'
        "z = TruncatedNormal().sample((8, generator.noise_dim))\n"
        "pair = walker(generator, z)\n"
        "anchors, positives = generator.decode(pair.anchor), generator.decode(pair.positive)"
    )

    def build(self, config: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Walker:
        walker = build_walker(config)
        walker.load_state_dict(tensors)
        return walker

    def description(self, content: Content) -> str:
        return json.dumps({"format": FORMAT, **content.config, "about": content.about}, indent=2) + "\n"

    def older(self, path: Path, tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> Content | None:
        """0.1 had the configuration in the .json beside the weights only."""
        if metadata.get("format") != FORMAT:
            return None
        beside = weights.description_file(path)
        try:
            description = json.loads(beside.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{beside}: no such file; this walker's configuration is in it") from None
        except (OSError, ValueError, RecursionError) as error:
            raise CorruptCheckpointError(f"{beside}: not a walker's description: {error}") from None
        if (
            not isinstance(description, dict)
            or not isinstance(description.get("about"), dict)
            or "kind" not in description
        ):
            raise CorruptCheckpointError(f"{beside}: not a walker's description")
        config = {key: value for key, value in description.items() if key not in ("format", "about")}
        return Content(self.name, config, description["about"], tensors)

    def published(self, root: Any, source: Path) -> Published | None:
        if type(root) is not dict or "nn_walker" not in root:
            return None
        walker = read_published(source)
        return Published(
            f"walker on chunks {', '.join(map(str, walker.chunks))}",
            lambda target: save_walker(target, walker, source=source.name),
            "--walker {path}",
        )


def _weights_of(path: Path) -> Path:
    """The .safetensors file of a walker that either of its files names. Raises UsageError where it is not there."""
    found = _with_suffix(path, ".safetensors")
    if not path.is_file() or not found.is_file():
        missing = found if path.is_file() else path
        raise UsageError(f"{missing}: no such file; a walker is a .safetensors file with a .json beside it")
    return found


def _with_suffix(path: Path, suffix: str) -> Path:
    known = (".safetensors", ".json")
    return path.with_suffix(suffix) if path.suffix in known else path.with_name(path.name + suffix)
