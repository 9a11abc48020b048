"""A model's facts → the parts of its card that say how to load it, and whose vectors it has."""

from __future__ import annotations

from e2rank_st.publishing.card.facts import Facts

__all__ = ["lineage", "vectors", "without_package"]

LINK = "[{base}](https://huggingface.co/{base})"
TRAINED = "The model is {link}, trained\nfurther, above all for listwise prompts."
ADAPTED = """The model is {link}
with a *prompt adapter*: changes of its weights that count for listwise prompts only. **Its vectors of queries and
documents are those of {base}, bit for bit: keep the ones that you have stored.**"""

REMOTE = """Sentence-Transformers 6.1 or newer is enough. The flag lets the repository's own code run, some short files:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{{repo_id}}", trust_remote_code=True)
documents = [
    "The cat flea is the most common flea on cats and dogs.",
    "Depending on food and weather, an adult flea lives from two to three months.",
    "How long a battery lives depends on the number of charging cycles.",
]
for hit in model.rerank("how long do fleas live", documents, top_k=2):
    print(f"{hit['score']:.3f}  {documents[hit['corpus_id']]}")
```

The package `e2rank-st` is typed and needs no flag."""
ALONE = (
    """This repository holds the adapter alone. The package `e2rank-st` loads it with its base; peft is not needed."""
)

STOCK = """The branch `embedding` holds the same weights and stock modules only. It embeds without a flag and without
our package; it cannot rerank:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{{repo_id}}", revision="embedding")
queries = model.encode_query(["how long do fleas live"])
documents = model.encode_document(["An adult flea lives from two to three months.", "Bread rises because of yeast."])
print(model.similarity(queries, documents))
```"""
KEPT = """To embed, {link} is enough. If its vectors are in
a database already, give those of the candidates to `rerank` as `document_embeddings`. Then only the query and its
prompt are embedded."""


def lineage(facts: Facts) -> str:
    """What was trained, and what became of the base's vectors."""
    return (ADAPTED if facts.keeps_vectors else TRAINED).format(link=LINK.format(base=facts.base), base=facts.base)


def without_package(alone: bool) -> str:
    """How the model is loaded by Sentence-Transformers; an adapter alone is not."""
    return ALONE if alone else REMOTE


def vectors(facts: Facts) -> str:
    """How to get vectors without code of the repository."""
    return KEPT.format(link=LINK.format(base=facts.base)) if facts.keeps_vectors else STOCK
