"""Generators with one fault each are told so in one line; generators without are not."""

from __future__ import annotations

import re
from typing import ClassVar

import pytest
import torch
from torch import nn

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator
from mi_ml_gen.generators.checking import PROMISES, check_generator, examine_generator
from mi_ml_gen.generators.registry import bundled, load_generator
from mi_ml_gen.latents import LatentLayout
from tests.conftest import GOLDEN, make_small_generator
from tests.scripts.test_scripts import call


class Sound(MultiLatentGenerator):
    """Two chunks of three numbers, a small network, 8 px: keeps every promise."""

    name, resolution, noise_dim = "sound", 8, 6
    sizes: ClassVar[tuple[int, ...]] = (3, 3)

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = gain
        self.layout = LatentLayout(self.sizes)
        self.norm = nn.BatchNorm1d(6)
        self.linear = nn.Linear(6, 192)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        nn.init.normal_(self.linear.bias, generator=torch.Generator().manual_seed(1))

    def config(self):
        return {"gain": self.gain}

    def decode(self, latents, rng=None):
        return torch.sigmoid(self.gain * self.linear(self.norm(latents)).float()).view(-1, 3, 8, 8)


class StaysBehind(Sound):
    def __init__(self, gain=1.0):
        super().__init__(gain)
        self.offset = torch.full((6,), 0.1)

    def decode(self, latents, rng=None):
        return super().decode(latents + self.offset)


class BatchStatistics(Sound):
    def decode(self, latents, rng=None):
        return super().decode(latents - latents.mean(0))


class OwnRandomness(Sound):
    def decode(self, latents, rng=None):
        return super().decode(latents + 0.1 * torch.randn_like(latents))


class OneOfThePair(Sound):
    def decode_pair(self, anchor, positive, chunks, rng=None):
        at = self.layout.slice(chunks)
        with torch.no_grad():
            first = self.decode(anchor)
        mixed = torch.cat([positive[:, : at.start], positive[:, at] * 1.1, positive[:, at.stop :]], 1)
        return ImagePair(first, self.decode(mixed))


class Forgetful(Sound):
    def config(self):
        return {}


class InPlace(Sound):
    def decode(self, latents, rng=None):
        if not latents.requires_grad:
            latents[:, 3:] += 0.5
        return super().decode(latents)


class WrongSlice(Sound):
    def walk_slice(self, chunks):
        return slice(0, 3)


class MadeOnTheCPU(Sound):
    def decode(self, latents, rng=None):
        return super().decode(latents + torch.full((6,), 0.1))


class SteppedSlice(Sound):
    def walk_slice(self, chunks):
        return slice(chunks.start, 6, 2)


class DeadChunk(Sound):
    def decode(self, latents, rng=None):
        return super().decode(torch.cat([latents[:, :3], torch.zeros_like(latents[:, 3:])], 1))


class Counting(Sound):
    def __init__(self, gain=1.0):
        super().__init__(gain)
        self.register_buffer("count", torch.zeros(()))

    def decode(self, latents, rng=None):
        self.count += 1
        return super().decode(latents)


class OnlyTwo(Sound):
    def decode(self, latents, rng=None):
        return super().decode(latents.view(2, 6))


class GraphOfAnchors(Sound):
    def decode_pair(self, anchor, positive, chunks, rng=None):
        return ImagePair(*self.decode(torch.cat([anchor, positive])).chunk(2))


class TooLarge(Sound):
    def decode(self, latents, rng=None):
        return 2 * super().decode(latents)


class HalfPrecision(Sound):
    def decode(self, latents, rng=None):
        exact = (latents * 1000).sum(1)[:, None, None, None]
        wave = torch.sin(exact * torch.matmul(latents.new_ones(1, 1), latents.new_full((1, 1), 3.001)))
        return super().decode(latents) * (0.5 + 0.5 * wave)


class Quadratic(Sound):
    def decode(self, latents, rng=None):
        between = (latents[:, None] - latents[None]).exp()  # (n, n, 6)
        wide = between.unsqueeze(-1).expand(-1, -1, -1, 4096).exp()
        return super().decode(latents) + 0 * wide.sum((1, 2, 3))[:, None, None, None]


