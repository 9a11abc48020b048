"""What Prometheus reads."""

from prometheus_client.parser import text_string_to_metric_families

from e2rank_st.serving.metrics import Metrics


def values(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in families
        for sample in family.samples
    }


def test_what_is_counted():
    """Guards against requests, times, batches and tokens that do not add up, and applications that share counters."""
    waiting = [3]
    metrics, other = Metrics(lambda: waiting[0]), Metrics(lambda: 0)
    metrics.answered("/v1/rerank", 200, 0.02)
    metrics.answered("/v1/rerank", 200, 0.2)
    metrics.answered("/v1/rerank", 429, 0.001)
    metrics.computed(2, 11, 100)
    metrics.computed(1, 1, 7)
    found = values(metrics)
    assert found["e2rank_requests_total['/v1/rerank', '200']"] == 2
    assert found["e2rank_requests_total['/v1/rerank', '429']"] == 1
    assert found["e2rank_request_seconds_count['/v1/rerank']"] == 3
    assert found["e2rank_request_seconds_sum['/v1/rerank']"] == 0.221
    assert (found["e2rank_batch_requests_sum[]"], found["e2rank_batch_requests_count[]"]) == (3, 2)
    assert found["e2rank_batch_sequences_sum[]"] == 12
    assert found["e2rank_tokens_total[]"] == 107
    assert found["e2rank_waiting_requests[]"] == 3
    waiting[0] = 0
    assert values(metrics)["e2rank_waiting_requests[]"] == 0
    assert values(other)["e2rank_tokens_total[]"] == 0
