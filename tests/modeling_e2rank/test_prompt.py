"""The listwise prompt: its exact text, its token ids, its budget, and what may be a control token in it."""

import copy
import logging
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from e2rank_st import E2Rank
from e2rank_st.prompts_e2rank import (
    LONG_TOKEN,
    PROMPT_FORMATS,
    USUAL_TOKEN,
    PromptBuilder,
    PromptFormat,
    TextTokenizer,
    water_fill,
)
from tests.conftest import GOLDEN

INSTRUCTION = GOLDEN[0]["instruction"]
TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
LISTWISE = [row for row in GOLDEN if row["format"] in PROMPT_FORMATS]
words = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60)


def builder(model: E2Rank, name: str = "evaluation", max_tokens: int = 32_768, max_query_tokens: int = 1024):
    return PromptBuilder(TextTokenizer(model.tokenizer), PROMPT_FORMATS[name], max_tokens, max_query_tokens)


def build(made: PromptBuilder, query: str, documents: list[str], instruction: str = INSTRUCTION):
    tokens = made.texts.texts([query, *documents])
    return made.build(tokens[query], documents, instruction, lambda texts: [tokens[text] for text in texts])


def whole_string_ids(model: E2Rank, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("row", LISTWISE, ids=lambda row: f"{row['format']}-{row['query'][:8]}")
def test_golden_prompt(tiny: E2Rank, row):
    """Guards against a prompt other than the released models': byte for byte, and the ids of the whole string."""
    prompt = build(builder(tiny, row["format"]), row["query"], row["documents"], row["instruction"])
    assert tiny.tokenizer.decode(prompt.ids) == row["rendered"]
    assert prompt.ids == whole_string_ids(tiny, row["rendered"])


@pytest.mark.parametrize("row", [row for row in GOLDEN if row["format"] in ("query", "document")])
def test_golden_query_and_document(tiny: E2Rank, row):
    """Guards against another retrieval form: instruction and query, or the document, and then EOS once."""
    prompt = tiny.prompts["query"] if row["format"] == "query" else ""
    text = row["query"] if row["format"] == "query" else row["documents"][0]
    ids = tiny.preprocess([text], prompt=prompt)["input_ids"][0].tolist()
    assert tiny.tokenizer.decode(ids) == row["rendered"]
    assert tuple(ids) == whole_string_ids(tiny, row["rendered"])


def test_golden_encoder_prompt(bundled: E2Rank):
    """Guards against a changed form of the bundled model: the text, and one [CLS] and [SEP] around it."""
    prompt = build(builder(bundled, "encoder", 512), "which is red?", ["Grass is green.", "Blood is red."])
    text = "which is red?\nGrass is green.\nBlood is red."
    assert bundled.listwise.format.render(INSTRUCTION, "which is red?", ["Grass is green.", "Blood is red."]) == text
    assert prompt.ids == tuple(bundled.tokenizer(text)["input_ids"])
    assert bundled.tokenizer.convert_ids_to_tokens(prompt.ids)[:: len(prompt.ids) - 1] == ["[CLS]", "[SEP]"]


@given(query=words, documents=st.lists(words, max_size=5))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["evaluation", "model_card"])
def test_ids_equal_whole_string_rendering(tiny: E2Rank, name, query, documents):
    """Guards against tokenising in parts: with nothing to cut, ids are those of the chat-rendered whole string."""
    assume(not any(token in text for token in tiny.tokenizer.get_added_vocab() for text in (query, *documents)))
    made = builder(tiny, name)
    message = made.format.render(INSTRUCTION, query, documents)
    rendered = tiny.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert build(made, query, documents).ids == whole_string_ids(tiny, rendered)


@pytest.mark.parametrize("name", ["evaluation", "model_card"])
def test_text_never_becomes_a_control_token(tiny: E2Rank, name):
    """Guards against a document that ends the user's turn: only the template's own control tokens are there."""
    added = tiny.tokenizer.get_added_vocab()
    hostile = "x" + "".join(added) + "y"
    whole = set(whole_string_ids(tiny, hostile))
    assert set(added.values()) <= whole, "the premise: as an ordinary string it would be control tokens"
    made = builder(tiny, name)
    harmless, attacked = build(made, "q", ["d", "d"]), build(made, hostile, [hostile, "d" + hostile], "i" + hostile)
    controls = [[token for token in prompt.ids if token in added.values()] for prompt in (harmless, attacked)]
    assert controls[0] == controls[1]
    assert hostile in tiny.tokenizer.decode(attacked.ids)


