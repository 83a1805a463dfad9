"""Write tests/golden/kornia_views.npz: views of kornia, with the parameters that it drew.

    pip install kornia && python -m bench.kornia_golden

The file holds whole views of the published chain of augmentations (RandomResizedCrop, RandomHorizontalFlip,
ColorJiggle, RandomGrayscale, Normalize), and ColorJiggle alone in all 24 orders. The tests hold views.Augment against
it; kornia itself is needed here only.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.augment import kornia_transform

SIZE, CROP = 24, 21
N_IMAGES = 6
N_CALLS = 4
JIGGLE = (0.4, 0.4, 0.4, 0.1)
TARGET = Path(__file__).parents[1] / "tests" / "golden" / "kornia_views.npz"


def images(n: int, size: int) -> Tensor:
    """(n, 3, size, size) in [0, 1]: noise, and in the first ones black, white, grey and tied channels."""
    values = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    values[0, :, : size // 2] = 0.0
    values[0, :, size // 2 :, : size // 2] = 1.0
    values[1] = values[1, :1]
    values[2, 1] = values[2, 0]
    return values


def views(source: Tensor, seed: int) -> dict[str, Tensor]:
    """One call of the published chain and what kornia drew for it."""
    chain: Any = kornia_transform(CROP)
    torch.manual_seed(seed)
    result = chain(source)
    crop, flip, color, gray, _ = (item.data for item in chain._params)
    corners = crop["src"]  # (n, 4, 2): x and y of the corner pixels, clockwise from the top left
    active = color["batch_prob"] > 0.5
    found = {
        "left": corners[:, 0, 0],
        "top": corners[:, 0, 1],
        "width": corners[:, 1, 0] - corners[:, 0, 0] + 1,
        "height": corners[:, 3, 1] - corners[:, 0, 1] + 1,
        "flip": flip["batch_prob"] > 0.5,
        "jitter": active,
        "grayscale": gray["batch_prob"] > 0.5,
        "order": color["order"],
        "views": result,
    }
    for name in ("brightness", "contrast", "saturation", "hue"):
        drawn = color[f"{name}_factor"]
        whole = torch.full((len(source),), 0.0 if name == "hue" else 1.0)
        whole[active] = drawn if len(drawn) == int(active.sum()) else drawn[active]
        found[name] = whole
    return found


def jiggles(source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ColorJiggle in all 24 orders: the orders (24, 4), the factors (n, 4), and the images (24, n, 3, size, size)."""
    from kornia.augmentation import ColorJiggle

    n = len(source)
    factors = torch.tensor([[1.4, 1.4, 1.4, 0.1], [0.6, 0.6, 0.6, -0.1], [1.3, 0.7, 1.2, 0.05], [0.7, 1.3, 0.0, -0.03]])
    assert n == len(factors)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    results = []
    for order in orders:
        params: dict[str, Any] = {name: factors[:, i] for i, name in enumerate(names)}
        params |= {"order": order, "batch_prob": torch.ones(n, dtype=torch.bool)}
        params["forward_input_shape"] = torch.tensor(source.shape)
        results.append(ColorJiggle(*JIGGLE, p=1.0)(source, params=params))
    return orders, factors, torch.stack(results)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import kornia

    source = images(N_IMAGES, SIZE)
    calls = [views(source, seed) for seed in range(N_CALLS)]
    small = images(4, 8)
    orders, factors, jiggled = jiggles(small)
    arrays = {f"call{i}/{name}": value.numpy() for i, call in enumerate(calls) for name, value in call.items()}
    arrays |= {"images": source.numpy(), "small": small.numpy(), "jiggle/orders": orders.numpy()}
    arrays |= {"jiggle/factors": factors.numpy(), "jiggle/images": jiggled.numpy()}
    np.savez_compressed(TARGET, kornia=np.array(kornia.__version__), torch=np.array(torch.__version__), **arrays)
    print(f"{TARGET.name}: kornia {kornia.__version__}, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
