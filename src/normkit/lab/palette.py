"""The colors of pages and figures, in light and in dark: here once, as variables in pages, as themselves elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from normkit.lab.models import NORMS, USUAL

# Told apart with any color vision: the least CIE76 distance of two norms is 22, also as simulated for protanopia,
# deuteranopia and tritanopia (Machado et al. 2009).
LIGHT: Mapping[str, str] = {
    "ground": "#ffffff", "panel": "#f5f6f8", "ink": "#1f2328", "quiet": "#57606a", "line": "#d5d9df",
    "good": "#077341", "bad": "#b42318",
    "norm-none": "#1f2328", "norm-batch": "#3173ee", "norm-layer": "#b07814",
    "norm-group": "#077341", "norm-instance": "#eb1196", "norm-rms": "#400359",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "ground": "#14171c", "panel": "#1c2027", "ink": "#e6e8eb", "quiet": "#a3abb6", "line": "#363c46",
    "good": "#3ddc97", "bad": "#ff8f85",
    "norm-none": "#e6e8eb", "norm-batch": "#5476fa", "norm-layer": "#a5700e",
    "norm-group": "#03f496", "norm-instance": "#e53e7e", "norm-rms": "#cb8ae2",
}  # fmt: skip
# More colors than the usual norms have are not told apart: the others have these again, with other dashes in figures.
# The LSTM's usual ones are told apart too: it takes no instance norm.
SAME: Mapping[str, str] = {
    **{norm: USUAL[i % len(USUAL)] for i, norm in enumerate(NORMS) if norm not in USUAL},
    "recurrent": "instance",
}


def variables() -> str:
    """The palette as custom properties of CSS, by the scheme that the reader prefers."""
    light, dark = (
        " ".join(f"--{name}: {color};" for name, color in scheme.items()) for scheme in (LIGHT, DARK)
    )
    same = " ".join(f"--norm-{norm}: var(--norm-{usual});" for norm, usual in SAME.items())
    return (
        f":root {{ color-scheme: light dark; {light} {same} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )
