"""Encoders in files: ours, the published layouts under small sizes, and what is refused."""

from __future__ import annotations

import collections

import pytest
import torch
import torchvision

from mi_ml_gen.core import files
from mi_ml_gen.core.errors import CorruptCheckpointError, UnsafeCheckpointError, UsageError
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.encoders.base import POSITIONS, Architecture
from mi_ml_gen.encoders.byol import BYOL
from mi_ml_gen.encoders.loading import load_encoder, save_encoder
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.encoders.simsiam import SimSiam
from mi_ml_gen.hub.convert import convert

SMALL = Architecture(depth=18, width=4, small_images=True, dim=12, pred=6)
METHODS = {"simclr": SimCLR, "simsiam": SimSiam, "byol": BYOL}


def make(method: str):
    torch.manual_seed(1)
    encoder = METHODS[method](SMALL)
    with torch.no_grad():
        for name, buffer in encoder.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return encoder.eval()


@pytest.mark.parametrize(("depth", "halves"), [(10, False), (10, True), (18, True)])
def test_the_smaller_networks_come_back_from_their_files(tmp_path, depth, halves):
    encoder = SimCLR(Architecture(depth, 4, True, dim=8, halves=halves)).eval()
    save_encoder(tmp_path / "e.safetensors", encoder)
    loaded = load_encoder(tmp_path / "e.safetensors")
    images = torch.randn(2, 3, 20, 20)
    torch.testing.assert_close(loaded.backbone(images), encoder.encoder(images))
    assert loaded.architecture.depth == depth and loaded.architecture.halves == halves


def published_key(method: str, key: str) -> str:
    """The reference's name of a tensor, the other way round than the package turns it."""
    if method == "simsiam":
        return key.replace("projector.", "encoder.fc.")
    branch, _, rest = key.partition(".")
    if branch == "predictor":
        return f"predictor.net.{rest}"
    part, _, rest = rest.partition(".")
    if part == "projector":
        return f"{branch}_network.projection.net.{rest}"
    child, _, rest = rest.partition(".")
    place = {name: place for place, name in POSITIONS.items()}[child]
    return f"{branch}_network.encoder.{place}.{rest}"


def lightning(path, state, **others):
    """A checkpoint with everything around the weights that Lightning puts there."""
    content = {
        "epoch": 99,
        "global_step": 125_000,
        "pytorch-lightning_version": "2.3.3",
        "state_dict": collections.OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}, "test_loop": {}},
        "callbacks": {"ModelCheckpoint{'every_n_epochs': 5}": {"best_model_score": None, "dirpath": "/runs"}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.2}]}],
        "lr_schedulers": [],
    }
    torch.save(content | others, path)
    return path


def assert_same_features(backbone, wanted):
    images = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), wanted.eval()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_our_own_files(tmp_path, method):
    encoder = make(method)
    save_encoder(tmp_path / "e.safetensors", encoder, epoch=3, crop_size=28)
    loaded = load_encoder(tmp_path / "e.safetensors")
    assert loaded.method == method and loaded.about == {"epoch": 3, "crop_size": 28}
    assert loaded.architecture.width == 4 and loaded.n_tensors == len(encoder.backbone.state_dict())
    assert not loaded.backbone.training and not any(p.requires_grad for p in loaded.backbone.parameters())
    assert_same_features(loaded.backbone, encoder.backbone)
    assert f"all {loaded.n_tensors} tensors" in str(loaded) and "projector" in str(loaded)


@pytest.mark.parametrize("method", ["simsiam", "byol"])
def test_published_checkpoints(tmp_path, method):
    encoder = make(method)
    state = {published_key(method, key): value for key, value in encoder.state_dict().items()}
    path = lightning(tmp_path / "last.ckpt", state)
    loaded = load_encoder(path)
    assert loaded.method == method and "as published" in loaded.layout
    assert len(loaded.left_out) + loaded.n_tensors == len(state)
    assert_same_features(loaded.backbone, encoder.backbone)

    conversion = convert(path, tmp_path / "e.safetensors")
    assert method in conversion.what.lower()
    converted = load_encoder(tmp_path / "e.safetensors")
    assert converted.method == method and converted.about == {"source": "last.ckpt"}
    assert_same_features(converted.backbone, encoder.backbone)
    whole = files.load_tensors(tmp_path / "e.safetensors").tensors
    assert whole.keys() == encoder.state_dict().keys()
    assert all(torch.equal(whole[key], value) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    "prefix, under, head", [("model.", "state_dict", "fc"), ("", None, "fc"), ("encoder.module.", "model", "head.0")]
)
def test_bare_resnets(tmp_path, prefix, under, head):
    backbone = make("simclr").backbone
    state = {f"{prefix}{key}": value for key, value in backbone.state_dict().items()}
    state |= {f"{'model.' if prefix == 'model.' else ''}{head}.weight": torch.zeros(5, 32)}
    torch.save(state if under is None else {under: state, "epoch": 3}, tmp_path / "in.pth")
    loaded = load_encoder(tmp_path / "in.pth")
    assert loaded.method == "backbone" and len(loaded.left_out) == 1
    assert_same_features(loaded.backbone, backbone)
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert_same_features(load_encoder(tmp_path / "out.safetensors").backbone, backbone)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("prefix", ["", "model.", "encoder.", "encoder.module."])
def test_encoders_that_were_saved_from_a_wrapper(tmp_path, wrapper, prefix):
    backbone = make("simclr").backbone
    outer = {f"{wrapper}{prefix}{key}": value for key, value in backbone.state_dict().items()}
    inner = {f"{prefix}{wrapper}{key}": value for key, value in backbone.state_dict().items()}
    for state in (outer, {"state_dict": inner}, {"model_state_dict": outer, "epoch": 3}):
        torch.save(state, tmp_path / "in.pth")
        assert_same_features(load_encoder(tmp_path / "in.pth").backbone, backbone)


