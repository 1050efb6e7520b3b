"""Questions and answers on the disk: one name a question, and whatever is damaged or foreign is as good as none."""

import hashlib
import json

import pytest

from diffusion.errors import UserError
from diffusion.storage.records import digest, find, keep, reading

DEEP = "[" * 100_000
DAMAGED = ["", "{", "[1", "null", "[]", "3", DEEP, '{"a": "x"}', '{"a": Infinity}', '{"a": ' + "9" * 5000 + "}"]


def test_the_digest_is_of_the_question_and_not_of_the_order_of_its_keys():
    question = {"b": [1, 2.5, None], "a": {"y": "ß", "x": True}}
    text = '{"a": {"x": true, "y": "\\u00df"}, "b": [1, 2.5, null]}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert digest(question) == expected[:12], "as releases before have named their files"
    assert digest(dict(reversed(question.items())), 16) == expected[:16]
    assert digest({**question, "b": [1, 2.5]}) != digest(question)


def test_what_is_kept_is_found_to_the_bit(tmp_path):
    answer = {"values": [0.1 + 0.2, 1e-300, -0.0], "of": None}
    keep(tmp_path / "new" / "x.json", answer)
    found = find(tmp_path / "new" / "x.json", dict)
    assert json.dumps(found) == json.dumps(answer)
    assert find(tmp_path / "new" / "y.json", dict) is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:12])
def test_a_damaged_or_foreign_file_is_none_or_one_line(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)

    def whole(values):
        return int(values["a"]["b"])

    assert find(path, whole) is None
    with pytest.raises(UserError, match=r"x\.json: no answer \(\w+: ") as error, reading(f"{path}: no answer"):
        whole(json.loads(path.read_text()))
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_folders_are_none(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    assert find(tmp_path / "x.json", dict) is None
    assert find(tmp_path, dict) is None
