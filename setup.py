"""Installs rar_jax: pip install -e ".[cpu]", or with cuda or tpu for the JAX of that platform."""

from setuptools import find_packages, setup

setup(
    name="rar_jax",
    version="0.1.0",
    description="Randomized Autoregressive visual generation (RAR) in JAX/Flax",
    license="Apache-2.0",
    packages=find_packages(include=["rar_jax", "rar_jax.*"]),
    package_data={"rar_jax.data": ["imagenet_classes.txt"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "array_record",
        "clu",
        "etils[epath]",
        "filelock",
        "flax",
        "grain",
        # tensorflow-datasets imports it and does not ask for it.
        "importlib_resources",
        "jax>=0.10",
        "matplotlib",
        "ml-collections",
        "ml_dtypes",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "pillow",
        "safetensors",
        "scikit-learn",
        "scipy",
        "tensorflow-datasets",
        "tensorboardX",
        "tqdm",
    ],
    extras_require={
        "cpu": ["jax"],
        "cuda": ["jax[cuda12]"],
        # gcsfs: a run's folder on gs://.
        "tpu": ["jax[tpu]", "gcsfs"],
        "test": ["pytest", "pytest-xdist", "ruff"],
    },
)
