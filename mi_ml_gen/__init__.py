"""What each latent variable of a pretrained generator does, measured by mutual information.

A generator here is a function of a flat latent vector cut into chunks. A walker perturbs some of the chunks,
a critic bounds the mutual information that survives the perturbation, and the pairs that result train
encoders. Importing the package imports nothing heavy: each name lives in its own module.
"""

__version__ = "0.1.0"
