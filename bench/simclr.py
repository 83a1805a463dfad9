"""SimCLR on real images, side by side with lightly's: probe accuracy and images per second.

    pip install lightly                                                          (an own environment is best)
    python -m bench.simclr --samples 60000 --epochs 5 --width 16 --seeds 3
    python -m bench.simclr --samples 512 --epochs 1 --width 4 --seeds 1 --batch 64     a trial

Both train the same ResNet-18 on the same images of Fashion-MNIST for the same steps, with the same batch, head,
learning rates, optimiser, temperature and augmentation (crop of 0.2 to 1, flip, colour jitter, grayscale). lightly's
part is what its SimCLR example does: its transform, projection head and NTXentLoss, and a torch DataLoader. Each
encoder is judged by ridge regression on its frozen features (the penalty chosen on validation images) and by its
nearest neighbours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from bench import timing
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.core.runtime import resolve_device, stream
from mi_ml_gen.core.schedules import LearningRate, peak_rate, warmup_steps
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.data.splits import Subset
from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.encoders.training import train_encoder
from mi_ml_gen.probe.accuracy import evaluate_scores
from mi_ml_gen.probe.features import Extraction, extract_features
from mi_ml_gen.probe.readouts import fit_ridge, knn_scores
from mi_ml_gen.views.augment import IMAGENET_MEAN, IMAGENET_STD

SIZE_PX, CROP_PX, DIM, TEMPERATURE, BASE_LR = 32, 28, 64, 0.2, 0.3


@dataclass
class Trained:
    """An encoder and how fast it came about."""

    backbone: nn.Module
    images_per_s: float


def ours(source: HeldImages, options: argparse.Namespace, seed: int) -> Trained:
    settings = EncoderConfig(
        encoder="simclr", depth=18, width=options.width, dim=DIM, temperature=TEMPERATURE, base_lr=BASE_LR, warmup=True,
        Tx="torchvision",
        max_epochs=options.epochs, cumulative_bs=options.batch, device=options.device, seed=seed,
        knn_freq=options.epochs + 1, save_freq=options.epochs + 1,
    )  # fmt: skip
    unlabelled = HeldImages(source.name, source.images)  # no time for kNN along the way
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = train_encoder(settings, source=unlabelled, path=f"{folder}/run", progress=False)
        seconds = time.perf_counter() - started  # with pictures, curves and states
        return Trained(load_encoder(result.path).backbone, result.samples / seconds)


def lightlys(source: HeldImages, options: argparse.Namespace, seed: int) -> Trained:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(
        input_size=CROP_PX, cj_bright=0.4, cj_contrast=0.4, cj_sat=0.4, cj_hue=0.1, min_scale=0.2, gaussian_blur=0.0,
        normalize={"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
    )  # fmt: skip

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return source.n_images

        def __getitem__(self, index: int) -> list[torch.Tensor]:
            pixels = source.batch(torch.tensor([index]))[0].permute(1, 2, 0).contiguous().numpy()
            return transform(Image.fromarray(pixels))

    torch.manual_seed(seed)
    device = resolve_device(options.device)
    backbone = ResNet(18, small_images=True, width=options.width).to(device)
    width = backbone.feature_dim
    head = SimCLRProjectionHead(width, width, DIM, num_layers=2, batch_norm=False).to(device)
    criterion = NTXentLoss(TEMPERATURE)
    n_batches = source.n_images // options.batch
    peak = peak_rate(BASE_LR, options.batch)
    rate = LearningRate(peak, options.epochs * n_batches, warmup_steps(options.epochs, n_batches))
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], peak, momentum=0.9, weight_decay=1e-4)
    loader = torch.utils.data.DataLoader(
        Images(), options.batch, shuffle=True, drop_last=True, num_workers=options.workers
    )
    started, step = time.perf_counter(), 0
    for _ in range(options.epochs):
        for first, second in loader:
            for group in optimizer.param_groups:
                group["lr"] = rate.at(step)
            loss = criterion(head(backbone(first.to(device))), head(backbone(second.to(device))))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return Trained(backbone, step * options.batch / (time.perf_counter() - started))


def judged(backbone: nn.Module, options: argparse.Namespace) -> dict[str, float]:
    """Top-1 on the test images: ridge regression, and 20 nearest neighbours."""
    how = Extraction(resolve_device(options.device))
    images, test = (load_source("fashion-mnist", split, SIZE_PX) for split in ("train", "test"))
    order = torch.randperm(images.n_images, generator=stream(0, "bench: split", 0, 0))[
        : options.probe + options.probe // 5
    ]
    features = extract_features(backbone, Subset(images, order, "train"), how)
    train = features.rows(torch.arange(options.probe))
    validation = features.rows(torch.arange(options.probe, len(order)))
    shown = torch.arange(min(options.test, test.n_images))
    queries = extract_features(backbone, Subset(test, shown, "test"), how)
    ridge = fit_ridge(train, validation, 10).linear.scores(queries.values)
    votes = knn_scores(train, queries.values, 10)
    names = [str(i) for i in range(10)]
    return {
        "ridge": evaluate_scores(ridge, queries.labels, names).top1.value,
        "knn": evaluate_scores(votes, queries.labels, names).top1.value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60000, help="training images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="of lightly's DataLoader")
    parser.add_argument("--probe", type=int, default=10000, help="labelled images that the probes learn from")
    parser.add_argument("--test", type=int, default=10000, help="test images")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    everything = load_source("fashion-mnist", "train", SIZE_PX)
    assert isinstance(everything, HeldImages)
    source = HeldImages("fashion-mnist", everything.images[: options.samples])

    untrained = judged(ResNet(18, small_images=True, width=options.width), options)
    print(f"untrained: ridge {untrained['ridge']:.2%}, kNN {untrained['knn']:.2%}")
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "lightly": []}
    for seed in range(options.seeds):
        for name, train in (("ours", ours), ("lightly", lightlys)):  # in turns, for a busy machine
            trained = train(source, options, seed)
            rows[name].append(judged(trained.backbone, options) | {"images_per_s": trained.images_per_s, "seed": seed})
            print(f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in rows[name][-1].items()), flush=True)
    for name, seeds in rows.items():
        for key in ("ridge", "knn", "images_per_s"):
            values = [row[key] for row in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            print(f"{name:8s} {key:13s} {statistics.mean(values):10.4g} +- {spread:.2g} over {len(values)} seeds")
    timing.RESULTS.mkdir(exist_ok=True)
    result = {"what": vars(options), "machine": timing.machine(options.device), "untrained": untrained, **rows}
    (timing.RESULTS / f"simclr_{options.device}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
