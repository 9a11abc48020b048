"""E2Rank: a Sentence-Transformers model that loads every E2Rank checkpoint, without a flag.

Checkpoint, Hub repository or folder → transformer, pooling and listwise reranking, wired together. Embedding calls are
inherited. Reranking is in :mod:`e2rank_st.modeling_e2rank`, which is also the remote code of a Hub repository.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, overload

import torch
from huggingface_hub.errors import RevisionNotFoundError, StrictDataclassError
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig
from typing_extensions import Unpack

from e2rank_st.adapter_e2rank import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from e2rank_st.adapters import (
    fill_adapter,
    merge_adapter,
    missing_base,
    prompt_base,
    read_adapter_config,
)
from e2rank_st.bundled import BASE, BUNDLED, NAMES, base_here
from e2rank_st.checkpoints import check_name, find_checkpoint, name_of_model
from e2rank_st.documents_e2rank import Document
from e2rank_st.folders.check import HOME, MODULES, check_folder
from e2rank_st.folders.hub import fetch
from e2rank_st.folders.saved import E2RankModelCardData, listwise_config, make_portable
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.precision import with_dtype
from e2rank_st.prompts_e2rank import LONG_TOKEN
from e2rank_st.storage import read_json, write_errors
from e2rank_st.wiring import (
    UNTRAINED_WARNING,
    Lock,
    check_vocabulary,
    make_tokenizer_portable,
    saved_length,
    untrained,
    wire,
)

__all__ = ["E2Rank"]

logger = logging.getLogger(__name__)

SAFE = {"use_safetensors": True, "weights_only": True}  # arguments of transformers: no pickle is run


class RerankOptions(TypedDict, total=False):
    """Keyword arguments of ``rerank``."""

    top_k: int | None
    return_documents: bool
    query_embeddings: Any
    document_embeddings: Any
    first_stage_scores: Any
    instruction: str | None
    num_prompt_documents: int | None
    candidate_order: str | None
    query_weight: float | None
    first_stage_weight: float | None
    min_similarity: float | None
    long_documents: str | None
    batch_size: int
    show_progress_bar: bool | None


class E2Rank(SentenceTransformer):
    """One embedding model that retrieves and reranks listwise.

    Args:
        model_name_or_path: A folder or Hub repository with a model that this package saved, with any embedding model of
            Sentence-Transformers, or with a plain transformers checkpoint of a known family (see
            :data:`~e2rank_st.checkpoints.CHECKPOINTS`). An embedding model keeps its vectors bit for bit; its reranking
            is :data:`~e2rank_st.checkpoints.UNTRAINED`.
        preset: Wire the checkpoint by this row, and ignore the wiring in its folder.
        dtype: Type of the weights, such as ``"bfloat16"``. ``"saved"`` is the checkpoint's own; ``"auto"`` is bfloat16
            where that is faster, see :func:`~e2rank_st.precision.fastest_dtype`.
        **kwargs: Arguments of ``SentenceTransformer``, such as ``device`` or ``revision``.

    Attributes:
        name: What loads the model again: a Hub id, the whole path of a folder, or the name of a bundled model.
        untrained: Whether the model was trained to embed only; then it warns before its first ranking.

    Raises:
        ValueError: If the model does not embed texts, or a plain checkpoint is not of a known family.
    """

    model_card_data_class = E2RankModelCardData

    def __init__(
        self, model_name_or_path: str | None = None, *, preset: str | None = None, dtype: Any = "saved", **kwargs: Any
    ) -> None:
        self._preset = preset
        self._tokenizing = Lock()
        self.commit: str | None = None  # of the weights, if they are from the Hub
        self.untrained = False
        self._has_warned = False
        if model_name_or_path is None and "modules" in kwargs:
            self.name = "modules"
        else:
            model_name_or_path = name_of_model(model_name_or_path)
            is_folder = Path(model_name_or_path).is_dir()
            self.name = str(Path(model_name_or_path).resolve()) if is_folder else model_name_or_path
        super().__init__(model_name_or_path, **with_dtype(dtype, **kwargs))

    @classmethod
    def from_bundled(cls, name: str = "bundled", **kwargs: Any) -> E2Rank:
        """Loads a model that this package ships: the vectors are its base's, and a small adapter embeds the prompts.

        The base's weights come from the extra ``bundled`` if it is installed, and else from the Hub.

        Args:
            name: A name of :data:`~e2rank_st.bundled.BUNDLED`, or ``bundled-base``: the base of ``bundled`` as it is.
            **kwargs: As for the class.

        Raises:
            ValueError: If the name is not one of them.
            ImportError: If the base's weights are not installed, and the Hub is not reachable.
        """
        if name not in NAMES:
            raise ValueError(f"Got the bundled model {name!r}; give one of {', '.join(map(repr, NAMES))}.")
        try:
            if name == BASE:
                model = cls._from_base(BUNDLED["bundled"].base, **kwargs)
            else:
                model = cls(str(BUNDLED[name].folder), **kwargs)
        except OSError as error:
            raise ImportError(str(error)) from error
        model.name = name
        return model

    @classmethod
    def _from_base(cls, base: str, **kwargs: Any) -> E2Rank:
        found = base_here(base)
        try:
            model = cls(found, **kwargs)
        except OSError as error:
            raise OSError(missing_base(base, error)) from error
        if found != base:  # a model trained from it names its base by the Hub id: the wheel's folder is here only
            assert model.transformers_model is not None
            model.transformers_model.name_or_path = base
            model.model_card_data.set_base_model(base)
        return model

    @classmethod
    def from_adapter(cls, folder: str | os.PathLike[str], *, merge: bool = True, **kwargs: Any) -> E2Rank:
        """Loads a LoRA adapter and the base that it names, with the adapter's reranking configuration.

        Args:
            folder: A folder from training with ``lora_rank``.
            merge: Whether to add the adapter to the weights. A separate one can be trained further. ``E2Rank(folder)``
                also keeps it separate, but asks the Hub for a base that is installed here.
            **kwargs: As for the class, for the base.

        Raises:
            FileNotFoundError: If the folder does not hold an adapter.
            ValueError: If the adapter is not plain LoRA, is damaged, or belongs to a different base.
            OSError: If the base cannot be loaded.
            ImportError: If the adapter stays separate, and peft is missing.
        """
        folder = Path(folder)
        base = read_adapter_config(folder)["base_model_name_or_path"]
        if not kwargs.get("trust_remote_code"):
            check_folder(folder)
        model = cls._from_base(base, **kwargs)
        assert model.transformers_model is not None
        if merge:
            merge_adapter(model.transformers_model, folder)
            model.transformers_model.name_or_path = folder.resolve().name  # no longer the base
        else:
            try:
                model.load_adapter(str(folder), is_trainable=True)
            except ImportError as error:
                raise ImportError("Adapters need peft: pip install 'e2rank-st[train]'") from error
            fill_adapter(model.transformers_model, folder / ADAPTER_WEIGHTS)
        model._configure(folder)
        return model

    @classmethod
    def remote(
        cls,
        url: str,
        tokenizer: str,
        *,
        model: str | None = None,
        prompt_model: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 3,
        concurrency: int = 4,
        **listwise: Any,
    ) -> E2Rank:
        """A model whose vectors come from an OpenAI-compatible server, such as vLLM, TEI, or ``e2rank serve``.

        Texts are tokenised here, and prompts are built here. Everything else works as with a model of this process.

        Args:
            url: The server's address, such as ``http://127.0.0.1:8000``.
            tokenizer: The model whose tokenizer and settings are read here, without its weights: a Hub id, a folder, or
                the name of a bundled model.
            model: The server's name for it; by default the only one that the server lists, or that of ``tokenizer``.
            prompt_model: The server's name for the model that embeds listwise prompts, where a prompt adapter does.
            api_key: The server's key; by default the environment variable ``E2RANK_API_KEY``.
            timeout: Seconds to wait for an answer.
            max_retries: How often a failed request is repeated.
            concurrency: Most requests at a time of one forward pass.
            **listwise: Arguments of :class:`~e2rank_st.modeling_e2rank.ListwiseRerank` instead of the model's, such as
                ``prompt_format``.

        Raises:
            ValueError: A value is not allowed, or the tokenizer is not that of the server's model.
            OSError: The server is not reachable or fails, or the tokenizer cannot be loaded.
            ImportError: The package ``openai`` is missing.
        """
        from e2rank_st.backends.connect import choose, connect, read_settings
        from e2rank_st.backends.remote import Server

        server = Server(url, api_key=api_key, timeout=timeout, max_retries=max_retries, concurrency=concurrency)
        settings = read_settings(name_of_model(tokenizer))
        name = model or choose(server, tokenizer, prompt_model)
        modules = connect(server, settings, name, prompt_model, **listwise)
        found = cls(modules=modules, device="cpu", **settings.options)
        found.name, found.untrained = name, settings.untrained and prompt_model is None
        return found

    async def arerank(self, query: Any, documents: Any, **options: Any) -> Any:
        """As :meth:`rerank`, in a thread of its own, so that the event loop goes on meanwhile."""
        return await asyncio.to_thread(partial(self.rerank, query, documents, **options))

    def _configure(self, folder: Path) -> None:
        """Take over length limit, prompts and reranking configuration of a saved model."""
        self.untrained = False
        if (length := saved_length(folder)) is not None:
            self.max_seq_length = length
        self.prompts |= _read_json(folder / "config_sentence_transformers.json").get("prompts", {})
        self.replace_listwise(**_read_json(listwise_config(folder)))

    def replace_listwise(self, **options: Any) -> None:
        """Change the reranking configuration, checked as a whole.

        Args:
            **options: Arguments of :class:`~e2rank_st.modeling_e2rank.ListwiseRerank`; the rest stays the same.

        Raises:
            ValueError: If a value is not allowed.
        """
        place = list(self).index(self.listwise)
        kept = {name: getattr(self.listwise, name) for name in self.listwise.config_keys}
        reranker = ListwiseRerank(**kept | options)
        reranker.adapter = self.listwise.adapter
        reranker.on_model_ready(self)
        self[place] = reranker

    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
        """Hook of ST. Our classes do not need ``trust_remote_code``: a repository's copy of them is this source."""
        return MODULES.get(class_ref) or super()._load_module_class_from_ref(class_ref, *args, **kwargs)

    def _load_modules(self, model_name_or_path: str, *, is_base: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]
        """Hook of ST: checks the folder, and then loads just what was checked, from the folder or the Hub's cache."""
        adapters = {"cache_dir": kwargs["cache_folder"]}  # otherwise transformers looks in its own cache
        kwargs["model_kwargs"] = SAFE | {"adapter_kwargs": adapters} | (kwargs["model_kwargs"] or {})
        hub = {name: kwargs[name] for name in ("token", "cache_folder", "local_files_only")}
        if kwargs["trust_remote_code"]:
            names = ("modules.json", "config.json", f"{HOME}/{ADAPTER_CONFIG}")
            place = {"revision": kwargs["revision"], **hub}
            *whole, adapter = (ListwiseRerank.load_file_path(model_name_or_path, name, **place) for name in names)
            if any(whole) or not adapter:  # an adapter alone holds no code, so it is checked, and its base trusted
                return self._load_checked(model_name_or_path, **kwargs)
        folder = fetch(model_name_or_path, revision=kwargs["revision"], **hub)
        checked: dict[str, Any] = {"local_files_only": True}
        if not Path(model_name_or_path).is_dir():
            checked["revision"] = self.commit = folder.name  # since a branch may move meanwhile
        kind = check_folder(folder)
        if is_base and kind.endswith("adapter"):
            raise ValueError(f"The base {model_name_or_path!r} is an adapter itself ({kind}). Give a whole model.")
        if kind == "prompt adapter":
            return self._load_on_base(folder, kwargs, "revision" in checked)
        if kind == "adapter":  # ST and transformers load its base themselves
            base = read_adapter_config(folder)["base_model_name_or_path"]
            check_name(base)
            # They may ask for the base by the name of the adapter's revision.
            for revision in (None, str(kwargs["revision"] or "main")):
                with suppress(RevisionNotFoundError):
                    if check_folder(fetch(base, revision=revision, **hub)).endswith("adapter"):
                        raise ValueError(f"The base {base!r} of this adapter is an adapter, too. Merge it first.")
            checked = {}  # they take an adapter's missing config.json for a broken download, unless they may ask
        try:
            modules = self._load_checked(model_name_or_path, **kwargs | checked)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, StrictDataclassError, TypeError) as error:
            raise ValueError(
                f"The files of {model_name_or_path} do not fit each other ({type(error).__name__}: {error}). "
                "Check the arguments that you gave; else save or copy the whole model again."
            ) from error
        if not kwargs["local_files_only"]:
            self.model_card_data.set_base_model(model_name_or_path, revision=kwargs["revision"])
        return modules

    def _load_on_base(self, folder: Path, kwargs: dict[str, Any], downloaded: bool) -> Any:
        """Load the base that a prompt adapter names, and give it the adapter with its reranking configuration."""
        base, revision = prompt_base(folder, downloaded=downloaded)
        try:
            modules, options = self._load_modules(base, is_base=True, **kwargs | {"revision": revision})
        except OSError as error:
            raise OSError(missing_base(base, error)) from error
        named = dict(modules) if isinstance(modules, dict) else {str(n): part for n, part in enumerate(modules)}
        for name in [name for name, part in named.items() if isinstance(part, ListwiseRerank)]:
            if named.pop(name).adapter is not None:
                raise ValueError(f"The base {base!r} has a prompt adapter already. Train a new one on that one's base.")
        return OrderedDict(named, **{str(len(named)): ListwiseRerank.load(str(folder), HOME)}), options

    def _load_checked(self, model_name_or_path: str, **kwargs: Any) -> Any:
        if self._preset is not None:
            return self._load_default_modules(model_name_or_path, **kwargs)
        return super()._load_modules(model_name_or_path, **kwargs)

    def _load_default_modules(self, model_name_or_path: str, **options: Any) -> Any:  # type: ignore[override]
        """Hook of ST for a checkpoint without ``modules.json``: wires it by its row, without guessing the pooling."""
        hub = {name: options[name] for name in ("token", "revision", "trust_remote_code", "local_files_only")}
        hub["cache_dir"] = options["cache_folder"]
        kwargs = {name: value for name, value in options.items() if name.endswith("_kwargs")}
        architectures = ()
        if self._preset is None:
            architectures = AutoConfig.from_pretrained(model_name_or_path, **hub).architectures or ()
        checkpoint = find_checkpoint(self._preset, model_name_or_path, architectures)
        self.untrained = not checkpoint.reranks
        known = self._preset is not None or model_name_or_path in checkpoint.repositories
        guessed = f", by its architecture: {checkpoint.pooling_mode} pooling. Choose it with E2Rank(..., preset=...)"
        level = logging.DEBUG if known else logging.WARNING
        logger.log(level, "Wiring %s as %r%s.", model_name_or_path, checkpoint.preset, "" if known else guessed)
        modules = wire(checkpoint, model_name_or_path, hub, self.backend, **kwargs)
        if not self.prompts.get("query"):
            self.prompts["query"] = checkpoint.query_prompt
        if not hub["local_files_only"]:
            self.model_card_data.set_base_model(model_name_or_path, revision=hub["revision"])
        return modules, {}

    def _post_init(self) -> None:
        if not any(isinstance(module, ListwiseRerank) for module in self):
            self.append(untrained(self))
            self.untrained = True
        check_vocabulary(self)
        super()._post_init()

    @property
    def listwise(self) -> ListwiseRerank:
        """The module with the reranking configuration."""
        return next(module for module in self if isinstance(module, ListwiseRerank))

    @overload
    def rerank(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
        self, query: str, documents: Sequence[Document], **options: Unpack[RerankOptions]
    ) -> list[dict[str, Any]]: ...

    @overload
    def rerank(
        self,
        query: Sequence[str],
        documents: Sequence[Document] | Sequence[Sequence[Document]],
        **options: Unpack[RerankOptions],
    ) -> list[list[dict[str, Any]]]: ...

    def rerank(self, query: Any, documents: Any, **options: Any) -> Any:
        """Ranks documents for a query: see :meth:`e2rank_st.modeling_e2rank.ListwiseRerank.rerank`."""
        if self.untrained and not self._has_warned:
            self._has_warned = True
            logger.warning(UNTRAINED_WARNING)
        return self.listwise.rerank(query, documents, **options)

    rank = rerank

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenises inputs as ``SentenceTransformer`` does, for one thread at a time, without the rest of long texts.

        A tokenizer sets padding and truncation anew at every call, so two threads would corrupt each other's batches.
        """
        limit, before = self._most_tokens(**kwargs), prompt or ""
        if limit and any(isinstance(one, str) and len(one) > LONG_TOKEN * limit for one in inputs):
            texts = self.listwise.texts.own
            inputs = [
                texts.start(before + one, limit)[len(before) :] if isinstance(one, str) else one for one in inputs
            ]
        with self._tokenizing:
            return super().preprocess(inputs, prompt=prompt, **kwargs)

    def _most_tokens(self, processing_kwargs: Any = None, max_length: int | None = None, **_: Any) -> int | None:
        """The most tokens of an input that a call may keep; None if it keeps all."""
        options = (getattr(self[0], "processing_kwargs", None), processing_kwargs)  # the model's own, and the call's
        text = {name: value for given in options for name, value in ((given or {}).get("text") or {}).items()}
        if text.get("truncation", True) in (False, "do_not_truncate"):
            return None
        by_task = [getattr(self[0], f"{task}_length", None) for task in ("query", "document")]
        limits = [self.max_seq_length, text.get("max_length"), max_length, *by_task]
        return max((limit for limit in limits if limit), default=None) if self.max_seq_length else None

    def save_prompt_adapter(self, folder: str | os.PathLike[str]) -> None:
        """Saves the prompt adapter alone, with the reranking configuration: some MB that name their base.

        ``E2Rank(folder)`` loads both.

        Args:
            folder: A new or empty folder.

        Raises:
            ValueError: The model does not have a prompt adapter.
            OSError: The folder cannot be written.
        """
        if self.listwise.adapter is None:
            raise ValueError("This model does not have a prompt adapter. Save the whole model with save().")
        with write_errors(folder):
            home = Path(folder) / HOME
            home.mkdir(parents=True)
            self.listwise.save_config(str(home))
            self.listwise.adapter.write(home)

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Saves the model in the form of a Hub repository; the arguments are those of ``SentenceTransformer.save``.

        The same model gives the same bytes, independent of its earlier use. The folder contains its own code. Without
        this package, a plain ``SentenceTransformer`` therefore loads it with ``trust_remote_code``, and an older one
        that has no ``rerank`` is refused. The pooling is in the place where other runtimes look for it. A
        ``CrossEncoder`` cannot load the folder: it would rank by random weights.
        """
        # A fast tokenizer keeps the padding and truncation of its last call, and would save them.
        with self._tokenizing, write_errors(path):
            self.tokenizer.backend_tokenizer.no_padding()
            self.tokenizer.backend_tokenizer.no_truncation()
            super().save(path, *args, **kwargs)
        if path is not None:
            make_tokenizer_portable(self, Path(path))
            make_portable(Path(path))


def _read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file; a missing file is an empty configuration."""
    return dict(read_json(path)) if path.exists() else {}
