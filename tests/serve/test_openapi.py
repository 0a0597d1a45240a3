"""What the OpenAPI document promises of every operation, and that its examples are what the service takes."""

import jsonschema
import pytest
from serving import BEARER, TOKEN, FakeGallery, found, refused, running, sketch

from splip.serve import openapi

FORMS = ("application/json", "multipart/form-data")


@pytest.fixture(scope="module")
def schema(client):
    return client.get("/openapi.json").json()


def each(schema):
    return list(openapi.operations(schema))


def check(value, shape, schema, what):
    try:
        jsonschema.validate(value, {**shape, "components": schema["components"]})
    except jsonschema.ValidationError as error:
        pytest.fail(f"{what}: {error.message}")


def test_the_document_is_openapi(schema):
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(schema)


def test_every_operation_is_named_after_its_endpoint(client, schema):
    inner = client.guard
    while not hasattr(inner, "openapi"):
        inner = inner.app
    included = [getattr(route, "original_router", None) for route in inner.routes]
    names = {
        (route.path, method.lower()): route.endpoint.__name__
        for route in [*inner.routes, *(route for router in included if router for route in router.routes)]
        if getattr(route, "include_in_schema", False)
        for method in getattr(route, "methods", ())
    }
    given = {(path, method): operation["operationId"] for path, method, operation in each(schema)}
    assert given == names
    assert len(set(given.values())) == len(given), "two operations of one name"


def test_every_operation_says_what_it_does_and_answers(schema):
    for path, _, operation in each(schema):
        assert 10 < len(operation["summary"]) < 120 and "\n" not in operation["summary"], path
        assert not operation["summary"].endswith("."), path
        assert len(operation["tags"]) == 1 and operation["tags"][0] in [tag["name"] for tag in schema["tags"]], path
        good = {code: answer for code, answer in operation["responses"].items() if code.startswith("2")}
        assert len(good) == 1, path
        code, answer = good.popitem()
        if code == "204":
            assert "content" not in answer
        else:
            (content,) = answer["content"].values()
            assert content["schema"], path
        for code, answer in operation["responses"].items():
            assert answer["description"], (path, code)
            if code >= "400":
                name = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                assert name == ("Failed" if operation["tags"] == ["vectors"] else "Problem"), (path, code)
        assert {"401", "429"} <= set(operation["responses"]), path
        if operation["tags"][0] not in ("vectors", "service"):
            assert {"403", "422"} <= set(operation["responses"]), path


def test_every_body_has_one_form_and_pictures_are_bytes(schema):
    for path, _, operation in each(schema):
        if "requestBody" in operation:
            (kind,) = operation["requestBody"]["content"]
            assert kind in FORMS and operation["requestBody"]["required"], path
            if kind == "application/json":
                assert operation["requestBody"]["content"][kind]["examples"], path
    binary = {"schema": {"type": "string", "format": "binary"}}
    assert schema["paths"]["/v1/images/{id}"]["get"]["responses"]["200"]["content"] == {"image/*": binary}
    assert schema["paths"]["/v1/thumbnails/{id}"]["get"]["responses"]["200"]["content"] == {"image/jpeg": binary}
    form = schema["paths"]["/v1/search/upload"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["image"] and form["properties"]["image"]["format"] == "binary"


def test_every_name_that_is_referred_to_is_there(schema):
    def walk(node):
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"].removeprefix("#/components/schemas/")
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    assert set(walk(schema)) == set(schema["components"]["schemas"])


def test_examples_fit_their_schemas(schema):
    for path, _, operation in each(schema):
        contents = operation.get("requestBody", {}).get("content", {})
        for content in contents.values():
            for name, example in content.get("examples", {}).items():
                check(example["value"], content["schema"], schema, f"{path} {name}")
        for answer in operation["responses"].values():
            for content in answer.get("content", {}).values():
                if "example" in content:
                    check(content["example"], content["schema"], schema, path)


def test_the_example_of_an_answer_has_all_that_an_answer_has(client, schema):
    """Names of fields and of stages that came later stand in it, too."""
    example = schema["paths"]["/v1/search"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    answer = client.post("/v1/search", json={"strokes": [[[0, 0], [40, 40]]], "k": 1}).json()
    assert set(example) == set(answer) and set(example["timing_ms"]) == set(answer["timing_ms"])
    assert set(example["matches"][0]) == set(answer["matches"][0])


def test_examples_are_answered(client, schema):
    """Those of searches and vectors by the service itself; what they name is in this gallery, too."""
    for path, _, operation in each(schema):
        if not path.startswith(("/v1/search", "/v1/embeddings")) or "requestBody" not in operation:
            continue
        for name, example in (
            operation["requestBody"]["content"].get("application/json", {}).get("examples", {}).items()
        ):
            answer = client.post(path, json=example["value"])
            assert answer.status_code == 200, (path, name, answer.text)
            shape = operation["responses"]["200"]["content"]["application/json"]["schema"]
            check(answer.json(), shape, schema, path)


def test_who_needs_the_token(tmp_path, schema):
    def asked(document):
        return {operation["operationId"] for _, _, operation in each(document) if "security" in operation}

    assert asked(schema) == {"add", "remove"}
    with running(FakeGallery(tmp_path), token=TOKEN, protect="all") as client:
        document = client.get("/openapi.json", headers=BEARER).json()
        everything = {operation["operationId"] for path, _, operation in each(document) if path.startswith("/v1/")}
        assert asked(document) == everything and "search" in everything


def test_limits_are_those_of_the_service(tmp_path):
    with running(FakeGallery(tmp_path), max_k=7, max_queries=3) as client:
        shapes = client.get("/openapi.json").json()["components"]["schemas"]
        assert shapes["Query"]["properties"]["k"]["maximum"] == 7
        assert shapes["Queries"]["properties"]["queries"]["maxItems"] == 3


# ---- the upload ----


def test_an_upload_is_a_form_with_a_picture(client):
    url = "/v1/search/upload"
    image = {"image": ("a.png", sketch("cone"), "image/png")}
    assert found(client.post(url, files=image, data={"k": "4"})) == ["cone"] * 4
    assert found(client.post(url, files=image, data={"k": "2", "label": ["box", "ball"]})) == found(
        client.post("/v1/search", files=image, data={"k": "2", "label": ["box", "ball"]})
    )
    assert "multipart/form-data" in refused(
        client.post(url, content=sketch(), headers={"Content-Type": "image/png"}), 415, "media_type"
    )
    refused(client.post(url, json={"text": "cone"}), 415, "media_type")
    assert refused(client.post(url, files={"text": (None, "cone")}), 422, "invalid").startswith("image: ")
