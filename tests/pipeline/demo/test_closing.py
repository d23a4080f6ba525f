from tuneloop.pipeline.demo.closing import field_lines
from tuneloop.records.evaluation import Estimate, EvaluationManifest


def metrics(**shares):
    return {f"{field}.exact_match": Estimate(share, 0.0, 1.0) for field, share in shares.items()}


def evaluation(tuned, **baselines):
    return EvaluationManifest(n=60, metrics=tuned, baselines=baselines)


def test_fields_in_which_an_alternative_is_ahead_are_named_with_it():
    item = evaluation(
        metrics(order=0.9, queue=0.8), few=metrics(order=0.1, queue=0.3), **{"tf-idf": metrics(queue=0.85)}
    )
    first, second = field_lines(item)
    assert first == "Fields right on 60 test rows: order 90 %, queue 80 %"
    assert second == "A cheap alternative has more right in queue (tf-idf: 85 %)."


def test_where_none_is_ahead_that_is_said():
    assert field_lines(evaluation(metrics(order=0.9), few=metrics(order=0.9)))[1] == "No alternative is ahead in any."


def test_without_fields_there_are_no_lines():
    assert field_lines(evaluation({"rougeL": Estimate(0.5, 0.4, 0.6)})) == []
