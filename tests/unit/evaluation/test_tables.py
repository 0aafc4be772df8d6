"""Tables, CSV and metrics say what the result holds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hyperadapter.evaluation.results import EvaluationResult
from hyperadapter.evaluation.score import Score
from hyperadapter.evaluation.tables import (
    csv_rows,
    flat_metrics,
    group_rows,
    quality_notes,
    quality_rows,
    signature_lines,
    table_rows,
    write_csv,
)
from tests.unit.evaluation.made_results import (
    RESULTS,
    made_direction,
    made_quality,
    made_result,
    made_scores,
)

QUALITY = {
    "quality": made_quality((1, 4), (1, 8)),
    "quality_references": made_quality((0, 5), (0, 0)),
}


def test_table_and_signatures() -> None:
    result = made_result(RESULTS)
    rows = table_rows(result)
    assert rows[0] == {
        "direction": "en-de",
        "n": 10,
        "BLEU": 10.0,
        "BLEU copy": 5.0,
        "chrF": 11.0,
        "chrF copy": 6.0,
        "new n": 5,
        "new chrF": 9.0,
        "new copy": 5.0,
    }
    assert rows[1]["new chrF"] is None
    assert [row["direction"] for row in rows[5:]] == [
        "mean out of en",
        "mean into en",
        "mean without en",
    ]
    assert (rows[6]["BLEU"], rows[6]["chrF copy"], rows[6]["new chrF"]) == (40.0, 21.0, 37.0)
    assert all(list(row) == list(rows[0]) for row in rows)
    *signatures, speed = signature_lines(result)
    assert signatures == [
        "BLEU: tok:13a for en-de, de-en, zh-Hans-en",
        "chrF: nw:0",
        "chrF++: nw:2",
        "BLEU: tok:zh for en-zh-Hans, de-zh-Hans",
    ]
    assert speed.startswith("decoded 2.0 sentences/s on 1 cpu process with 1 threads")
    assert speed.endswith("beam 1, batches of 2 sentences")


def test_what_was_asked_for_has_a_column_and_what_is_unknown_has_none() -> None:
    ter = Score(metric="ter", value=60.0, signature="x")
    scores = made_scores(1.0).model_copy(update={"ter": ter})
    item = made_direction("en-de", 1.0, model=scores, near_duplicates=None)
    rows = table_rows(made_result([item]))
    assert list(rows[0]) == ["direction", "n", "BLEU", "BLEU copy", "chrF", "chrF copy", "TER"]
    assert [row["TER"] for row in rows] == [60.0, 60.0]


def test_rates_stand_beside_those_of_the_references() -> None:
    known = made_direction("en-de", 1.0, **QUALITY)
    unknown = made_direction(
        "en-fr", 1.0, quality=made_quality(None, (0, 8)), quality_references=QUALITY["quality"]
    )
    old = made_direction("fr-en", 1.0)
    result = made_result([known, unknown, old], unknown_languages=("fr",))
    rows = quality_rows(result)
    assert rows[0] == {
        "direction": "en-de",
        "judged": 4,
        "off-target": 25.0,
        "off-target ref": 0.0,
        "copied": 12.5,
        "copied ref": None,
        "empty": 12.5,
        "overlong": 12.5,
        "placeh.": 8,
        "kept": 12.5,
        "kept ref": None,
    }
    assert (rows[1]["judged"], rows[1]["off-target"]) == (0, None)
    assert len(rows) == 2
    assert "have 15 letters or more" in quality_notes(result)[0]
    assert quality_notes(result)[1].endswith("never found by it: fr")
    assert len(quality_notes(made_result([known]))) == 1


def test_a_mean_over_tokenizers_has_a_star() -> None:
    items = [made_direction("en-de", 10.0, train_pairs=20_000, **QUALITY),
             made_direction("en-zh-Hans", 20.0, None, "zh", train_pairs=5)]  # fmt: skip
    rows = group_rows(made_result(items))
    assert [row["mean over"] for row in rows] == [
        "all", "out of en", "LOW, from 10,000", "VERY LOW"
    ]  # fmt: skip
    assert rows[0] == {
        "mean over": "all",
        "directions": 2,
        "n": 20,
        "BLEU": "15.0*",
        "chrF": 16.0,
        "chrF++": 17.0,
        "off-target, %": 25.0,
    }
    assert (rows[2]["BLEU"], rows[3]["off-target, %"]) == (10.0, None)


def test_csv_has_everything_of_each_direction(tmp_path: Path) -> None:
    items = [made_direction("en-de", 10.0, 8.0, train_pairs=20_000, **QUALITY), RESULTS[1]]
    path = tmp_path / "new" / "scores.csv"
    write_csv(path, csv_rows(made_result(items)))
    with path.open(encoding="utf-8", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert (first["direction"], first["resources"], first["zero_shot"]) == ("en-de", "low", "0")
    assert (first["bleu"], first["bleu_copy"], first["bleu_new"]) == ("10.0", "5.0", "8.0")
    assert first["bleu_signature"] == "tok:13a"
    assert (first["off_target"], first["off_target_of"], first["reference_off_target_of"]) == (
        "1", "4", "5"
    )  # fmt: skip
    assert (second["train_pairs"], second["bleu_new"], second["off_target"]) == ("", "", "")


def test_metrics_have_the_names_that_others_read() -> None:
    items = [made_direction("en-de", 10.0, train_pairs=5, **QUALITY), RESULTS[2]]
    result = made_result(items)
    metrics = flat_metrics(result)
    assert metrics["test/en-de/bleu"] == 10
    assert metrics["test/en-de/off_target"] == 0.25
    assert metrics["test/macro/macro_chrf_into_en"] == 31
    assert metrics["test/macro/bleu"] == 20
    assert metrics["test_group/very_low/chrf"] == 11
    assert metrics["test_group/all/off_target"] == 0.25
    # Who averages over `test/*/bleu` must find directions there and nothing else.
    found = {key.split("/", 1)[1] for key in metrics if key.startswith("test/")}
    assert {key.rsplit("/", 1)[0] for key in found} == {"en-de", "de-en", "macro"}
    part = flat_metrics(result, whole=False)
    assert set(part) == {key for key in metrics if key.startswith(("test/en-de", "test/de-en"))}
    named = flat_metrics(result.model_copy(update={"split": "flores"}))
    assert {key.split("/")[0] for key in named} == {"test_set"}
    assert named["test_set/flores/en-de/bleu"] == named["test_set/flores_group/very_low/bleu"] == 10


def test_a_rate_of_nothing_is_no_metric() -> None:
    item = made_direction("en-de", 1.0, quality=made_quality((0, 0), (0, 8)))
    metrics = flat_metrics(made_result([item]))
    assert not [key for key in metrics if "off_target" in key]
    assert metrics["test/en-de/copied"] == 0


def test_a_file_from_before_there_were_rates_can_be_read() -> None:
    result = made_result(RESULTS)
    tree = json.loads(result.model_dump_json())
    for key in ("groups", "unknown_languages"):
        del tree[key]
    for key in ("metrics", "quality", "groups"):
        del tree["settings"][key]
    for item in tree["directions"]:
        for key in ("quality", "quality_references", "train_pairs", "zero_shot", "hyp_sha256"):
            del item[key]
        for scores in (item["model"], item["copy_source"]):
            del scores["ter"], scores["spbleu"]
    found = EvaluationResult.model_validate_json(json.dumps(tree))
    assert found == result.model_copy(update={"groups": {}})
    assert (quality_rows(found), group_rows(found)) == ([], [])
    assert flat_metrics(found)["test/macro/bleu"] == pytest.approx(22.4)