def test_separator_token_in_a_bert_prompt(bundled: E2Rank):
    """Guards against [SEP] in a text ending a BERT sequence: one [CLS], one [SEP], both the tokenizer's own."""
    hostile = "[CLS] a [SEP] b [PAD] [MASK]"
    ids = build(builder(bundled, "encoder", 512), hostile, [hostile]).ids
    special = [
        token for token in bundled.tokenizer.convert_ids_to_tokens(ids) if token.startswith("[") and token != "["
    ]
    assert special == ["[CLS]", "[SEP]"]


@given(lengths=st.lists(st.integers(0, 50), max_size=12), budget=st.integers(-5, 400))
@example(lengths=[5, 5, 5], budget=10)
def test_water_fill(lengths, budget):
    """Guards against waste and unfairness: all is given out, none above its length, the cut ones share equally."""
    shares = water_fill(lengths, budget)
    assert all(0 <= share <= length for share, length in zip(shares, lengths, strict=True))
    assert sum(shares) == min(max(budget, 0), sum(lengths))
    cut = [share for share, length in zip(shares, lengths, strict=True) if share < length]
    assert all(share >= max(shares) - 1 for share in cut)


@given(query=words, documents=st.lists(words, max_size=8), limit=st.integers(110, 400))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["evaluation", "model_card"])
def test_budget(tiny: E2Rank, name, query, documents, limit):
    """Guards against the cut that loses the query: any texts, any limit that holds template and query."""
    made = builder(tiny, name, limit)
    if len(made.encode(INSTRUCTION, query, [])) > limit - 10:
        return
    prompt = build(made, query, documents)
    assert len(prompt.ids) <= limit
    text = tiny.tokenizer.decode(prompt.ids)
    assert text.endswith(tiny.tokenizer.decode(whole_string_ids(tiny, query)) + TAIL)
    assert text.startswith(f"<|im_start|>user\n{INSTRUCTION}:\nDocuments:\n")
    pairs = list(zip(prompt.document_tokens, prompt.document_shares, strict=True))
    kept = [(tokens, share) for tokens, share in pairs if share or not tokens]
    assert all(share >= max(share for _, share in kept) - 1 for tokens, share in kept if share < tokens)
    if len(made.encode(INSTRUCTION, query, documents)) <= limit - 10:
        assert prompt.ids == made.encode(INSTRUCTION, query, documents), "what fits is not cut"


@given(texts=st.lists(words, min_size=1, max_size=8), limit=st.integers(8, 40))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_budget_of_an_encoder(bundled: E2Rank, texts, limit):
    """Guards against a prompt above the positions of a BERT, whose word pieces split in another way once cut."""
    prompt = build(builder(bundled, "encoder", limit, max_query_tokens=3), texts[0], texts[1:])
    assert len(prompt.ids) <= limit
    assert prompt.query_share == min(prompt.query_tokens, 3)


def test_documents_are_cut_on_token_boundaries(tiny: E2Rank):
    """Guards against half a token or half a character: the first tokens of the document are kept."""
    document = "größere Überraschung 🎉🎉🎉 " * 20
    tokens = TextTokenizer(tiny.tokenizer).texts([document])[document]
    for count in range(len(tokens.starts)):
        head = tokens.head(count)
        kept = whole_string_ids(tiny, head)
        assert document.startswith(head)
        assert len(kept) <= count
        assert list(kept) == tokens.ids.tolist()[: len(kept)]


def test_documents_without_room_are_left_out(tiny: E2Rank):
    """Guards against numbered lines without text, and against work that is quadratic in K: a few of 2,000 fit."""
    prompt = build(builder(tiny, max_tokens=100), "why?", [f"some words {number}" for number in range(2000)], "go")
    kept = sum(map(bool, prompt.document_shares))
    assert 0 < kept < 50
    assert len(prompt.ids) <= 100
    text = tiny.tokenizer.decode(prompt.ids)
    assert f"\n[{kept}] " in text
    assert f"[{kept + 1}]" not in text
    with pytest.raises(ValueError, match=r"max_prompt_tokens=20 cannot hold a query.*'evaluation'"):
        build(builder(tiny, max_tokens=20), "why is the sky blue?", ["because"])


def test_cuts_are_reported_once_a_call(tiny: E2Rank, caplog):
    """Guards against silent truncation: one line a call, with how many documents and tokens, and one for queries."""
    model = copy.deepcopy(tiny)
    model.listwise.max_prompt_tokens, model.listwise.max_query_tokens = 150, 5
    query, long = "why is the sky blue and the grass green?", "blue " * 200
    with caplog.at_level(logging.INFO, "e2rank_st"):
        model.rerank([query, "why"], [[long, "x"], [long]], show_progress_bar=False)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "at most 150 tokens: documents shortened: 2, to" in lines[0]
    assert "Cut 1 of 2 queries" in lines[1]
    assert caplog.records[1].levelno == logging.WARNING


def test_broken_formats():
    """Guards against a prompt without its query or documents: refused where it is made."""
    templates = ("{documents}", "{query}", "{query}{documents}{x}", "{query}{documents}{}")
    documents = ("x", "{index}", "{document}{query}")
    for parts in (*((text, "{document}") for text in templates), *(("{query}{documents}", text) for text in documents)):
        with pytest.raises(ValueError, match="needs the fields"):
            PromptFormat("broken", *parts)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<|im_start|>user\n{% for part in m.content %}{{ part.text }}{% endfor %}", "once and unchanged"),
        ("{{ m.content }}<|im_end|>{{ m.content }}", "once and unchanged"),
        ("{{ m.content | upper }}", "once and unchanged"),
        ("<|turn|>\nuser\n{{ m.content }}<|turn|>\n", "beside a control token"),
    ],
)
def test_chat_templates_that_change_the_message(tiny: E2Rank, template, message):
    """Guards against ids other than the template's: it drops, repeats or changes the text, or a token strips it."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True, rstrip=True)], special_tokens=True)
    tokenizer.chat_template = f"{{%- for m in messages %}}{template}{{% endfor %}}"
    with pytest.raises(ValueError, match=message):
        PromptBuilder(TextTokenizer(tokenizer), PROMPT_FORMATS["evaluation"], 1000, 100)


def test_tokenizers_that_do_not_suffice(bundled: E2Rank):
    """Guards against an obscure error on an encoder, and against offsets that a slow tokenizer does not have."""
    with pytest.raises(ValueError, match=r"'evaluation' needs a chat template.*'encoder'"):
        builder(bundled, "evaluation")
    with pytest.raises(ValueError, match="fast tokenizer, got SimpleNamespace"):
        TextTokenizer(SimpleNamespace(is_fast=False))


def test_the_instruction_of_a_call_is_in_the_prompt(tiny: E2Rank, bundled: E2Rank, facts):
    """Guards against an option without effect: it changes the prompt, or is refused if the format does not take it."""
    tokens = TextTokenizer(tiny.tokenizer)
    made = PromptBuilder(tokens, PROMPT_FORMATS["evaluation"], 1000, 100)
    for instruction in ("sort by age", "a much longer instruction that takes more tokens than the other one"):
        assert f"user\n{instruction}:\n" in tiny.tokenizer.decode(build(made, "q", ["d"], instruction).ids)
    assert tiny.rerank("q", facts, instruction="sort by age") != tiny.rerank("q", facts)
    with pytest.raises(ValueError, match="'encoder' has no place for an instruction"):
        bundled.rerank("q", facts, instruction="sort by age")


@pytest.mark.parametrize("end", ["", ".", ":", ". ", "...", ".:"])
def test_one_colon_follows_the_instruction(tiny: E2Rank, end):
    """Guards against ".:" in the prompt of an instruction that ends with a full stop, unlike any in training."""
    assert (
        build(builder(tiny), "q", ["d"], "sort by age" + end).ids == build(builder(tiny), "q", ["d"], "sort by age").ids
    )
    text = PromptFormat("own", "{instruction}\n{query}{documents}").render("Sort.", "q", [])
    assert text == "Sort.\nq", "where no colon follows, the full stop stays"


def test_documents_that_fit_are_not_tokenised_alone(tiny: E2Rank):
    """Guards against twice the work: documents are counted only if the whole prompt is too long; the ids are equal."""
    made, documents = builder(tiny), ["some words"] * 4
    tokens = made.texts.texts(["why?", *documents])
    fits = made.build(tokens["why?"], documents, "go", lambda _: pytest.fail("tokenised alone"))
    cut, share = made._cut(tokens["why?"], 99, [tokens[text] for text in documents], "go"), len(tokens["why?"].starts)
    assert (fits.ids, fits.query_share) == (cut.ids, share)


def test_long_words_that_fit_are_not_cut(bundled: E2Rank):
    """Guards against a guess from the number of characters that decides what a prompt holds."""
    made, documents = builder(bundled, "encoder", 512), ["information " * 40] * 10
    prompt = build(made, "why?", documents)
    assert USUAL_TOKEN * 512 < sum(map(len, documents)) < LONG_TOKEN * 512, "the premise: they might be too many"
    assert prompt.document_shares == () and prompt.ids == made.encode(INSTRUCTION, "why?", documents)


def test_the_budget_is_used(tiny: E2Rank):
    """Guards against cutting more than needed: prompts whose documents were cut nearly fill their limit."""
    for limit in (150, 300, 600):
        prompt = build(builder(tiny, max_tokens=limit), "why?", ["some long words here " * 50] * 4)
        assert limit * 0.9 <= len(prompt.ids) <= limit
