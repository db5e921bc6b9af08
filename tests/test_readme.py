"""What README shows can be run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_give_the_scores_they_promise():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    namespace: dict = {}
    exec(block, namespace)
    scores = namespace["scores"]
    assert scores.shape == (120, 30)
    assert torch.isfinite(scores).all()
    assert scores.abs().max() > 1e-3


def test_every_file_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
