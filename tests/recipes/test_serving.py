"""A model over HTTP: streams, refusals in a sentence, and an end that lets people hear the rest."""

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from piton_trainer.serving import server as serving
from piton_trainer.serving.text_generator import GenerateRequest

JSON = {"Content-Type": "application/json"}


class Parrot:
    """Says the prompt again, letter by letter; waits before each until it may."""

    def __init__(self) -> None:
        self.may_speak = threading.Semaphore(10_000)
        self.told = 0

    def check(self, prompt: str) -> None:
        if "?" in prompt:
            raise ValueError("prompt: no questions")

    def generate(self, generation: GenerateRequest) -> Iterator[str]:
        for letter in generation.prompt[: generation.max_tokens]:
            self.may_speak.acquire()
            if letter == "!":
                raise RuntimeError("out of memory")
            self.told += 1
            yield letter

    def about(self) -> Mapping[str, Any]:
        return {"device": "cpu"}

    def hush(self) -> None:
        self.may_speak = threading.Semaphore(0)


@asynccontextmanager
async def served(parrot: Parrot, **options: Any) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    server = serving.ModelServer(parrot, {"recipe": "parrot", "step": 3}, **options)
    async with serving.listening(server, "127.0.0.1", 0) as url, aiohttp.ClientSession() as session:
        yield session, url


async def health(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(f"{url}/health") as answer:
        return await answer.json()


async def asked(session: aiohttp.ClientSession, url: str, prompt: str) -> list[dict[str, Any]]:
    async with session.post(f"{url}/generate", json={"prompt": prompt}) as answer:
        assert answer.status == 200
        return await events(answer)


async def events(answer: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    text = await answer.text()
    assert text.endswith("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-1]]


async def test_an_answer_is_streamed_letter_by_letter() -> None:
    parrot = Parrot()
    parrot.hush()
    generation = {"prompt": "hi\n", "seed": 5}
    async with served(parrot) as (session, url), session.post(f"{url}/generate", json=generation) as answer:
        assert answer.content_type == "text/event-stream"
        heard = []
        for _ in range(3):
            parrot.may_speak.release()
            heard.append(json.loads((await answer.content.readuntil(b"\n\n")).removeprefix(b"data: ")))
        last = await answer.content.read()
    assert heard == [{"token": "h"}, {"token": "i"}, {"token": "\n"}]
    assert json.loads(last.removeprefix(b"data: ")) == {"done": True, "tokens": 3, "seed": 5}


async def test_health_says_what_is_served() -> None:
    async with served(Parrot()) as (session, url):
        found = await health(session, url)
    assert found == {"status": "ok", "recipe": "parrot", "step": 3, "device": "cpu", "streams": 0}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ('{"prompt": "why?"}', 400, "prompt: no questions"),
        ('{"prompt": ""}', 400, "prompt: String should have at least 1 character"),
        ("{}", 400, "prompt: Field required"),
        ('{"prompt": "a", "maxTokens": "5"}', 400, "maxTokens: Input should be a valid integer"),
        ('{"prompt": "a", "maxTokens": 65537}', 400, "maxTokens: Input should be less than or equal to 65536"),
        ('{"prompt": "a", "temperature": -1}', 400, "temperature: Input should be greater than or equal to 0"),
        ('{"prompt": "a", "topP": 1}', 400, "topP: Extra inputs are not permitted"),
        ("{", 400, "body: Invalid JSON"),
        ("[]", 400, "body: Input should be an object"),
        ('{"prompt": "' + "a" * (1 << 20) + '"}', 413, "longer than 1,048,576 bytes"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
async def test_what_cannot_be_answered_is_refused_in_a_sentence(body: str, status: int, words: str) -> None:
    data = io.BytesIO(body.encode())
    async with served(Parrot()) as (session, url), session.post(f"{url}/generate", data=data, headers=JSON) as answer:
        assert answer.status == status
        assert words in (await answer.json())["error"]


async def test_a_page_in_a_browser_cannot_ask_by_a_form() -> None:
    async with served(Parrot()) as (session, url):
        plain = {"Content-Type": "text/plain"}
        async with session.post(f"{url}/generate", data='{"prompt": "a"}', headers=plain) as answer:
            assert answer.status == 415


async def test_more_answers_than_can_be_given_at_once_are_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "STREAMS_MAX", 1)
    parrot = Parrot()
    parrot.hush()
    async with served(parrot) as (session, url):
        async with session.post(f"{url}/generate", json={"prompt": "a"}) as first:
            async with session.post(f"{url}/generate", json={"prompt": "b"}) as second:
                assert (second.status, second.headers["Retry-After"]) == (503, "5")
            parrot.may_speak.release()
            assert (await events(first))[-1]["done"]
        parrot.may_speak.release()
        assert (await asked(session, url, "c"))[0] == {"token": "c"}


async def test_a_failure_in_the_middle_is_said_and_the_next_one_is_answered() -> None:
    async with served(Parrot()) as (session, url):
        assert await asked(session, url, "a!") == [{"token": "a"}, {"error": "out of memory", "tokens": 1}]
        assert (await asked(session, url, "b"))[0] == {"token": "b"}


async def test_who_leaves_is_not_told_the_rest() -> None:
    parrot = Parrot()
    parrot.hush()
    async with served(parrot) as (session, url):
        answer = await session.post(f"{url}/generate", json={"prompt": "a" * 60_000, "maxTokens": 60_000})
        parrot.may_speak.release()
        await answer.content.readuntil(b"\n\n")
        answer.close()
        parrot.may_speak.release(100_000)
        async with asyncio.timeout(10):
            while (await health(session, url))["streams"]:
                pass
    assert parrot.told < 60_000


async def test_at_the_end_people_hear_the_rest() -> None:
    parrot = Parrot()
    parrot.hush()
    async with aiohttp.ClientSession() as session:
        server = serving.ModelServer(parrot, {})
        listening = serving.listening(server, "127.0.0.1", 0)
        url = await listening.__aenter__()
        answer = await session.post(f"{url}/generate", json={"prompt": "abc", "seed": 1})
        end = asyncio.create_task(listening.__aexit__(None, None, None))
        await asyncio.sleep(0)
        parrot.may_speak.release(3)
        found = await events(answer)
        await end
    assert found[-1] == {"done": True, "tokens": 3, "seed": 1}


async def test_who_takes_too_long_is_cut_short_and_told_so() -> None:
    parrot = Parrot()
    parrot.hush()
    async with aiohttp.ClientSession() as session:
        server = serving.ModelServer(parrot, {}, grace_seconds=0.8)
        listening = serving.listening(server, "127.0.0.1", 0)
        url = await listening.__aenter__()
        answer = await session.post(f"{url}/generate", json={"prompt": "abc", "seed": 1})
        end = asyncio.create_task(listening.__aexit__(None, None, None))
        await asyncio.sleep(0.6)
        parrot.may_speak.release(1)
        found = await events(answer)
        await end
    assert found == [{"token": "a"}, {"done": True, "tokens": 1, "seed": 1, "cut": "the server stops"}]


async def test_a_port_that_is_taken_is_said() -> None:
    async with served(Parrot()) as (_, url):
        port = int(url.rpartition(":")[2])
        with pytest.raises(ValueError, match=rf"127.0.0.1:{port} cannot be listened on .*take another --port"):
            async with serving.listening(serving.ModelServer(Parrot(), {}), "127.0.0.1", port):
                pass
