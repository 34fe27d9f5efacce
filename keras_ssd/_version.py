"""The version of keras-ssd, readable without importing Keras."""

__version__ = "0.1.0"
