"""Memory of what is measured on an NVAE with latents as long as the published ones: values bound the batches."""

from __future__ import annotations

import os
import subprocess
import sys

MEASURE = """
import resource, sys
import torch
from mi_ml_gen.core import config
from mi_ml_gen.delta import estimate_delta, independent_delta
from mi_ml_gen.generators import anchors
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.training import NVAETrainConfig
from mi_ml_gen.walkers.learned import learned_walker

torch.set_num_threads(1)
settings = config.load(NVAETrainConfig, "nvae/cifar10", {"initial_channels": 2})
generator = NVAE(settings.architecture()).freeze()
assert generator.layout.n_chunks == 24 and generator.noise_dim == 8 * 16 * (16 + 64 + 256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
walker = learned_walker(generator, "16_24")  # the last scale: 32,768 numbers
found = independent_delta(generator, "16_24", 200), estimate_delta(generator, walker, 100)
assert found[0].mean > 10 * found[1].mean > 0
anchors.MAX_IMAGES = 60
assert anchors.encoded_images(generator, "digits").noise.shape == (60, generator.noise_dim)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_latents_as_long_as_the_published_ones_need_little_memory():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 800, f"{done.stdout.strip()} MB"
