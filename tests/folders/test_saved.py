"""A saved folder tells others how to load it, and fails where it would mislead."""

import json
import re
from pathlib import Path

import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from e2rank_st import E2Rank
from tests.toy import with_adapter


def test_a_saved_folder_names_what_it_needs(sound: Path, tiny: E2Rank, tmp_path: Path):
    """Guards against an older Sentence-Transformers, which loads the folder and has no ``rerank``."""
    name = "config_sentence_transformers.json"
    assert json.loads((sound / name).read_text())["requirements"] == {"sentence-transformers": ">=6.1"}
    adapted = with_adapter(tiny)
    adapted.transformers_model.name_or_path = "org/base"
    adapted.save_pretrained(str(tmp_path / "adapter"), create_model_card=False)
    assert "peft" in json.loads((tmp_path / "adapter" / name).read_text())["requirements"]


@pytest.mark.parametrize("searches", [True, False])
def test_the_card_of_a_saved_folder_runs(tiny: E2Rank, tmp_path: Path, searches: bool):
    """Guards against a README whose example fails for want of the flag, and never mentions reranking."""
    tiny.model_card_data.ir_model = searches
    try:
        tiny.save_pretrained(str(tmp_path / "model"))
    finally:
        tiny.model_card_data.ir_model = None
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "trust_remote_code=True" in code
    assert "model.rerank(" in code
    exec(code.replace("sentence_transformers_model_id", str(tmp_path / "model")), {"SentenceTransformer": None})


@pytest.mark.parametrize("trust", [True, False])
def test_no_cross_encoder(sound: Path, facts: list[str], trust: bool):
    """Guards against a ranking by random weights: the folder is no cross-encoder, and loading it as one says so."""
    with pytest.raises(ImportError, match="load_this_as_SentenceTransformer_not_as_CrossEncoder"):
        CrossEncoder(str(sound), device="cpu", trust_remote_code=trust)
    plain = SentenceTransformer(str(sound), device="cpu", trust_remote_code=True)
    assert len(plain.rerank("fleas", facts)) == len(facts)
