"""`cierzo moderate train` on a small invented set in the public sets' own files."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cierzo.guard import data
from cierzo.guard.classifier import ANY, NEVER, SHIPPED_ENCODER, Classifier
from cierzo.guard.text import SPAN
from cierzo.guard.train import Rows, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    (root / "openai_moderation").mkdir()
    (root / "davidson").mkdir()
    rows = []
    for n in range(160):
        hateful, violent = n % 4 == 0, n % 4 == 1
        word = "grumblings are vermin" if hateful else "stab and slash them" if violent else "a walk by the river"
        labels = dict.fromkeys(("S", "H", "HR", "SH", "S3", "H2", "V2"), 0) | {"H": int(hateful)}
        if not hateful:
            labels["V"] = int(violent)  # a missing label is unknown
        rows.append({"prompt": f"story {n}: {word}, said number {n * 7}", **labels})
    with gzip.open(root / "openai_moderation/samples-1680.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    with (root / "davidson/labeled_data.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["tweet", "class"])
        writer.writerows([f"tweet {n}", str(n % 3)] for n in range(60))
    return root


def test_it_learns_what_has_labels_enough(folder: Path, tmp_path: Path) -> None:
    classifier, about = trained(folder, [], lambda done, total: None)
    assert classifier.categories == ("hate", "violence", ANY)
    classifier.save(tmp_path / "weights.safetensors", about)
    read = Classifier.load(tmp_path / "weights.safetensors")
    hateful, fine = read.scores("they say grumblings are vermin"), read.scores("let us take a walk by the river")
    assert hateful["hate"] > 0.5 > hateful["violence"]
    assert max(fine.values()) < 0.5
    assert read.scores("stab and slash")["violence"] > 0.5
    assert read.scores("grumblings")["sexual"] == 0
    assert json.loads(about["cross_validated_auc"])[ANY] > 0.95
    reached = json.loads(about["reached_by_harmless"])["hate"]
    assert reached["0.01"] >= reached["0.1"]


def test_training_is_repeatable_and_hears_ones_own_texts(folder: Path) -> None:
    own = [data.Labelled(f"a flimflam of number {n}", True, {"self-harm": 1}) for n in range(12)]
    own += [data.Labelled(f"tea of number {n}", False, {"self-harm": 0}) for n in range(12)]
    one, _ = trained(folder, own, lambda done, total: None)
    two, _ = trained(folder, own, lambda done, total: None)
    assert one.scores("a flimflam") == two.scores("a flimflam")
    assert one.scores("a flimflam")["self-harm"] > 0.5


def test_what_a_further_set_knows_reaches_texts_that_the_labelled_ones_never_had(folder: Path, tmp_path: Path) -> None:
    """It says that `zorgs` are hated as `grumblings` are, which alone stand in OpenAI's set."""
    without, _ = trained(folder, [], lambda done, total: None)
    shutil.copytree(folder, tmp_path / "sets")
    place = tmp_path / "sets/further/hatecheck-data/test_suite_cases.csv"
    place.parent.mkdir(parents=True)
    rows = ["functionality,test_case,label_gold"]
    rows += [f"slur,the {('grumblings', 'zorgs')[n % 2]} of street {n} are scum,hateful" for n in range(120)]
    rows += [f"ident,the {('grocers', 'bakers')[n % 2]} of street {n} are kind,non-hateful" for n in range(120)]
    place.write_text("\n".join(rows))
    with_it, about = trained(tmp_path / "sets", [], lambda done, total: None)
    text = "zorgs live here"
    assert with_it.scores(text)["hate"] > without.scores(text)["hate"] + 0.1
    assert "paul-rottger/hatecheck-data (CC BY 4.0): 240" in about["learnt_from"]


def test_an_encoders_states_count_beside_the_words(folder: Path, tmp_path: Path) -> None:
    classifier, about = trained(folder, [], lambda done, total: None, SHIPPED_ENCODER)
    classifier.save(tmp_path / "weights.safetensors", about)
    read = Classifier.load(tmp_path / "weights.safetensors")
    text = "a man was knifed and beaten in the street"  # of whose words it has never heard
    assert read.scores(text) == classifier.scores(text)
    assert read.scores(text)["violence"] > read.scores(text, NEVER)["violence"]
    assert json.loads(about["cross_validated_auc"])[ANY] > 0.95
    assert set(json.loads(about["cross_validated_auc_by_words"])) == {"hate", "violence", ANY}
    words, _ = trained(folder, [], lambda done, total: None)
    assert words.scores(text) == read.scores(text, NEVER)


def test_long_texts_are_also_learnt_from_in_spans() -> None:
    rows = Rows.of(["short", "long " * 300, "also short"], np.array([1.0, 1.0, 0.05]))
    assert rows.texts[:3] == ["short", "long " * 300, "also short"]
    assert all(len(text) <= SPAN for text in rows.texts[3:])
    assert rows.owner.tolist() == [0, 1, 2, 1, 1, 1]
    assert rows.weight.tolist() == pytest.approx([1, 1, 0.05, 1 / 3, 1 / 3, 1 / 3])
    assert rows.judged.tolist() == [True, False, True, True, True, True]
    assert rows.worst(np.array([1.0, 9, 2, 3, 5, 4])).tolist() == [1, 5, 2]


def test_the_other_half_is_not_learnt_from(folder: Path) -> None:
    from cierzo.guard.train import learnt_from

    items, weights = learnt_from(folder, [])
    assert {data.part_of(item.text) for item in items} == {"train"}
    assert len(items) == len(weights) > (weights == 1).sum()
