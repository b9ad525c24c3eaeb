"""Generation: seeds, stop strings, streams."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from app.api.schemas import GenerateRequest
from app.bundle import Bundle
from app.errors import InvalidField, TooLong
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.tasks.generate import (
    BOUNDS,
    Chunk,
    GenerateOptions,
    GenerateResult,
    default_temperature,
)
from app.tasks.job import Deadline

OPTIONS = GenerateOptions(max_tokens=24)
SAMPLED = replace(OPTIONS, temperature=1.0, top_k=50, top_p=0.95, seed=7)


def generate(service: Service, prompts: Any, options: GenerateOptions) -> GenerateResult:
    return asyncio.run(service.generator.run(prompts, options, Deadline.after(60)))


def chunks(service: Service, prompts: Any, options: GenerateOptions) -> list[Chunk]:
    async def main() -> list[Chunk]:
        stream = await service.generator.start(prompts, options, Deadline.after(60))
        return [chunk async for chunk in stream.chunks()]

    return asyncio.run(main())


def texts(result: GenerateResult) -> list[str]:
    return [g.text for g in result.generations]


def test_prompt_i_equals_itself_alone_with_seed_plus_i(service: Service) -> None:
    together = texts(generate(service, ["The", "Das", "La"], SAMPLED))
    alone = [
        texts(generate(service, prompt, replace(SAMPLED, seed=7 + i)))[0]
        for i, prompt in enumerate(["The", "Das", "La"])
    ]
    assert together == alone
    assert texts(generate(service, "The", replace(SAMPLED, seed=8))) != together[:1]
    last = replace(SAMPLED, seed=2**32 - 1)
    assert (
        texts(generate(service, ["a", "The"], last))[1]
        == texts(generate(service, "The", replace(SAMPLED, seed=0)))[0]
    )


def test_without_a_seed_answers_differ(service: Service) -> None:
    options = replace(SAMPLED, seed=None)
    assert texts(generate(service, "The", options)) != texts(generate(service, "The", options))


def test_the_stream_adds_up_to_the_whole(service: Service) -> None:
    prompts = ["The", "今天"]
    streamed = chunks(service, prompts, SAMPLED)
    for i, generation in enumerate(generate(service, prompts, SAMPLED).generations):
        mine = [chunk for chunk in streamed if chunk.index == i]
        assert "".join(chunk.text for chunk in mine) == generation.text
        reasons = [chunk.finish_reason for chunk in mine]
        assert reasons == [None] * (len(mine) - 1) + [generation.finish_reason]


@pytest.mark.parametrize("start", range(4, 16, 3))
def test_stop_strings_end_the_text_before_them(service: Service, start: int) -> None:
    (whole,) = texts(generate(service, "The", OPTIONS))
    stop = whole[start : start + 5]
    result = generate(service, "The", replace(OPTIONS, stop=(stop, "never there")))
    expected = whole[: whole.index(stop)]
    assert texts(result) == [expected]
    assert result.generations[0].finish_reason == "stop"
    assert result.usage.completion_tokens <= 24
    streamed = chunks(service, "The", replace(OPTIONS, stop=(stop,)))
    assert "".join(chunk.text for chunk in streamed) == expected
    assert streamed[-1].finish_reason == "stop"
    wait_until_idle(service)


@pytest.mark.parametrize("start", range(4, 16, 3))
def test_tokens_are_those_of_the_text(service: Service, start: int) -> None:
    options = replace(OPTIONS, logprobs=2)
    (whole,) = generate(service, "The", options).generations
    assert whole.tokens is not None and len(whole.tokens) == 24
    parts = "".join(token.text for token in whole.tokens)  # bytes of one character may be apart
    assert parts.encode("ascii", "ignore") == whole.text.encode("ascii", "ignore")
    for token in whole.tokens:
        assert token.top[0] == (token.id, token.text, token.logprob), "greedy takes the likeliest"
        assert token.top[1][2] <= token.logprob < 0
    stop = (whole.text[start : start + 5],)
    (cut,) = generate(service, "The", replace(options, stop=stop)).generations
    assert cut.tokens is not None and cut.tokens == whole.tokens[: len(cut.tokens)]
    streamed = chunks(service, "The", replace(options, stop=stop))
    assert tuple(token for chunk in streamed for token in chunk.tokens) == cut.tokens
    assert generate(service, "The", OPTIONS).generations[0].tokens is None


def test_a_stop_string_can_be_kept(service: Service) -> None:
    (whole,) = texts(generate(service, "The", OPTIONS))
    stop = whole[6:10]
    options = replace(OPTIONS, stop=(stop,), keep_stop=True, logprobs=0)
    (kept,) = generate(service, "The", options).generations
    assert kept.text == whole[: whole.index(stop) + len(stop)] and kept.matched
    assert not generate(service, "The", OPTIONS).generations[0].matched


def test_only_the_last_tokens_of_a_prompt_are_read(service: Service) -> None:
    text = "Where is the nearest train station? I would like to buy two tickets."
    spans = service.generator.spans(text, "prompt")
    rest = text[spans[-4][1] :]
    cut = generate(service, text, replace(OPTIONS, truncate=4))
    assert texts(cut) == texts(generate(service, rest, OPTIONS))
    assert cut.usage.prompt_tokens == 5
    generate(service, "b " * 900, replace(OPTIONS, truncate=90))


def test_completions_have_a_score(service: Service) -> None:
    (one,) = generate(service, "The", replace(SAMPLED, logprobs=0)).generations
    assert one.tokens is not None
    assert one.score == sum(token.logprob for token in one.tokens) / len(one.tokens) < 0
    offsets = [token.offset for token in one.tokens]
    assert offsets == sorted(offsets) and offsets[0] == 0 and offsets[-1] <= len(one.text)


def test_several_generations_are_those_of_the_next_seeds(service: Service) -> None:
    options = replace(SAMPLED, n=3)
    result = generate(service, ["The", "Das"], options)
    alone = [
        texts(generate(service, "The" if i < 3 else "Das", replace(SAMPLED, seed=7 + i)))[0]
        for i in range(6)
    ]
    assert texts(result) == alone and len(set(alone)) == 6
    one = generate(service, ["The", "Das"], SAMPLED).usage
    assert result.usage.prompt_tokens == one.prompt_tokens
    with pytest.raises(InvalidField, match="at most 1024") as caught:
        generate(service, ["The"] * 100, replace(SAMPLED, n=11))
    assert caught.value.param == "n"


def test_a_least_length_and_a_bias(service: Service) -> None:
    options = replace(OPTIONS, logit_bias=((0, 100.0),))  # the end
    assert generate(service, "The", options).usage.completion_tokens == 0
    result = generate(service, "The", replace(options, min_tokens=5))
    assert result.usage.completion_tokens == 5
    assert result.generations[0].text == generate(
        service, "The", replace(OPTIONS, max_tokens=5)
    ).generations[0].text


def wait_until_idle(service: Service) -> None:
    end = time.monotonic() + 5
    while service.engine.stats().active:
        assert time.monotonic() < end, "a slot was not freed"
        time.sleep(0.005)


def test_leaving_a_stream_frees_its_slots(service: Service) -> None:
    async def main() -> None:
        stream = await service.generator.start(["The"] * 8, OPTIONS, Deadline.after(60))
        async for _ in stream.chunks():
            break
        stream.close()

    asyncio.run(main())
    wait_until_idle(service)


def test_usage_timing_and_the_end_of_the_context(service: Service) -> None:
    result = generate(service, "The", replace(OPTIONS, max_tokens=10_000))
    assert result.generations[0].finish_reason == "length"
    used = result.usage.prompt_tokens + result.usage.completion_tokens
    assert used in (service.limits.context, service.limits.context + 1)
    assert result.timing.decode_s > 0


@pytest.mark.parametrize(
    ("prompts", "kind", "param"),
    [
        ("", InvalidField, "prompt"),
        (["a", ""], InvalidField, "prompt[1]"),
        ([], InvalidField, "prompt"),
        (["a", "word " * 400], TooLong, "prompt[1]"),
    ],
)
def test_refusals(service: Service, prompts: Any, kind: type, param: str) -> None:
    with pytest.raises(kind) as caught:
        generate(service, prompts, OPTIONS)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens is 0: must be at least 1"),
        ("temperature", 5.5, "temperature is 5.5: must be at most 5"),
        ("temperature", float("nan"), "temperature is nan: must be a number"),
        ("temperature", float("inf"), "temperature is inf: must be at most 5"),
        ("top_k", -1, "top_k is -1: must be at least 0"),
        ("top_p", 0.0, "top_p is 0.0: must be more than 0"),
        ("repetition_penalty", 0.0, "repetition_penalty is 0.0: must be more than 0"),
        ("min_p", -0.1, "min_p is -0.1: must be at least 0"),
        ("presence_penalty", 3, "presence_penalty is 3: must be at most 2"),
        ("frequency_penalty", -3, "frequency_penalty is -3: must be at least -2"),
        ("logit_bias", ((5, 200.0),), "logit_bias.5 is 200.0: must be at most 100"),
        ("logit_bias", ((5, 2.0),) * 1025, "logit_bias has 1025 ids: must be at most 1024"),
        ("min_tokens", 129, "min_tokens is 129: max_tokens is 128"),
        ("logprobs", 21, "logprobs is 21: must be at most 20"),
        ("n", 0, "n is 0: must be at least 1"),
        ("seed", 2**32, "seed is 4294967296: must be at most 4294967295"),
        ("seed", -1, "seed is -1: must be at least 0"),
        ("stop", ("a",) * 17, "stop has 17 strings: must be at most 16"),
        ("stop", ("a", ""), "stop[1] has 0 characters: must be 1 to 200"),
        ("stop", ("a" * 201,), "stop[0] has 201 characters: must be 1 to 200"),
    ],
)
def test_options_out_of_bounds(option: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidField) as caught:
        GenerateOptions(**{option: value})
    assert caught.value.detail == message
    assert caught.value.param is not None and caught.value.param.startswith(option)


def test_the_http_schema_has_the_same_bounds() -> None:
    properties = GenerateRequest.model_json_schema()["properties"]
    assert set(BOUNDS) <= {field.name for field in fields(GenerateOptions)}
    for name, bounds in BOUNDS.items():
        number = next(one for one in properties[name].get("anyOf", [properties[name]]))
        lowest = "exclusiveMinimum" if bounds.above else "minimum"
        assert (number[lowest], number["maximum"]) == (bounds.low, bounds.high), name


def test_sampling_options_ask_for_sampling() -> None:
    assert default_temperature(None, None, None) == 0.0
    assert default_temperature(None, None, 0) == default_temperature(1, None, None) == 1.0


@pytest.fixture(scope="module")
def tasked(fp32_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The tiny bundle with a template for a task of the name "case"."""
    folder = tmp_path_factory.mktemp("tasked") / "bundle"
    shutil.copytree(fp32_bundle.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["templates"]["task:case"] = ["<|reserved:0|>", "{text}", "<|sep|>"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    opened = Service.open(folder, ServiceOptions(slots=4, threads=1), Metrics())
    opened.engine.start()
    yield opened
    opened.engine.stop(drain=False)


def test_a_task_has_its_own_prompt(tasked: Service) -> None:
    (plain,), (answer,) = (
        texts(generate(tasked, "The book", replace(OPTIONS, task=task))) for task in ("", "case")
    )
    assert plain != answer
    tokens = {
        task: generate(tasked, "The book", replace(OPTIONS, task=task)).usage.prompt_tokens
        for task in ("", "case")
    }
    assert tokens["case"] == tokens[""] + 1  # <task> text <sep> for <end> text
    with pytest.raises(InvalidField, match="task is 'sum': this model knows case") as caught:
        generate(tasked, "The book", replace(OPTIONS, task="sum"))
    assert caught.value.param == "task"


def test_a_model_without_tasks_says_so(service: Service) -> None:
    with pytest.raises(InvalidField, match="task is 'case': this model knows none"):
        generate(service, "The book", replace(OPTIONS, task="case"))
