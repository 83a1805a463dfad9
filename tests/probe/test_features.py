"""Features of a frozen backbone: right, kept, found again, and without a trace on the backbone."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import save_tensors
from mi_ml_gen.core.resnet import resnet
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.data.splits import Subset
from mi_ml_gen.probe.features import Extraction, extract_features, fingerprint, frozen, labels_of
from mi_ml_gen.views.augment import IMAGENET_MEAN, IMAGENET_STD

HOW = Extraction(torch.device("cpu"), batch_size=7)


def make_source(n: int = 20, size: int = 16, seed: int = 0, n_classes: int = 4) -> HeldImages:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n) % n_classes
    return HeldImages(f"noise {seed}", images, labels, tuple(f"class {i}" for i in range(n_classes)))


def make_backbone(seed: int = 0):
    torch.manual_seed(seed)
    return resnet(18, 14, width=4)


class Counted(nn.Module):
    """Means of the channels, and how many images came by."""

    feature_dim = 3

    def __init__(self):
        super().__init__()
        self.n_seen = 0

    def forward(self, views: Tensor) -> Tensor:
        self.n_seen += len(views)
        return views.mean(dim=(2, 3))


def test_features_are_of_normalised_centre_crops():
    source = make_source()
    found = extract_features(Counted(), source, HOW)
    crops = source.images[:, :, 1:15, 1:15].double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
    truth = (crops.mean(dim=(2, 3)) - mean) / std
    assert found.values.numpy() == pytest.approx(truth.numpy(), abs=1e-5)
    assert found.labels.equal(source.labels) and found.values.dtype == torch.float32


def test_nothing_of_the_backbone_changes():
    backbone = make_backbone().train()
    backbone.layer2.eval()
    before = copy.deepcopy(backbone.state_dict())
    modes = [module.training for module in backbone.modules()]
    found = extract_features(backbone, make_source(), HOW)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert modes == [module.training for module in backbone.modules()] and backbone.training
    assert not found.values.requires_grad
    one_by_one = extract_features(backbone, make_source(), HOW._replace(batch_size=1))
    assert found.values.numpy() == pytest.approx(one_by_one.values.numpy(), abs=1e-5)  # no batch statistics


def test_modes_come_back_after_an_error():
    backbone = make_backbone().train()
    with pytest.raises(RuntimeError), frozen(backbone):
        assert not backbone.layer1.training
        raise RuntimeError
    assert backbone.layer1.training


def test_kept_features_are_read_and_not_computed(tmp_path):
    backbone, source = Counted(), make_source()
    first = extract_features(backbone, source, HOW, tmp_path, "train")
    again = extract_features(backbone, source, HOW, tmp_path, "train")
    assert backbone.n_seen == 20 and again.values.equal(first.values)
    assert [path.name[:15] for path in tmp_path.glob("*.safetensors")] == ["features_train_"]


def test_other_weights_data_or_size_are_other_features(tmp_path):
    backbone = make_backbone()
    extract_features(backbone, make_source(), HOW, tmp_path)
    for other in (make_source(seed=1), make_source(n=19), make_source(n_classes=5), make_source(size=24)):
        extract_features(backbone, other, HOW, tmp_path)
    with torch.no_grad():
        backbone.layer4[1].bn2.running_var[3] += 1e-6
    extract_features(backbone, make_source(), HOW, tmp_path)
    extract_features(Counted(), make_source(), HOW, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 7


def test_damaged_features_are_computed_again(tmp_path, caplog):
    backbone, source = Counted(), make_source()
    first = extract_features(backbone, source, HOW, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = extract_features(backbone, source, HOW, tmp_path)
    assert again.values.equal(first.values) and backbone.n_seen == 40 and "damaged" in caplog.text
    save_tensors(path, {"other": torch.zeros(1)})
    assert extract_features(backbone, source, HOW, tmp_path).values.equal(first.values)


def test_a_subset_is_its_images():
    source = make_source()
    chosen = torch.tensor([7, 3, 11])
    part = Subset(source, chosen, "part")
    whole = extract_features(Counted(), source, HOW)
    found = extract_features(Counted(), part, HOW)
    assert found.values.numpy() == pytest.approx(whole.values[chosen].numpy(), abs=1e-6)
    assert found.labels.equal(whole.labels[chosen]) and fingerprint(part) != fingerprint(source)


def test_labels_are_needed():
    source = make_source()
    source.labels = None
    with pytest.raises(UsageError, match="has no labels; a probe needs them"):
        labels_of(source)