def test_an_encoder_of_a_method_that_was_saved_from_a_wrapper(tmp_path):
    encoder = make("byol")
    state = {f"module.{published_key('byol', key)}": value for key, value in encoder.state_dict().items()}
    path = lightning(tmp_path / "last.ckpt", state)
    assert load_encoder(path).method == "byol"
    convert(path, tmp_path / "e.safetensors")
    assert_same_features(load_encoder(tmp_path / "e.safetensors").backbone, encoder.backbone)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda module: module])
def test_a_resnet_that_was_saved_whole(tmp_path, wrap):
    resnet = torchvision.models.resnet18()
    torch.save(wrap(resnet), tmp_path / "whole.pth")
    loaded = load_encoder(tmp_path / "whole.pth").backbone.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in resnet.state_dict().items() if key in loaded)


def test_a_refusal_names_the_keys_met_and_those_known(tmp_path):
    state = {f"module.encoder_q.{key}": value for key, value in make("simclr").backbone.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "moco.pth")
    with pytest.raises(CorruptCheckpointError) as caught:
        load_encoder(tmp_path / "moco.pth")
    met, known = str(caught.value).split("; looked for ")
    assert "module.encoder_q.conv1.weight" in met and "more" in met
    assert "conv1.weight (torchvision's ResNet)" in known and "online_network.encoder.0.weight" in known
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CorruptCheckpointError, match="but a list; looked for"):
        load_encoder(tmp_path / "list.pth")


def test_cop_gens_names_of_stem_and_shortcuts(tmp_path):
    backbone = ResNet(18, small_images=True, width=4)
    turned = {}
    for key, value in backbone.state_dict().items():
        key = key.replace("downsample", "shortcut")
        for ours, theirs in (("conv1.", "stem.0."), ("bn1.", "stem.1.")):
            key = theirs + key.removeprefix(ours) if key.startswith(ours) else key
        turned[f"encoder.{key}"] = value
    torch.save({"model": turned}, tmp_path / "in.pth")
    assert_same_features(load_encoder(tmp_path / "in.pth").backbone, backbone)


def _missing(state):
    del state["encoder.layer2.0.bn1.weight"]


def _extra(state):
    state["encoder.layer2.7.bn1.weight"] = torch.zeros(8)


def _misshapen(state):
    state["encoder.layer2.0.bn1.weight"] = torch.zeros(9)


def _stemless(state):
    state["encoder.conv1.weight"] = torch.zeros(4)


@pytest.mark.parametrize("spoil", [_missing, _extra, _misshapen, _stemless])
@pytest.mark.parametrize("read", [load_encoder, lambda path: convert(path, path.parent / "out.safetensors")])
def test_a_backbone_that_does_not_fit_is_refused(tmp_path, spoil, read):
    state = {published_key("simsiam", key): value for key, value in make("simsiam").state_dict().items()}
    spoil(state)
    path = lightning(tmp_path / "last.ckpt", state)
    with pytest.raises(CorruptCheckpointError, match=r"last\.ckpt"):
        read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_other_files_are_refused(tmp_path):
    torch.save({"state_dict": {"decoder.weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(CorruptCheckpointError, match="no encoder"):
        load_encoder(tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match="no such file"):
        load_encoder(tmp_path / "missing.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no encoder has been saved"):
        load_encoder(tmp_path / "empty")
    files.save_tensors(tmp_path / "odd.safetensors", {"x": torch.zeros(1)}, {"format": "mi_ml_gen encoder"})
    with pytest.raises(CorruptCheckpointError, match="does not describe an encoder"):
        load_encoder(tmp_path / "odd.safetensors")


def test_nothing_in_a_published_file_is_run(tmp_path):
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            import os

            return os.mkdir, (str(marker),)

    state = {published_key("simsiam", key): value for key, value in make("simsiam").state_dict().items()}
    with pytest.raises((UnsafeCheckpointError, CorruptCheckpointError)):
        load_encoder(lightning(tmp_path / "last.ckpt", state, callbacks=Payload()))
    assert not marker.exists()


def test_a_flipped_bit_is_noticed(tmp_path):
    save_encoder(tmp_path / "e.safetensors", make("simclr"))
    content = bytearray((tmp_path / "e.safetensors").read_bytes())
    content[-9] ^= 1
    (tmp_path / "e.safetensors").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        load_encoder(tmp_path / "e.safetensors")
