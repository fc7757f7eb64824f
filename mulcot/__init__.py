"""mulcot: distil multimodal chain-of-thought reasoning from a large teacher into a small vision-language model."""

from importlib.metadata import version

__version__ = version("mulcot")
