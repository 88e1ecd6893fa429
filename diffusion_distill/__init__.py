"""Progressive distillation of diffusion models (Salimans & Ho, ICLR 2022) in JAX and Flax."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`load_sampler`, imported when first asked for: importing the package stays quick."""
    if name == "load_sampler":
        from diffusion_distill.interop.load import load_sampler

        return load_sampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
