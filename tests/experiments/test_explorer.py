"""The explorer: what its sliders reach, what the page holds, and that the page works in a browser."""

from __future__ import annotations

import json

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.experiments import explorer
from mi_ml_gen.experiments.explorer import explore, known_facts, positions_for, sliders, turned, walk_of
from mi_ml_gen.experiments.settings import ExplorerConfig
from mi_ml_gen.generators.known import SIZES
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import NonlinearWalker
from tests.browser import Browser
from tests.conftest import make_small_generator


@pytest.fixture
def settings(tmp_path):
    save_generator(tmp_path / "small.safetensors", make_small_generator(), "bigbigan")

    def made(**changes):
        small = dict(generator="bigbigan", g_path=str(tmp_path / "small.safetensors"), out=tmp_path / "explorer.html",
                     n_anchors=2, positions=5, device="cpu")  # fmt: skip
        return ExplorerConfig(**small | changes)

    return made


@pytest.fixture
def table1(tmp_path):
    """A folder with a walker for chunk 1 of the small generator."""
    torch.manual_seed(0)
    walker = NonlinearWalker("1_2", 4)
    for parameter in walker.parameters():
        parameter.data.mul_(50)
    save_walker(tmp_path / "t1" / "chunk1" / "walker", walker)
    return tmp_path / "t1"


def test_sliders_cover_all_chunks():
    assert sliders(4, 4) == [Chunks(i, i + 1) for i in range(4)]
    assert list(map(str, sliders(6, 4))) == ["0_2", "2_3", "3_4", "4_6"]
    assert list(map(str, sliders(7, 4, (Chunks(5, 6), Chunks(1, 3))))) == ["0_1", "1_3", "3_5", "5_6", "6_7"]
    for n_chunks in range(1, 20):
        groups = sliders(n_chunks, 4)
        assert [i for group in groups for i in range(group.start, group.stop)] == list(range(n_chunks))


def test_positions_fit():
    assert positions_for(1, 1) == 11 and positions_for(4, 3) == 7 and positions_for(4, 6) == 5
    assert positions_for(9, 3) == 3


def test_a_random_direction_begins_at_the_anchor_ends_at_a_new_draw_and_keeps_the_distribution():
    noise = TruncatedNormal(0.5, 2.0, float("inf"))
    rng = torch.Generator().manual_seed(0)
    z, other = noise.sample((1, 40_000), rng), noise.sample((1, 40_000), rng)
    moved = turned(z, other, slice(0, 30_000), noise, 5)
    assert torch.equal(moved[2], z[0]) and torch.equal(moved[:, 30_000:], z[:, 30_000:].expand(5, -1))
    assert torch.allclose(moved[4, :30_000], other[0, :30_000], atol=1e-6)
    assert torch.allclose(moved[0, :30_000] - 0.5, 0.5 - other[0, :30_000], atol=1e-6)
    assert torch.allclose(moved[:, :30_000].mean(1), torch.tensor(0.5), atol=0.05)
    assert torch.allclose(moved[:, :30_000].std(1), torch.tensor(2.0), atol=0.05)
    within = turned(z, other, slice(0, 30_000), TruncatedNormal(0.5, 2.0, 1.0), 5)
    assert within[:, :30_000].sub(0.5).abs().max() <= 2.0


def test_the_lattice_holds_what_the_generator_makes(monkeypatch, settings):
    """An image in a sheet, at the place that the page computes, is the decoded mixture of the sliders' latents."""
    sheets = []
    monkeypatch.setattr(explorer, "_jpeg", lambda tiles, per_row: sheets.append(tiles) or "data:,")
    explore(settings(n_anchors=1, positions=3), progress=False)
    generator = make_small_generator()
    groups = [Chunks(0, 1), Chunks(1, 2)]
    walk = walk_of(generator, groups, 3, TruncatedNormal(), 0, 0)
    (tiles,) = sheets
    assert len(tiles) == 9
    for first in range(3):
        for second in range(3):
            latents = torch.cat([walk.latents[0][first], walk.latents[1][second]])[None]
            image = (generator.decode(latents)[0] * 255).round().byte().permute(1, 2, 0).numpy()
            assert abs(tiles[first * 3 + second].astype(int) - image.astype(int)).max() <= 1
    assert walk.deltas[0][1] == 0 and walk.deltas[0][0] > 0
    assert walk.deltas[0][2] == pytest.approx((walk.latents[0][2] - walk.latents[0][1]).norm().item(), abs=1e-3)


def test_a_learned_walker_moves_along_its_displacement(settings, table1):
    generator = make_small_generator()
    walker = explorer.learned_walkers(table1, generator, TruncatedNormal(), 0, torch.device("cpu"))
    walk = walk_of(generator, [Chunks(0, 1), Chunks(1, 2)], 5, TruncatedNormal(), 0, 0, walker)
    z = TruncatedNormal().sample((1, 8), explorer.runtime.stream(0, "explorer: anchor", 0, 0))
    pair = walker(generator, z)
    assert torch.allclose(walk.latents[1][2], pair.positive[0, 4:], atol=1e-6)
    assert torch.equal(walk.latents[1][0], pair.anchor[0, 4:])
    assert walk.deltas[1][4] == pytest.approx(2 * walk.deltas[1][2], rel=1e-3) and walk.deltas[1][2] > 0.1


