"""Changes to whole models, one file per verb; `walk` is how all of them find and replace layers."""