class OtherChunks(Sound):
    def __init__(self, gain=1.0, sizes=(3, 3)):
        super().__init__(gain)
        self.layout = LatentLayout(sizes)


class Encoding(Sound):
    def encode(self, images):
        return images.flatten(1)


class NoGradient(Sound):
    def decode(self, latents, rng=None):
        with torch.no_grad():
            return super().decode(latents)


BROKEN = [
    (StaysBehind, "device and dtype", r"offset is a plain tensor, which stays behind .* register_buffer\('offset'"),
    (BatchStatistics, "independent samples", r"changes by up to \S+ with the other samples of its batch; use no stat"),
    (OwnRandomness, "determinism", r"same rng differ by up to \S+; draw what is random from rng, by mi_ml_gen.core"),
    (OneOfThePair, "decode_pair", r"from decode on the positive's image when chunks 0_1 .*; it must equal two decodes"),
    (Forgetful, "save and load", r"images that differ by up to \S+; what decides them must be in config\(\), a param"),
    (InPlace, "unperturbed chunks", "decode changes the latents that it is given; work on a copy"),
    (WrongSlice, "walk_slice", r"walk_slice of chunk 1, 0:3, leaves latents 3:6 as they are; walk_slice must name"),
    (SteppedSlice, "walk_slice", r"walk_slice of chunk 0 is slice\(0, 6, 2\); it must be slice\(START, STOP\)"),
    (MadeOnTheCPU, "device and dtype", r"decode uses a tensor that stays on the CPU .*test_checking.py, line"),
    (DeadChunk, "gradients", "no gradient flows from its images to chunk 1, so no walker can learn there; let the im"),
    (NoGradient, "gradients", "no gradient flows from its images to the noise, so no walker can learn on it"),
    (Counting, "frozen weights", "decode changes its count; a frozen generator must stay as it is"),
    (OnlyTwo, "batches of any size", r"a batch of 1 cannot be decoded: RuntimeError: shape '\[2, 6\]'"),
    (GraphOfAnchors, "decode_pair", "keeps a graph for the anchor's image, which takes memory; decode it within"),
    (TooLarge, "shapes and range", r"decode gives values from \S+ to \S+; images must lie in \[0, 1\]"),
    (HalfPrecision, "bf16", r"change by \S+ in the mean in bf16; compute what needs more digits within torch.autocast"),
    (Quadratic, "memory per sample", r"keeps \S+ MB for a second sample and \S+ MB for each of two more; nothing may"),
    (Encoding, "encode", r"encode gives shape \(2, 192\); 2 images must give finite noise, \(2, 6\)"),
]  # fmt: skip


def made(cls) -> MultiLatentGenerator:
    return cls(gain=0.7).freeze()


