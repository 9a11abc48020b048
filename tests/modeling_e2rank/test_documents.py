"""Documents with a title: their text, the results that point to them, and what is refused."""

import copy
from types import MappingProxyType

import pandas
import pyarrow
import pytest

from e2rank_st import E2Rank
from e2rank_st.documents_e2rank import join_fields
from e2rank_st.modeling_e2rank import ListwiseRerank
from tests.modeling_e2rank.rankings import QUERY

FLEAS = {"title": "Fleas", "text": "They live a hundred days.", "id": 7}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (FLEAS, "Fleas\nThey live a hundred days."),
        ({"text": "Iron."}, "Iron."),
        ({"text": "Iron.", "title": None}, "Iron."),
        ({"text": "Iron.", "title": " "}, "Iron."),
        ({"text": "", "title": "Iron"}, "Iron"),
        ({"text": "", "title": ""}, ""),
        ({"text": "{title} {0}", "title": "{text}"}, "{text}\n{title} {0}"),
        (MappingProxyType(FLEAS), "Fleas\nThey live a hundred days."),
        ("Iron.", "Iron."),
    ],
)  # fmt: skip
def test_the_text_of_a_document(tiny: E2Rank, document, text):
    """Guards against an empty first line, a text that is read as a template, and two ways of joining."""
    assert tiny.listwise.document_text(document) == text
    other = "Iron melts at 1538 degrees."
    assert tiny.rerank(QUERY, [document, other]) == tiny.rerank(QUERY, [text, other])


def test_results_point_to_the_given_object(tiny: E2Rank):
    """Guards against a copy, or a joined text, where the caller wants the record back."""
    documents = [FLEAS, "Iron.", {"text": "Bread."}]
    for query, given in (
        (QUERY, documents),
        ([QUERY, "iron"], documents),
        ([QUERY, "iron"], [documents, documents[:2]]),
    ):
        found = tiny.rerank(query, given, return_documents=True)
        for number, ranking in enumerate([found] if isinstance(query, str) else found):
            own = given if given is documents else given[number]
            assert len(ranking) == len(own)
            for hit in ranking:
                document = own[hit["corpus_id"]]
                assert hit["text"] == document if isinstance(document, str) else hit["document"] is document
                assert ("text" in hit) == isinstance(document, str) != ("document" in hit)


def test_columns_of_records(tiny: E2Rank):
    """Guards against a column of Arrow or pandas that has to be converted first."""
    records = [{"title": "Fleas", "text": "They live."}, {"title": None, "text": "Iron."}]
    expected = tiny.rerank(QUERY, records)
    for column in (pyarrow.array(records), pandas.Series(records), iter(records)):
        assert tiny.rerank(QUERY, column) == expected


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        ("q", ["a"] * 3 + [{"title": "t", "x": 1}], r"documents\[3\] has no 'text', got the keys \['title', 'x'\]"),
        ("q", [{"text": None}], r"documents\[0\] has no 'text'"),
        ("q", [{"text": 5}], r"documents\[0\]\['text'\] must be a string, got int: 5"),
        ("q", [{"text": "a", "title": b"t"}], r"documents\[0\]\['title'\] must be a string, got bytes"),
        ("q", [{"text": "a\ud800"}], r"documents\[0\]\['text'\] holds half of a surrogate pair"),
        ("q", [7], r"documents\[0\] must be a string, or a mapping with 'text', got int: 7"),
        (["q", "r"], [["a"], [{"text": "a"}, {}]], r"documents\[1\]\[1\] has no 'text', got the keys \[\]"),
        (["q", "r"], [{"text": "a"}, ["b"]], r"documents\[1\] must be a string, or a mapping with 'text', got list"),
        (["q", "r"], [["a"], {"text": "a"}], r"documents\[1\] must be a list of strings, got dict"),
    ],
)  # fmt: skip
def test_documents_that_are_refused(tiny: E2Rank, query, documents, message):
    """Guards against a record whose text is elsewhere and that is ranked as an empty one."""
    with pytest.raises(ValueError, match=message):
        tiny.rerank(query, documents)


def test_the_template_is_configuration(tiny: E2Rank):
    """Guards against a template that does nothing."""
    model = copy.deepcopy(tiny)
    model.replace_listwise(document_template="{{{title}}}: {text}")
    assert model.listwise.document_text(FLEAS) == "{Fleas}: They live a hundred days."
    assert model.rerank(QUERY, [FLEAS, "x"]) == tiny.rerank(QUERY, ["{Fleas}: They live a hundred days.", "x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"document_template": 3}, "document_template must be a string, got int"),
        ({"document_template": "{title}"}, r"document_template needs the field \{text\}"),
        ({"document_template": "{text} {year}"}, r"may have \{title\}, got '\{text\} \{year\}'"),
        ({"document_template": "{text.__class__}"}, "document_template needs"),
        ({"document_template": "{text:>999999999}"}, "document_template needs"),
        ({"document_template": "{text!r}"}, "document_template needs"),
        ({"document_template": "{text"}, "document_template '{text' is not one"),
        ({"document_template": "{}{text}"}, "document_template needs"),
        ({"long_documents": "split"}, "long_documents must be one of.*'cut', 'passages'.*got 'split'"),
    ],
)
def test_configurations_that_are_not_allowed(options, message):
    """Guards against a stranger's template that reaches into objects, and one that breaks at the first document."""
    with pytest.raises(ValueError, match=message):
        ListwiseRerank(**options)


def test_join_fields():
    """Guards against a change of the texts of BEIR, which joins with a space."""
    assert join_fields("A title", "a text", "{title} {text}") == "A title a text"
    assert join_fields("", "a text", "{title} {text}") == "a text"
    assert join_fields("A title", "", "{title} {text}") == "A title"
