"""Installs rar_jax: pip install -e ".[cpu]", or with cuda or tpu for the JAX of that platform."""

from setuptools import find_packages, setup

# Each lower bound is the minor version that the tests ran with: absl-py 2.5.1, array_record 0.8.6, clu 0.0.12, etils
# 1.15.0, filelock 4.3.1, flax 0.12.8, fonttools 4.68.0, grain 0.2.18, importlib_resources 7.1.0, ipykernel 7.4.0, jax
# and jaxlib 0.10.2, matplotlib 3.11.2, ml_collections 1.1.0, ml_dtypes 0.6.0, nbclient 0.11.0, numpy 2.4.6, optax
# 0.2.8, orbax-checkpoint 0.12.8, pillow 13.0.0, safetensors 0.8.0, scikit-learn 1.9.1, scipy 1.17.1, tensorboardX
# 2.6.5, tensorflow-datasets 4.9.10, tqdm 4.70.1, on Python 3.11.7. Gradio 6.31.0 excludes pillow 13; with it the tests
# of the page ran with pillow 12.3.0.
setup(
    name="rar_jax",
    version="0.1.0",
    description="Randomized Autoregressive visual generation (RAR) in JAX/Flax",
    license="Apache-2.0",
    packages=find_packages(include=["rar_jax", "rar_jax.*"]),
    package_data={
        "rar_jax.data": ["imagenet_classes.txt"],
        "rar_jax.demo": ["*.css", "*.html", "*.js"],
        "rar_jax.performance": ["gpu_targets/*.txtpb"],
    },
    entry_points={"console_scripts": ["rar_jax=rar_jax.__main__:main"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.5",
        "array_record>=0.8",
        "clu>=0.0.12",
        "etils[epath]>=1.15",
        "filelock>=4.3",
        "flax>=0.12",
        "fonttools>=4.68",
        "grain>=0.2.18",
        # tensorflow-datasets imports importlib_resources and does not require it.
        "importlib_resources>=7.1",
        "jax>=0.10.2",
        "matplotlib>=3.11",
        "ml-collections>=1.1",
        "ml_dtypes>=0.6",
        "numpy>=2.4",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=12.3",
        "safetensors>=0.8",
        "scikit-learn>=1.9",
        "scipy>=1.17",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.70",
    ],
    extras_require={
        # From jaxlib 0.11.1 on, a CPU rewrites a whole buffer for a small dynamic_update_slice inside a loop (jax issue
        # 40101), which makes decoding slow.
        "cpu": ["jax>=0.10.2,<0.11.1", "jaxlib>=0.10.2,<0.11.1"],
        # The same with the GPU compiler, without NVIDIA's libraries: compiles for GPUs on a machine without one.
        "aot": ["jax>=0.10.2,<0.11.1", "jaxlib>=0.10.2,<0.11.1", "jax-cuda12-plugin>=0.10.2,<0.11.1"],
        "cuda": ["jax[cuda12]"],
        # gcsfs reads and writes run folders on gs://.
        "tpu": ["jax[tpu]", "gcsfs>=2025.1"],
        "demo": ["gradio>=6.31"],
        # nbclient and ipykernel run the notebook.
        "test": ["ipykernel>=7.4", "nbclient>=0.11", "pytest>=9.2", "pytest-xdist>=3.8", "ruff>=0.17"],
    },
)
