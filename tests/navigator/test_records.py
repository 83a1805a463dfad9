"""What runs recorded of generator and noise is used; what contradicts it is named, or refused where nobody chose it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.fingerprint import KEY, fingerprint, fingerprint_record
from mi_ml_gen.generators.registry import load_generator, save_generator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.navigator.records import Flags, RunRecord, circumstances
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.origins import differences, origin, warn_of_differences
from mi_ml_gen.walkers.spec import walker_from

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stylegan():
    return load_generator("tiny-stylegan")


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory) -> Path:
    """The file of another network of the same sizes: one weight tensor of tiny-stylegan is changed."""
    generator = load_generator("tiny-stylegan")
    with torch.no_grad():
        next(iter(generator.mapping.parameters())).mul_(1.01)
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_generator(path, generator, "stylegan2")
    return path


def run(folder: Path, **settings) -> RunRecord:
    folder.mkdir(parents=True)
    given = dict(generator="tiny-stylegan", g_path=None, g_use=["psi=0.5"], mean=0.0, std=1.0, truncation=0.5)
    (folder / "config.yaml").write_text(yaml.safe_dump(given | settings))
    return RunRecord.read(folder)


def test_the_fingerprint_is_of_the_weights_alone(stylegan, other_weights) -> None:
    own = fingerprint(stylegan)
    assert own == fingerprint(load_generator("tiny-stylegan", use=["psi=0.3"]))
    assert own == fingerprint(load_generator("tiny-stylegan").to(memory_format=torch.contiguous_format))
    assert own != fingerprint(load_generator("stylegan2", other_weights))
    assert fingerprint(load_generator("linear-gaussian")) != own


def test_what_was_recorded_is_used(tmp_path, stylegan, caplog) -> None:
    record = run(tmp_path / "a", **{KEY: fingerprint(stylegan)})
    found = circumstances([record], Flags(), CPU)
    assert found.name == "tiny-stylegan" and found.generator.settings.psi == 0.5 and found.g_use == ("psi=0.5",)
    assert found.noise == TruncatedNormal(0, 1, 0.5) and not found.notes and not caplog.records


def test_flags_that_agree_are_silent(tmp_path, caplog) -> None:
    flags = Flags("tiny-stylegan", None, ["psi=0.50"], 0.0, 1.0, 0.5)
    assert not circumstances([run(tmp_path / "a")], flags, CPU).notes and not caplog.records


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (Flags(g_use=["psi=1"]), "psi=1.0 where the runs had psi=0.5"),
        (Flags(g_use=["noise_mode=none"]), "noise_mode=none where the runs had noise_mode=const"),
        (Flags(mean=0.5), "mean 0.5 of the noise where the runs had 0"),
        (Flags(std=2.0), "std 2 of the noise where the runs had 1"),
        (Flags(truncation=2.0), "truncation 2 of the noise where the runs had 0.5"),
        (Flags(generator="tiny-bigbigan"), "network tiny-bigbigan"),
    ],
)
def test_flags_that_contradict_are_used_and_named(tmp_path, stylegan, caplog, flags: Flags, said: str) -> None:
    found = circumstances([run(tmp_path / "a", **{KEY: fingerprint(stylegan)})], flags, CPU)
    assert len(found.notes) == 1 and said in found.notes[0]
    assert said in caplog.text and caplog.records[0].levelno == logging.WARNING
    if flags.g_use == ["noise_mode=none"]:
        assert found.generator.settings.psi == 0.5  # what no flag names stays as recorded


def test_another_network_of_the_same_sizes_is_noticed(tmp_path, stylegan, other_weights) -> None:
    record = run(tmp_path / "a", **{KEY: fingerprint(stylegan)})
    found = circumstances([record], Flags("stylegan2", str(other_weights)), CPU)
    assert len(found.notes) == 1 and "another tiny-stylegan" in found.notes[0]
    moved = run(tmp_path / "b", generator="stylegan2", g_path=str(other_weights), **{KEY: fingerprint(stylegan)})
    with pytest.raises(UsageError, match=r"b: was made with another stylegan2.*--g_path"):
        circumstances([moved], Flags(), CPU)
    assert circumstances([moved], Flags(g_path=str(other_weights)), CPU).notes  # a choice, then


def test_the_same_weights_under_another_name_are_the_same_network(tmp_path, stylegan) -> None:
    save_generator(tmp_path / "same.safetensors", stylegan, "stylegan2")
    record = run(tmp_path / "a", **{KEY: fingerprint(stylegan)})
    assert not circumstances([record], Flags("stylegan2", str(tmp_path / "same.safetensors")), CPU).notes


def test_runs_that_disagree_need_a_flag(tmp_path) -> None:
    records = [run(tmp_path / "a"), run(tmp_path / "b", truncation=2.0)]
    with pytest.raises(UsageError, match=r"a was made with noise 0.0 1.0 0.5, .*b with 0.0 1.0 2.0"):
        circumstances(records, Flags(), CPU)
    assert circumstances(records, Flags(None, None, None, 0.0, 1.0, 2.0), CPU).noise.truncation == 2
    other = run(tmp_path / "c", **{KEY: "0" * 16})
    with pytest.raises(UsageError, match="different networks"):
        circumstances([run(tmp_path / "d", **{KEY: "1" * 16}), other], Flags(), CPU)


def test_without_runs_flags_and_defaults_count() -> None:
    found = circumstances([], Flags(g_use=["psi=0.5"], std=0.9), CPU, default="tiny-stylegan")
    assert found.generator.settings.psi == 0.5 and found.noise == TruncatedNormal(0, 0.9, 2) and not found.notes
    with pytest.raises(UsageError, match="--generator must be given"):
        circumstances([], Flags(), CPU)


def test_a_run_is_not_resumed_on_other_weights(tmp_path, stylegan, other_weights) -> None:
    record = fingerprint_record(tmp_path / "a", stylegan)
    run(tmp_path / "a", **record)
    assert fingerprint_record(tmp_path / "a", stylegan) == record
    with pytest.raises(UsageError, match="was begun with another"):
        fingerprint_record(tmp_path / "a", load_generator("stylegan2", other_weights))
    run(tmp_path / "old")
    assert fingerprint_record(tmp_path / "old", stylegan) == {}  # begun by version 0.1, which recorded none


def test_a_walker_says_what_it_was_trained_on_and_where_that_differs(tmp_path, stylegan, other_weights, caplog) -> None:
    trained_on = load_generator("tiny-stylegan", use=["psi=0.5"])
    walker = NonlinearWalker.on(stylegan, Chunks(0, 4))
    path = save_walker(tmp_path / "w", walker, generator="tiny-stylegan", **origin(trained_on, TruncatedNormal()))
    grouped = walker_from({"0_4": str(path), "4_8": None}, stylegan)
    assert not warn_of_differences(grouped, trained_on, TruncatedNormal()) and not caplog.records
    said = warn_of_differences(grouped, stylegan, TruncatedNormal(0, 1, 0.9))
    assert len(said) == 1 and "psi=1.0 where the walker had psi=0.5" in said[0] and "truncation 0.9" in said[0]
    other = load_generator("stylegan2", other_weights, use=["psi=0.5"])
    assert "another network" in warn_of_differences(grouped, other)[0]
    assert differences({}, stylegan, TruncatedNormal()) == []  # a published walker recorded nothing
