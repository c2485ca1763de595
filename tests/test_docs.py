"""What the folders' READMEs show, done; and where they point."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [p for p in ROOT.glob("**/README.md") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]


def test_one_prompt_goes_through_the_code(monkeypatch):
    """The session of r1jax/README.md, with what its comments say of the results."""
    monkeypatch.chdir(ROOT)
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "r1jax" / "README.md").read_text(), re.S):
        exec(block, found)
    assert found["row"]["answer"] in found["items"][0].completion
    np.testing.assert_allclose(found["advantages"], [1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0], atol=1e-5)
    assert float(found["metrics"]["ratio"]) == 1.0
    assert float(found["metrics"]["sampler/logprob_diff_max"]) < 1e-4
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found["before"], jax.device_get(found["state"].params))
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_links_of_every_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
