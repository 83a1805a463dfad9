"""Small packages of emoji pictures, laid out as npm unpacks the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mi_ml_gen.data.emoji import HOUSES

CATEGORIES = ("Smileys & Emotion", "Food & Drink")
TONES = ("1F3FB", "1F3FF")


def write_emoji(place: Path, n: int = 12, houses: tuple[str, ...] = tuple(HOUSES), side: int = 16) -> Path:
    """n emoji, the third of them in two skin tones, and a component: squares of a colour of their own (`colour_of`)
    in a transparent border of a quarter of the side. The last one is not drawn by the last house."""
    rows = [_row(f"{0x1F420 + i:X}", CATEGORIES[i % 2], i) for i in range(n)]
    rows[2]["skin_variations"] = {tone: {"unified": f"{rows[2]['unified']}-{tone}"} for tone in TONES}
    rows[3]["unified"] += "-FE0F"
    rows.append(_row("1F3FB", "Component", n))
    for house in houses:
        about = HOUSES[house]
        package = place / "node_modules" / about.package
        (package / about.pictures).mkdir(parents=True)
        (package / "package.json").write_text(json.dumps({"name": about.package, "version": about.version}))
        if house != "fluent":
            (package / "emoji.json").write_text(json.dumps(rows[::-1]))
        for i, row in enumerate(rows):
            tones = row.get("skin_variations", {}).values()
            for code in (row["unified"], *(tone["unified"] for tone in tones)):
                if i < n - 1 or house != houses[-1]:
                    picture = Image.fromarray(pixels_of(house, i, side * (4 if house == "fluent" else 1)), "RGBA")
                    picture.save(package / about.pictures / f"{code.lower()}{about.ending}", lossless=True)
    return place


def _row(code: str, category: str, order: int) -> dict:
    return {"unified": code, "category": category, "subcategory": f"{category} {order % 3}", "sort_order": order}


def colour_of(house: str, i: int) -> tuple[int, int, int]:
    return (10 * i % 250, 80 * list(HOUSES).index(house), 200 - 10 * i % 200)


def pixels_of(house: str, i: int, side: int) -> np.ndarray:
    """uint8 (side, side, 4)."""
    pixels = np.zeros((side, side, 4), np.uint8)
    quarter = side // 4
    pixels[quarter:-quarter, quarter:-quarter] = (*colour_of(house, i), 255)
    return pixels
