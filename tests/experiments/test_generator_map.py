"""The map of a generator: its mixtures, its numbers against the truth by either critic, that it resumes, and its
page."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from mi_ml_gen.core import loop
from mi_ml_gen.core.errors import CorruptCheckpointError, NonFiniteError, Preempted
from mi_ml_gen.core.files import hash_file
from mi_ml_gen.experiments import generator_map, map_labels
from mi_ml_gen.experiments.generator_map import (
    decode_pool,
    has_independent_chunks,
    map_generator,
    mixtures,
    ranges_of,
    to_table,
)
from mi_ml_gen.experiments.map_labels import cluster_label
from mi_ml_gen.experiments.settings import MapConfig
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.information.shared_critic import SharedCritic
from mi_ml_gen.latents import Chunks
from tests import image_files
from tests.browser import Browser
from tests.conftest import StopAt, make_small_generator

INFINITE = float("inf")


def settings(folder, **changes):
    small = dict(generator="linear-gaussian", save_folder=folder, truncation=INFINITE, n_train=1024, n_eval=512,
                 n_labels=4, n_images=3, device="cpu")  # fmt: skip
    return MapConfig(**small | changes)


def benchmark_generator() -> LinearGaussian:
    return LinearGaussian((1, 2, 1), noise=0.3, resolution=4, gains=(1.0, 0.5, 0.2), name="linear-gaussian")


def test_ranges():
    assert list(map(str, ranges_of(3, "all"))) == ["0_1", "1_2", "2_3", "0_2", "1_3", "0_3"]
    assert list(map(str, ranges_of(3, "single"))) == ["0_1", "1_2", "2_3", "0_3"]
    assert list(map(str, ranges_of(5, "tree"))) == [
        "0_1", "1_2", "2_3", "3_4", "4_5", "0_2", "3_5", "0_3", "0_5"
    ]  # fmt: skip
    assert len(ranges_of(8, "auto")) == 36 and len(ranges_of(16, "auto")) == 31
    assert list(map(str, ranges_of(1, "all"))) == ["0_1"]


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("n_chunks", [2, 4, 6])
def test_a_pair_differs_in_what_is_redrawn_and_nowhere_else(n_chunks, independent):
    everything = frozenset(range(n_chunks))
    masks = []
    for chunks in ranges_of(n_chunks, "all"):
        redrawn = frozenset(range(chunks.start, chunks.stop))
        masks += [mask for mask in (redrawn, everything - redrawn) if mask and mask not in masks]
    mixed = mixtures(n_chunks, masks, independent)
    assert mixed.from_b[0] == frozenset() and set(mixed.pairs) == set(masks)
    for mask, pairs in mixed.pairs.items():
        assert pairs
        for i, j in pairs:
            assert mixed.from_b[i] ^ mixed.from_b[j] == mask
            assert independent or mixed.from_b[i] in (frozenset(), everything)
    if independent:
        assert len(mixed.from_b) == 2 * n_chunks
    else:
        assert len(mixed.from_b) == 2 + n_chunks * (n_chunks - 1) // 2


def test_the_pool_holds_the_mixtures(tmp_path):
    generator = make_small_generator()
    assert has_independent_chunks(generator)
    mixed = mixtures(2, [frozenset({0}), frozenset({1}), frozenset({0, 1})], independent=True)
    given = settings(tmp_path, truncation=2.0)
    label = cluster_label(torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 3, 0)
    pool = decode_pool(generator, mixed, 64, given, "test", label, progress=False)
    assert pool.images.shape == (64, 4, 3, 8, 8) and pool.labels.shape == (64, 4)
    again = decode_pool(generator, mixed, 64, given, "test", progress=False)
    assert torch.equal(pool.images, again.images) and again.labels.shape == (64, 0)
    # The mixture that has chunk 0 of b is b's where that chunk decides alone.
    a, b = pool.images[:, mixed.from_b.index(frozenset())], pool.images[:, mixed.from_b.index(frozenset({0, 1}))]
    mixture = pool.images[:, mixed.from_b.index(frozenset({0}))]
    assert not torch.equal(mixture, a) and not torch.equal(mixture, b)


def test_the_truth_lies_in_the_intervals_of_the_benchmark_generator(tmp_path):
    """In at least 93% of the ranges, and the bounds are near it where they are not saturated."""
    generator = benchmark_generator()
    found = map_generator(settings(tmp_path / "map"), generator, progress=False).content
    inside, close, n = 0, 0, 0
    for cell in found["ranges"]:
        chunks = Chunks.of(cell["chunks"])
        truths = {"shared": generator.shared_information(chunks), "carried": generator.carried_information(chunks)}
        for name, true in truths.items():
            if cell[name] is not None:
                assert cell[name]["interval_nats"][1] is None
                n += 1
                inside += cell[name]["interval_nats"][0] <= true
                close += abs(cell[name]["nats"] - true) <= 0.15 + 0.15 * true
        assert cell["delta"]["mean"] == pytest.approx(
            {1: 1.128, 2: 1.772, 3: 2.257, 4: 2.659}[generator.layout.slice(chunks).stop
                                             - generator.layout.slice(chunks).start], rel=0.03)  # fmt: skip
    assert n == 11 and inside >= 0.93 * n and close >= 0.8 * n, found["ranges"]
    whole = found["ranges"][-1]
    assert whole["chunks"] == "0_3" and whole["carried"] is None
    low, high = whole["class_lost"]["interval_nats"]
    assert low - 0.05 <= found["label"]["entropy_nats"] <= high + 0.05
    table = to_table(found)
    assert "0_3" in table.to_markdown() and "delta: mean distance" in table.caption
    of_labels = [row[table.columns.index("verdict of it")] for row in table.rows]
    assert of_labels == [cell["class_lost"]["verdict"] for cell in found["ranges"]]


def test_an_interrupted_map_goes_on_and_measures_no_range_twice(tmp_path, monkeypatch):
    few = dict(n_train=64, n_eval=64, state_interval_s=0.0)
    whole = map_generator(settings(tmp_path / "whole", **few), benchmark_generator(), progress=False).content
    for n in (2, 6, 8):  # while images are decoded, and among the ranges
        with monkeypatch.context() as patch:
            StopAt(patch, n)
            with pytest.raises(Preempted):
                map_generator(settings(tmp_path / "parts", **few), benchmark_generator(), progress=False)
    parts = map_generator(settings(tmp_path / "parts", **few), benchmark_generator(), progress=False).content
    assert parts == whole
    assert json.loads((tmp_path / "parts" / "map.json").read_text()) == whole
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["cell"]["chunks"] for row in rows if "cell" in row] == [cell["chunks"] for cell in whole["ranges"]]


def test_a_network_finds_no_less_and_stays_below_the_truth(tmp_path):
    """The numbers of the network and of the canonical critics for the same generator, and which critic gave each."""
    generator = benchmark_generator()
    plain = map_generator(settings(tmp_path / "canonical"), generator, progress=False).content
    found = map_generator(
        settings(tmp_path / "network", critic="network", critic_steps=60, critic_width=8), generator, progress=False
    ).content
    assert plain["critic"] == {"kind": "canonical", "n_steps": 0}
    assert found["critic"]["kind"] == "network" and 0 < found["critic"]["n_steps"] <= 60
    inside, n, by_network = 0, 0, 0
    for cell, before in zip(found["ranges"], plain["ranges"], strict=True):
        chunks = Chunks.of(cell["chunks"])
        truths = {"shared": generator.shared_information(chunks), "carried": generator.carried_information(chunks)}
        for name, true in truths.items():
            if cell[name] is not None:
                n += 1
                inside += cell[name]["interval_nats"][0] <= true
                assert cell[name]["interval_nats"][1] is None
                assert cell[name]["nats"] >= before[name]["nats"] - 0.1  # they are jointly normal: nothing to gain
                assert before[name]["estimator"] == "canonical critic"
                if cell[name]["estimator"] == "network critic":
                    by_network += 1
                    assert len(cell[name]["details"]["course_nats"]) >= 8
                else:
                    assert cell[name] == before[name]
    assert n == 11 and inside >= 0.93 * n and by_network >= 4
    assert found["n_decoded_images"] > plain["n_decoded_images"]
    table = to_table(found).to_markdown()
    assert "critics: of shared, and of carried" in table and "network, network" in table
    assert "Both by canonical critics" in to_table(plain).to_markdown()
    page = (tmp_path / "network" / "map.html").read_text()
    assert f"It gave {by_network} of the 11 numbers" in page


def test_an_interrupted_network_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    few = dict(n_train=64, n_eval=64, state_interval_s=0.0, critic="network", critic_steps=9, critic_width=4)
    whole = map_generator(settings(tmp_path / "whole", **few), benchmark_generator(), progress=False).content
    n_stops = 0
    for n in (12, 17, 20, 24):  # while the validation images are decoded, in the training, and among the ranges
        with monkeypatch.context() as patch:
            StopAt(patch, n)
            try:
                map_generator(settings(tmp_path / "parts", **few), benchmark_generator(), progress=False)
            except Preempted:
                n_stops += 1
    parts = map_generator(settings(tmp_path / "parts", **few), benchmark_generator(), progress=False).content
    assert parts == whole and n_stops >= 3
    cells = [cell[what] for cell in whole["ranges"] for what in ("shared", "carried") if cell[what] is not None]
    short = [one for one in cells if one["estimator"] == "network critic"]
    assert short and all(one["verdict"] != "consistent" for one in short)
    assert any("9 training steps are too few to tell" in one["reason"] for one in short)
    courses = []
    for folder in ("whole", "parts"):
        lines = (tmp_path / folder / "critic" / "metrics.jsonl").read_text().splitlines()
        courses.append([json.loads(line)["nats"] for line in lines])
    assert courses[0] == courses[1] and len(courses[0]) >= 8


def test_a_network_for_chunks_that_depend_on_one_another(tmp_path):
    """Layers of StyleGAN2 share one w, so the two sides of a pair are distributed differently."""
    config = StyleGAN2Config(
        z_dim=8, w_dim=8, mapping_layers=1, img_resolution=8, channel_base=64, channel_max=8
    )  # fmt: skip
    torch.manual_seed(0)
    generator = StyleGAN2(config, "small").freeze()
    small = dict(generator="small", n_train=64, n_eval=64, critic_steps=2, critic_width=4, ranges="single")
    assert not has_independent_chunks(generator)
    found = map_generator(settings(tmp_path, critic="network", **small), generator, progress=False).content
    assert all(math.isfinite(cell["shared"]["nats"]) for cell in found["ranges"])


def test_a_network_that_is_no_number_is_refused(tmp_path, monkeypatch):
    few = dict(n_train=64, n_eval=64, critic="network", critic_steps=9, critic_width=4)
    monkeypatch.setattr(SharedCritic, "losses", lambda critic, seen: critic.weights.sum() * torch.full((6,), math.nan))
    with pytest.raises(NonFiniteError, match="matching loss"):
        map_generator(settings(tmp_path, **few), benchmark_generator(), progress=False)
    assert not (tmp_path / "map.json").exists()


@pytest.mark.parametrize("critic", ["canonical", "network"])
def test_the_page_in_a_browser(tmp_path, critic):
    few = dict(n_train=64, n_eval=64, critic=critic, critic_steps=8, critic_width=4)
    path = map_generator(settings(tmp_path / "map", **few), benchmark_generator(), progress=False).path / "map.html"
    assert (path.parent / "images" / "redrawn.png").read_bytes().startswith(b"\x89PNG")
    with Browser.start() as browser:
        for width in (1280, 390):
            browser.open(path, width)
            assert browser.run("document.querySelectorAll('svg').length") >= 3
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run("document.querySelectorAll('tbody tr').length") == 6
            assert browser.complaints == []


def test_the_training_of_labels_stops_when_asked_and_is_not_done_twice(tmp_path, monkeypatch):
    """Ctrl-C while the small classifier is trained; then it is trained once, kept, and read."""
    rng = np.random.default_rng(0)
    for i in range(300):
        name = tmp_path / "images" / "train" / ("ant", "bee")[i % 2] / f"{i}.png"
        image_files.save(name, rng.integers(256, size=(32, 32), dtype=np.uint8))
    small = dict(n_train=128, n_eval=128, ranges="single", label_data=str(tmp_path / "images"))
    asked = settings(tmp_path / "map", **small)
    steps = []

    def stop_if_asked(session, what):
        steps.append(what)
        if len(steps) == 3:
            raise Preempted("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(loop.Session, "stop_if_asked", stop_if_asked)
        patched.setattr(generator_map, "decode_pool", no_decoding)
        with pytest.raises(Preempted):
            map_generator(asked, make_small_generator(), progress=False)
    kept = tmp_path / "map" / "label_classifier.safetensors"
    assert len(steps) == 3 and not kept.exists()  # in the middle of the training

    map_generator(asked, make_small_generator(), progress=False)
    assert kept.exists()
    stopped = settings(tmp_path / "other", **small)
    (tmp_path / "other").mkdir()
    for file in (kept, hash_file(kept)):
        shutil.copy(file, tmp_path / "other")
    with monkeypatch.context() as patched:
        patched.setattr(map_labels, "train_classifier", None)
        map_generator(stopped, make_small_generator(), progress=False)
    first, second = (json.loads((tmp_path / name / "map.json").read_text()) for name in ("map", "other"))
    assert first["ranges"] == second["ranges"]
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match="label_classifier.safetensors"):
        map_labels.learned_label("none", 32, 0, torch.device("cpu"), keep=kept)


def no_decoding(generator, mixed, n_groups, *arguments, **named):
    """In place of decoding: noise, so that only the training of the classifier can be stopped."""
    images = torch.randint(256, (n_groups, len(mixed.from_b), 3, 32, 32), dtype=torch.uint8)
    return generator_map.Pool(images, torch.zeros(n_groups, 0))
