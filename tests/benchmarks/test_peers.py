"""The peers do what they are compared for."""

import torch
from transformers import AutoTokenizer

from e2rank_st import E2Rank
from e2rank_st.benchmarks import peers
from e2rank_st.benchmarks.meter import Meter
from e2rank_st.bundled import BUNDLED, base_here


def test_the_plain_recipe_ranks_as_rerank_does(bundled: E2Rank, facts: list[str]):
    """Guards against a comparison with something else: same prompt, same documents, same order."""
    query = "how long do fleas live"
    ranking = bundled.rerank(query, facts, query_weight=0.0, candidate_order="given")
    assert peers.plain_recipe(bundled, query, facts) == [hit["corpus_id"] for hit in ranking]


def test_a_generative_reranker_reads_windows_and_writes_identifiers(checkpoint, facts, monkeypatch):
    """Guards against a peer that does too much or too little: 9 windows of 20 for 100, a token for each document."""
    writer = peers.Generative(str(checkpoint), torch.device("cpu"), torch.float32, 64)
    monkeypatch.setattr(peers, "WINDOW", 4)
    monkeypatch.setattr(peers, "STEP", 2)
    made, generate = [], writer.model.generate

    def recording(**options):
        answer = generate(**options)
        made.append(answer.shape[1] - options["input_ids"].shape[1])
        return answer

    monkeypatch.setattr(writer.model, "generate", recording)
    with Meter([writer.model]) as meter:
        writer.rank("how long do fleas live", facts)
    assert made == [4] * 4, "windows begin at 6, 4, 2 and 0"
    assert meter.tokens > 4 * 4
    made.clear()
    writer.rank("how long do fleas live", facts[:3])
    assert made == [3]


def test_a_cross_encoder_of_the_same_backbone(bundled: E2Rank, with_yes_and_no, facts, tmp_path, monkeypatch):
    """Guards against a peer of another size, type or length."""
    monkeypatch.setitem(peers.SHAPES, "tiny", {**peers.SHAPES["qwen3-small"], "num_hidden_layers": 1})
    decoder = str(peers.write_random_decoder("tiny", with_yes_and_no, tmp_path / "decoder"))
    for model, folder in ((bundled, base_here(BUNDLED["bundled"].base)), (E2Rank(decoder, device="cpu"), decoder)):
        cross = peers.cross_encoder(folder, model, torch.bfloat16)
        assert cross.max_seq_length == model.max_seq_length
        assert next(cross.model.parameters()).dtype == torch.bfloat16
        ours = sum(part.numel() for part in model.transformers_model.parameters())
        theirs = sum(part.numel() for part in next(cross.children()).model.base_model.parameters())
        assert abs(theirs - ours) / ours < 0.01
        assert len(cross.rank("fleas", facts, show_progress_bar=False)) == len(facts)


def test_a_chat_without_pairs(bundled: E2Rank, with_yes_and_no, facts, tmp_path, monkeypatch):
    """Guards against a decoder whose template of chats shows neither query nor document, as Qwen3's."""
    monkeypatch.setitem(peers.SHAPES, "tiny", {**peers.SHAPES["qwen3-small"], "num_hidden_layers": 1})
    tokenizer = AutoTokenizer.from_pretrained(with_yes_and_no)
    tokenizer.chat_template = (
        "{% for message in messages if message.role == 'user' %}<|im_start|>user\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    decoder = str(peers.write_random_decoder("tiny", str(tmp_path / "tokenizer"), tmp_path / "decoder"))
    cross = peers.cross_encoder(decoder, E2Rank(decoder, device="cpu"), torch.float32)
    with Meter([next(cross.children())]) as meter:
        cross.rank("fleas", facts, show_progress_bar=False)
    assert meter.tokens >= sum(len(tokenizer(fact)["input_ids"]) for fact in facts)
