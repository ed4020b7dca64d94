"""The layers, one file per norm: the function, then the module."""