@pytest.mark.parametrize(("cls", "promise", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_each_break_has_its_own_line(cls, promise, says):
    generator = made(cls)
    found = {finding.promise: finding.broken for finding in examine_generator(generator) if finding.broken}
    assert promise in found, found
    assert re.search(says, found[promise]) and "\n" not in found[promise]
    also = {"independent samples": {"batches of any size", "memory per sample", "decode_pair"}, "bf16": {"bf16"}}
    assert set(found) <= {promise} | also.get(promise, set()) | ALSO.get(cls, set()), found
    with pytest.raises(UsageError, match="^generator sound: "):
        check_generator(generator)


ALSO = {
    StaysBehind: {"device and dtype"},
    OneOfThePair: set(),
    InPlace: {"determinism", "independent samples", "decode_pair"},
    NoGradient: {"decode_pair"},
    Counting: {"save and load"},
    OnlyTwo: {"memory per sample"},
    OwnRandomness: {"independent samples", "decode_pair", "batches of any size", "channels-last", "save and load",
                    "gradients", "device and dtype"},
}  # fmt: skip
"""What else breaks with some of them."""


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_normed_weights_that_every_pass_computes_are_no_stray_tensors(norm):
    generator = Sound()
    generator.linear = norm(generator.linear)
    assert not any(finding.broken for finding in examine_generator(generator.freeze(), skip=["save and load"]))


def test_a_sound_generator_and_those_of_the_package_keep_all_promises():
    generators = [made(Sound), make_small_generator(), *(load_generator(name) for name in bundled())]
    generators += [load_generator(name) for name in ("linear-gaussian", "linear-gaussian-waves")]
    pickle = GOLDEN / "fixtures" / "stylegan2_tiny_torch.pkl"
    generators.append(load_generator("stylegan2", pickle, use={"noise_mode": "random"}))
    for generator in generators:
        found = examine_generator(generator)
        assert [finding.promise for finding in found] == list(PROMISES)
        assert [finding for finding in found if finding.broken or finding.is_skipped] == [], generator.name


def test_a_generator_that_was_not_frozen():
    generator = Sound()
    assert "its parameters ask for gradients; call freeze() first" in examine_generator(generator)[1].broken
    generator.requires_grad_(False)
    assert "norm is in training mode; call freeze() first" in examine_generator(generator)[1].broken


def test_several_breaks_are_counted_and_promises_left_out():
    class Twice(Forgetful, WrongSlice):
        pass

    generator = made(Twice)
    with pytest.raises(UsageError, match=r"walk_slice must name .* \(and 1 more promise is broken\)$"):
        check_generator(generator)
    with pytest.raises(UsageError, match="come from a file|from a file it comes back"):
        check_generator(generator, skip=["walk_slice"])
    check_generator(generator, skip=["walk_slice", "save and load"])
    with pytest.raises(UsageError, match="skip 'speed': must be some of shapes and range, frozen weights"):
        check_generator(generator, skip=["speed"])


def test_settings_of_chunks_that_are_not_saved():
    generator = OtherChunks(gain=1.0, sizes=(2, 4)).freeze()
    with pytest.raises(UsageError, match="comes back with other chunks; config.. must hold every setting"):
        check_generator(generator)


def test_an_examination_changes_nothing():
    generator = made(Sound)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    random = torch.get_rng_state()
    examine_generator(generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_randomness_from_rng_is_no_fault():
    class Noisy(Sound):
        def decode(self, latents, rng=None):
            noise = runtime.normal((len(latents), 1, 8, 8), rng, latents.device, latents.dtype)
            return (super().decode(latents) + 0.05 * noise).clamp(0, 1)

    check_generator(made(Noisy))


# --- the command


FILE = """
import torch
from tests.generators.test_checking import Sound

class Good(Sound):
    pass

class Bad(Sound):
    def decode(self, latents, rng=None):
        return super().decode(latents - latents.mean(0))
"""


def test_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(FILE)
    code, out, err = call(monkeypatch, capsys, "check_generator", f"{tmp_path / 'mine.py'}:Good")
    assert code == 0 and err == "" and out.splitlines()[0] == "sound: 2 chunks (3, 3 numbers), 8 px"
    assert out.count(" kept ") == len(PROMISES) and "MB for the backward pass" in out
    code, out, err = call(monkeypatch, capsys, "check_generator", f"{tmp_path / 'mine.py'}:Bad")
    assert (
        code == 2 and err.startswith("error: sound breaks ") and "independent samples" in err and err.count("\n") == 1
    )
    assert "  BROKEN   independent samples    the image of a sample changes by" in out
    code, out, err = call(monkeypatch, capsys, "check_generator", "tests.generators.test_checking:Sound")
    assert code == 0


def test_the_command_takes_saved_generators(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(FILE)
    generator = load_generator(f"{tmp_path / 'mine.py'}:Good")
    folder = generator.save_pretrained(tmp_path / "saved")
    for saved in (folder, folder / "model.safetensors"):
        code, out, err = call(monkeypatch, capsys, "check_generator", saved, "--skip", "bf16", "encode")
        assert code == 0 and out.count(" skipped ") == 2, err
    for words, says in (
        ([folder, "--g_path", "x"], "holds its own weights; leave it out"),
        (["tiny-bigbigann"], "nearest known generator: tiny-bigbigan"),
        ([folder, "--skip", "speed"], "must be some of shapes and range"),
    ):
        code, out, err = call(monkeypatch, capsys, "check_generator", *words)
        assert code == 2 and out == "" and says in err and err.count("\n") == 1, err