def test_what_was_measured_is_said_of_its_chunks(tmp_path):
    found = {"nats": 1.234, "interval_nats": [1.1, None], "verdict": "consistent"}
    cell = {"chunks": "0_1", "delta": {"mean": 5.5}, "shared": found, "carried": None, "class_lost": None}
    (tmp_path / "map.json").write_text(json.dumps({"ranges": [cell]}))
    row = {"chunks": "0_1", "delta": 1.5, "bound (nats)": 2.5, "verdict": "not converged"}
    (tmp_path / "table1.json").write_text(json.dumps([row]))
    said = known_facts(Chunks(0, 1), tmp_path / "map.json", tmp_path / "table1.json")
    assert said == [
        "Redrawn, it moves by 5.50 on average.",
        "Redrawn, it leaves 1.23 nats (at least 1.10; consistent).",
        "Its learned walker moves it by 1.50 on average (one training; no interval over trainings).",
        "The walker leaves 2.50 nats by the critic of its training (no interval; not converged).",
    ]
    # The verdict of a row with a fresh critic is that of its number, and not of the bound.
    row |= {"95% interval": "1.20 to 1.80", "remaining (nats)": 3.5, "at least (nats)": 3.25, "verdict": "consistent"}
    (tmp_path / "table1.json").write_text(json.dumps([row]))
    assert known_facts(Chunks(0, 1), None, tmp_path / "table1.json") == [
        "Its learned walker moves it by 1.50 on average (1.20 to 1.80, 95% over trainings).",
        "The walker leaves 3.50 nats by a fresh critic (at least 3.25; consistent).",
    ]
    assert known_facts(Chunks(1, 2), tmp_path / "map.json", None) == []
    with pytest.raises(UsageError, match="--map"):
        known_facts(Chunks(0, 1), tmp_path / "table1.json", None)


def test_noise_is_not_called_learned(settings, table1):
    generator = make_small_generator()
    for written, name in (("0_1=0.5", explorer.GIVEN), (str(table1), explorer.LEARNED)):
        walker = explorer.learned_walkers(written, generator, TruncatedNormal(), 0, torch.device("cpu"))
        assert explorer._learned_kind(sliders(2, 2, walker.chunks), walker, 3).name == name


def test_a_page_that_is_too_large_is_refused_and_not_written(monkeypatch, settings):
    monkeypatch.setattr(explorer, "MOST_BYTES", 1000)
    with pytest.raises(UsageError, match="MB for 50 images"):
        explore(settings(), progress=False)
    with pytest.raises(UsageError, match="fewer sliders"):
        explore(settings(positions=101, n_anchors=20), progress=False)
    assert not settings().out.exists()


def test_wrong_settings_are_refused(settings, tmp_path):
    for changes, says in (
        ({"positions": 4}, "must be odd"),
        ({"out": tmp_path / "page.png"}, "must end in .html"),
        ({"map": tmp_path / "none.json"}, "no such file"),
    ):
        with pytest.raises(UsageError, match=says):
            settings(**changes).check()


def test_in_a_browser(settings, table1, tmp_path):
    """No complaint on the console, nothing asked of the network, and a slider changes the image, by key and touch."""
    path = explore(settings(walkers=str(table1)), progress=False)
    pixels = "document.getElementById('image').toDataURL()"
    beside = pixels.replace("'image'", "'anchor'")
    with Browser.start() as browser:
        for width in (1280, 390):
            browser.open(path, width)
            empty = browser.run("Object.assign(document.createElement('canvas'), {width: 8, height: 8}).toDataURL()")
            browser.until(f"({beside}) !== {json.dumps(empty)}")
            start = browser.run(pixels)
            assert start == browser.run(beside)
            browser.run("document.getElementById('slider-0').focus()")
            browser.press("ArrowRight")
            browser.until(f"({pixels}) !== {json.dumps(start)}")
            assert browser.run("document.getElementById('slider-0').value") == "3"
            assert browser.run("document.getElementById('value-0').textContent").startswith("45° · delta ")
            browser.run("document.getElementById('back').click()")
            browser.until(f"({pixels}) === {json.dumps(start)}")

            # --- A tap at the right end of the second slider, where it is
            browser.run("document.getElementById('slider-1').scrollIntoView({block: 'center'})")
            box = browser.run("(({x, y, width, height}) => [x, y, width, height])"
                              "(document.getElementById('slider-1').getBoundingClientRect())")  # fmt: skip
            if width < 600:
                browser.touch(box[0] + box[2] - 3, box[1] + box[3] / 2)
                browser.until("document.getElementById('slider-1').value === '4'")

            # --- The learned walkers, and another anchor
            browser.run("document.querySelector('input[name=kind][value=\"1\"]').click()")
            assert browser.run("document.getElementById('slider-1').value") == "0"
            assert browser.run("document.getElementById('slider-0').value") == "2"  # not learned: its middle
            browser.until(f"({pixels}) === {json.dumps(start)}")
            browser.run("document.getElementById('next').click()")
            browser.until(f"({pixels}) !== {json.dumps(start)}")
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.complaints == []


def test_the_bundled_generators_fit():
    """The default number of positions leaves every bundled generator below the limit of images."""
    for n_chunks, _ in SIZES.values():
        groups = sliders(n_chunks, 4)
        n = positions_for(len(groups), 3)
        assert n == 7 and 3 * n ** len(groups) <= explorer.MOST_IMAGES
