"""What an answer says of itself: the cutoff of its scores, and words that the model does not know."""

import pytest
from serving import BOX, FakeGallery, running


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    gallery = FakeGallery(tmp_path_factory.mktemp("gallery"))
    gallery.cutoffs = {"sketch": 0.5, "photo": 0.9, "text": 0.7}
    with running(gallery) as client:
        yield client


def ask(client, **query):
    answer = client.post("/v1/search", json={"k": 24, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(("query", "cutoff"), [(BOX, 0.5), ({"id": 3}, 0.9), ({"text": "cone"}, 0.7)])
def test_each_kind_of_query_has_its_cutoff_and_nothing_is_left_out(judged, query, cutoff):
    body = ask(judged, **query)
    assert body["cutoff"] == cutoff and body["unknown_words"] == [] and len(body["matches"]) == 24
    assert [m["likely"] for m in body["matches"]] == [m["score"] >= cutoff for m in body["matches"]]
    assert body["matches"][0]["likely"] and not body["matches"][-1]["likely"]


@pytest.mark.parametrize(
    "query", [{**BOX, "text": "cone"}, {**BOX, "like": [{"text": "cone"}]}, {**BOX, "labels": ["cone"]}]
)
def test_several_parts_and_filters_are_not_judged(judged, query):
    body = ask(judged, **query)
    assert body["cutoff"] is None and {m["likely"] for m in body["matches"]} == {None}


def test_words_that_the_model_does_not_know(judged):
    body = ask(judged, text="helicopter")
    assert body["unknown_words"] == ["helicopter"] and body["cutoff"] is None
    body = ask(judged, **BOX, like=[{"text": "zeppelin", "weight": 0.5}])
    assert body["unknown_words"] == ["zeppelin"]
    assert ask(judged, **BOX)["unknown_words"] == []


def test_a_gallery_that_cannot_tell(client):
    body = ask(client, **BOX)
    assert body["cutoff"] is None and {m["likely"] for m in body["matches"]} == {None}


def test_answers_of_a_batch_say_it_each_for_itself(judged):
    asked = [{**BOX, "k": 3}, {"text": "cone", "k": 2}, {"text": "helicopter", "k": 2}]
    answers = judged.post("/v1/search/batch", json={"queries": asked}).json()["answers"]
    assert [a["cutoff"] for a in answers] == [0.5, 0.7, None]
    assert [a["unknown_words"] for a in answers] == [[], [], ["helicopter"]]
