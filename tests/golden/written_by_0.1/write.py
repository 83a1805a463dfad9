"""How the samples of this folder were written, by version 0.1 of the package (commit 97661a5), once and for all:

    PYTHONPATH=<a checkout of that commit> python write.py FOLDER

Of every kind of file that 0.1 wrote a small one, with random weights, and in expected.npz what the model in it makes
of a fixed input (`inputs` of tests/core/test_written_by_0_1.py has the same formula).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from mi_ml_gen.backbone import ResNet
from mi_ml_gen.convert import convert
from mi_ml_gen.encoders import BYOL, SimCLR, SimSiam
from mi_ml_gen.encoders.base import Architecture
from mi_ml_gen.encoders.loading import save_encoder
from mi_ml_gen.generators import save_generator
from mi_ml_gen.generators.bigbigan import BigBiGAN, BigBiGANConfig
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.mim.model import MIM
from mi_ml_gen.probe import LinearClassifier, save_classifier
from mi_ml_gen.walkers import (
    GroupedWalker,
    IdentityWalker,
    NonlinearWalker,
    OccasionalNormal,
    RandomWalker,
    save_walker,
)


def inputs(*shape):
    """Numbers in [-1, 1], the same everywhere."""
    n = int(np.prod(shape))
    return torch.from_numpy(np.cos(np.arange(n) * 1.7).astype(np.float32)).reshape(shape)


def main(folder):
    torch.manual_seed(1)
    torch.set_num_threads(1)
    expected = {}

    def nonlinear(chunks, width):
        walker = NonlinearWalker(Chunks.parse(chunks, 8), width)
        for parameter in walker.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        return walker

    space = LinearGaussian(sizes=(2, 2, 2, 2))
    random = RandomWalker(Chunks(2, 4), TruncatedNormal(0.5, 0.25, 2.0))
    walkers = {
        "walker_nonlinear": nonlinear("0_2", 4),
        "walker_random": random,
        "walker_occasional": RandomWalker(Chunks(0, 1), OccasionalNormal(0.1, 0.9)),
        "walker_grouped": GroupedWalker([nonlinear("0_1", 2), random]),
        "walker_identity": IdentityWalker(),
    }
    for name, walker in walkers.items():
        save_walker(folder / name, walker, generator="linear-gaussian", samples=2048, seed=1)
        with torch.no_grad():
            expected[name] = walker(space, inputs(3, 8), torch.Generator().manual_seed(5)).positive.numpy()

    small = Architecture(depth=18, width=1, small_images=True, dim=4, pred=2)
    encoders = {"encoder_simclr": SimCLR(small), "encoder_simsiam": SimSiam(small), "encoder_byol": BYOL(small)}
    for name, encoder in encoders.items():
        encoder.eval()
        save_encoder(folder / f"{name}.safetensors", encoder, crop_size=16, epoch=1, settings={"seed": 1})
        with torch.no_grad():
            outputs = encoder(inputs(2, 3, 16, 16), inputs(2, 3, 16, 16).flip(0))
        expected[name] = torch.cat([part.flatten() for part in (outputs.features, *outputs.parts)]).numpy()

    backbone = ResNet(18, small_images=True, width=1)
    with tempfile.TemporaryDirectory() as place:
        torch.save(backbone.state_dict(), f"{place}/resnet.pth")
        convert(f"{place}/resnet.pth", folder / "encoder_backbone.safetensors")
    expected["encoder_backbone"] = backbone.eval()(inputs(2, 3, 16, 16)).detach().numpy()
    classifier = LinearClassifier(backbone, torch.nn.Linear(backbone.feature_dim, 3), ("cat", "dog", "n02"), 18).eval()
    save_classifier(folder / "classifier.safetensors", classifier)
    expected["classifier"] = classifier(inputs(2, 3, 16, 16)).detach().numpy()

    models = {
        "mim": MIM(x_dim=3, z_dim=2, mid_dim=4),
        "mim_mixture": MIM(x_dim=3, z_dim=2, mid_dim=4, binary=True, p_z="gmm-marginal", p_z_gmm=3),
    }
    for name, model in models.items():
        (folder / name).mkdir()
        model.save(folder / name / "best.safetensors", step=10)
        half = model.data_half((inputs(4, 3) > 0).float(), torch.Generator().manual_seed(5))
        expected[name] = torch.stack([half.x_given_z, half.z_given_x, half.p_z]).detach().numpy()

    bigbigan = BigBiGAN(
        BigBiGANConfig(resolution=8, width=4, multipliers=(1,), chunk_dim=3, attention_resolution=None), "mine"
    )
    style = StyleGAN2Config(z_dim=4, w_dim=4, img_resolution=8, mapping_layers=2, channel_base=32, channel_max=4)
    generators = {
        "generator_bigbigan": ("bigbigan", bigbigan),
        "generator_stylegan2": ("stylegan2", StyleGAN2(style, "styled").use({"psi": 0.7})),
        "generator_linear": ("linear-gaussian", LinearGaussian(sizes=(2, 1), noise=0.0, resolution=4)),
    }
    for name, (family, generator) in generators.items():
        generator.freeze()
        save_generator(folder / f"{name}.safetensors", generator, family, source="somewhere.pth")
        expected[name] = generator.decode(generator.latents(inputs(2, generator.noise_dim))).detach().numpy()

    walkers["walker_nonlinear"].save_pretrained(folder / "shared_walker")
    generators["generator_bigbigan"][1].save_pretrained(folder / "shared_generator")
    encoders["encoder_simsiam"].save_pretrained(folder / "shared_encoder")
    classifier.save_pretrained(folder / "shared_classifier")
    models["mim"].save_pretrained(folder / "shared_mim")
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
