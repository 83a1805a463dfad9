"""What pyproject.toml cannot say: the folder scripts/ is installed as the package mi_ml_gen.scripts."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mi_ml_gen*"]), "mi_ml_gen.scripts"],
    package_dir={"mi_ml_gen.scripts": "scripts"},
)
