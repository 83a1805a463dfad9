"""Emoji of several houses: what is found, how it is laid over a background, split and paired."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data import emoji as emoji_module
from mi_ml_gen.data import folders
from mi_ml_gen.data.emoji import HOUSES, EmojiPairs, laid_over, plain_code, split_of_emoji
from mi_ml_gen.data.idx import DATA_VARIABLE
from mi_ml_gen.data.loading import check_source, load_source
from mi_ml_gen.data.source import ImageSource
from mi_ml_gen.data.splits import load_splits
from tests.emoji_files import CATEGORIES, colour_of, write_emoji


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(place))
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_emoji(tmp_path_factory.mktemp("emoji"))


def both(reference: str, size: int = 8):
    return [load_source(reference, split, size) for split in ("train", "test")]


def colours(source) -> set[tuple[int, ...]]:
    """The colour in the middle of each picture."""
    return {tuple(picture[:, 4, 4].tolist()) for picture in source.batch(torch.arange(source.n_images))}


def test_every_picture_of_every_house_is_in_one_split(place):
    train, test = both(f"emoji:{place}")
    assert isinstance(train, ImageSource) and train.classes == tuple(sorted(CATEGORIES))
    assert train.n_images + test.n_images == 3 * 14 - 1  # 12 emoji and two tones, one not by the last house
    own = colours(train), colours(test)
    assert not own[0] & own[1] and len(own[0] | own[1]) == 3 * 12 - 1  # a tone looks like its emoji here
    drawn = {(f"{0x1F420 + i:x}", i) for i in range(12)}
    for split, seen in zip(("train", "test"), own, strict=True):
        assert seen == {colour_of(h, i) for h in HOUSES for code, i in drawn if split_of_emoji(code) == split} - {
            colour_of("fluent", 11)
        }
    (picture,) = train.batch(torch.tensor([0]))
    assert picture.shape == (3, 8, 8) and (picture[:, 0] == 255).all() and (picture[:, :, 0] == 255).all()


def test_labels_are_categories_of_the_emoji(place):
    train, _ = both(f"emoji:{place}:houses=google")
    seen = train.batch(torch.arange(train.n_images))[:, 0, 4, 4] // 10  # the emoji's number
    assert [train.classes[label] for label in train.labels] == [CATEGORIES[i % 2] for i in seen]
    finer = load_source(f"emoji:{place}:labels=subcategory", "train", 8)
    assert len(finer.classes) == 6 and finer.classes[0].startswith("Food & Drink ")
    splits = load_splits(f"emoji:{place}", 8)
    assert splits.test is not None and splits.validation.n_images > 0


def test_options(place):
    sizes = [sum(s.n_images for s in both(f"emoji:{place}{options}")) for options in ("", ":skin_tones=none")]
    assert sizes == [41, 35]
    two = both(f"emoji:{place}:houses=google+twitter,background=#102030")
    assert sum(source.n_images for source in two) == 28
    assert two[0].batch(torch.tensor([0]))[0, :, 0, 0].tolist() == [16, 32, 48]
    chosen = [load_source(f"emoji:{place}:background=random", "train", 8).batch(torch.arange(20)) for _ in range(2)]
    assert torch.equal(*chosen)
    corners = {tuple(picture[:, 0, 0].tolist()) for picture in chosen[0]}
    assert len(corners) > 10  # each its own
    large = load_source(f"emoji:{place}", "train", 96)
    assert large.image_size == 96 and load_source(f"emoji:{place}").image_size == 64


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (":houses=apple", "houses=apple: must be some of google, twitter, fluent, with"),
        (":background=blue", "background=blue: must be white, black, grey, random, or a colour such as #ffcc00"),
        (":colour=red", "unknown key colour in emoji:"),
        (":labels=name", "must be one of category, subcategory"),
        (":a=b:c=d", "write emoji:FOLDER:KEY=VALUE,KEY=VALUE"),
    ],
)
def test_wrong_options_are_refused(place, options, says):
    with pytest.raises(UsageError, match=says):
        load_source(f"emoji:{place}{options}")


def test_where_packages_are_found(place, tmp_path, monkeypatch):
    n = load_source(f"emoji:{place}", "train", 8).n_images
    for folder in (place / "node_modules", place):
        assert load_source(f"emoji:{folder}", "train", 8).n_images == n
    monkeypatch.setenv(DATA_VARIABLE, str(place))
    assert load_source("emoji::background=black", "train", 8).n_images == n
    assert f"emoji train: {n} images, 2 classes" in check_source("emoji")
    monkeypatch.delenv(DATA_VARIABLE)
    monkeypatch.chdir(place)  # ./node_modules
    assert load_source("emoji", "train", 8).n_images == n
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(emoji_module, "SEARCH_PLACES", (tmp_path,))
    packed = write_emoji(tmp_path / "new", houses=("google",)) / "node_modules" / HOUSES["google"].package
    packed.rename(tmp_path / "package")  # as tar unpacks what npm packed
    assert 0 < load_source("emoji", "train", 8).n_images < n


def test_what_is_missing_is_named(place, tmp_path):
    with pytest.raises(UsageError, match=r"no pictures in .*; run `npm install emoji-datasource-google@16.0.0 .*give"):
        load_source(f"emoji:{tmp_path}")
    alone = write_emoji(tmp_path / "fluent", houses=("fluent",))
    with pytest.raises(UsageError, match="has no emoji.json, the table of categories; unpack emoji-datasource-google"):
        load_source(f"emoji:{alone}")
    with pytest.raises(UsageError, match="has no split 'validation', only train, test"):
        load_source(f"emoji:{place}", "validation")
    few = write_emoji(tmp_path / "few", n=4, houses=("google", "twitter"))
    table = next(few.rglob("emoji.json"))
    table.write_text(json.dumps([row for row in json.loads(table.read_text()) if row["unified"] != "1F422"]))
    for name in ("emoji", "emoji-pairs"):
        with pytest.raises(UsageError, match="of the test split"):
            load_source(f"{name}:{few}", "test")
    one = write_emoji(tmp_path / "one", houses=("google",))
    with pytest.raises(UsageError, match="pairs need two houses, and only google is there"):
        load_source(f"emoji-pairs:{one}")
    table = one / "node_modules" / HOUSES["google"].package / "emoji.json"
    for content in ("[{}]", "{", '[{"category": "Component"}]', "[1]"):
        table.write_text(content)
        with pytest.raises(UsageError, match=r"emoji.json: (is no table of emoji|has no emoji)"):
            load_source(f"emoji:{one}")


def test_pictures_are_read_once(place, cache, monkeypatch, caplog):
    first = load_source(f"emoji:{place}", "train", 8)
    assert len(list((cache / "emoji").glob("*.safetensors"))) == 3
    monkeypatch.setattr(emoji_module, "_picture", None)  # would fail
    caplog.set_level(logging.INFO)
    assert torch.equal(load_source(f"emoji:{place}", "train", 8).images, first.images)
    monkeypatch.undo()
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(cache))
    for path in (cache / "emoji").glob("google*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert torch.equal(load_source(f"emoji:{place}", "train", 8).images, first.images)


def test_a_changed_picture_is_read_again(tmp_path):
    place = write_emoji(tmp_path, houses=("google",))
    before = load_source(f"emoji:{place}", "train", 8).images
    for path in place.rglob("*.png"):
        path.write_bytes(path.read_bytes() + bytes(3))  # after the end of the image
    folder = next(place.rglob("64"))
    other = sorted(folder.iterdir())
    other[0].write_bytes(other[5].read_bytes() + bytes(9))
    assert not torch.equal(load_source(f"emoji:{place}", "train", 8).images, before)


def test_half_transparent_pixels_mix_with_the_background():
    picture = torch.zeros(4, 1, 2, dtype=torch.uint8)
    picture[:, 0, 0] = torch.tensor([100, 0, 0, 128])  # premultiplied
    shown = laid_over(picture, torch.tensor([0, 200, 255]))
    assert shown[:, 0, 0].tolist() == [100, 100, 127] and shown[:, 0, 1].tolist() == [0, 200, 255]


def test_codes_are_the_same_in_all_packages():
    assert plain_code("0023-FE0F-20E3") == plain_code("23-fe0f-20e3") == "23-20e3"
    assert plain_code("1F441-FE0F-200D-1F5E8-FE0F") == plain_code("1f441-200d-1f5e8")
    shares = [split_of_emoji(f"{code:x}") == "test" for code in range(0x1F300, 0x1F300 + 1000)]
    assert 0.16 < sum(shares) / len(shares) < 0.24


# --- pairs


def test_pairs_show_one_emoji_by_two_houses(place):
    source = load_source(f"emoji-pairs:{place}", "train", 8)
    assert isinstance(source, EmojiPairs) and isinstance(source, ImageSource)
    assert (source.n_drawn <= 3).all() and source.n_images == (load_source(f"emoji:{place}:houses=google").n_images)
    draws = torch.cartesian_prod(torch.linspace(0, 0.999, 7), torch.linspace(0, 0.999, 7))
    seen = set()
    for i in range(source.n_images):
        first, second = source.pairs(torch.full((len(draws),), i), draws)
        numbers = first[:, 0, 4, 4] // 10, second[:, 0, 4, 4] // 10
        houses = first[:, 1, 4, 4] // 80, second[:, 1, 4, 4] // 80
        assert torch.equal(*numbers) and (houses[0] != houses[1]).all()
        seen |= set(zip(*(house.tolist() for house in houses), strict=True))
        assert CATEGORIES[int(numbers[0][0]) % 2] == source.classes[source.labels[i]]
    assert len(seen) == 6
    only = load_source(f"emoji-pairs:{place}:houses=twitter+fluent", "train", 8)
    assert set((only.batch(torch.arange(only.n_images))[:, 1, 4, 4] // 80).tolist()) == {1}


def test_ordered_pairs_are_equally_frequent(place):
    source = load_source(f"emoji-pairs:{place}", "train", 8)
    three = int((source.n_drawn == 3).nonzero()[0])
    draws = torch.rand(6000, 2, generator=torch.Generator().manual_seed(0))
    first, second = source.pairs(torch.full((6000,), three), draws)
    counts = torch.bincount(3 * (first[:, 1, 4, 4].long() // 80) + second[:, 1, 4, 4].long() // 80, minlength=9)
    assert counts[[0, 4, 8]].sum() == 0 and (counts[[1, 2, 3, 5, 6, 7]] - 1000).abs().max() < 150


def test_the_table_is_read_in_its_own_order(place):
    rows = json.loads(next(place.rglob("emoji.json")).read_text())
    assert rows[0]["sort_order"] > rows[-1]["sort_order"]  # as written here
    train = load_source(f"emoji:{place}:houses=google,skin_tones=none", "train", 8)
    numbers = (train.images[:, 0, 4, 4] // 10).tolist()
    assert numbers == sorted(numbers)
