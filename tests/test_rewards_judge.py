"""Scores of reward models, and verdicts of a judge behind a stand-in for an OpenAI-compatible endpoint."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from r1jax.config import Workers
from r1jax.rewards import Item, Pool
from r1jax.rewards.chat_endpoint import ChatEndpoint, Unanswered
from r1jax.rewards.compose import named
from r1jax.rewards.judge import NoVerdict, judge, question, verdict
from r1jax.rewards.load import load

# -- Reward models

SCORERS = """
def length(prompt, text): return float(len(text))
async def shown(prompt, text):
    from r1jax.rewards import Score
    return Score(1.0, why=f"{prompt}|{text}")
number = 3
"""


@pytest.fixture
def scorers(tmp_path):
    (tmp_path / "scorers.py").write_text(SCORERS)
    return f"{tmp_path}/scorers.py:"


@pytest.mark.parametrize(
    "completion, summary",
    [
        ("<think>why</think>\n\nSo b. ", "So b."),
        ("why</think>b", "b"),
        ("<think>a</think>b</think>c", "c"),
        ("no thought", "no thought"),
        ("<think>never ends", ""),
        ("<think>a</think>", ""),
    ],
)
def test_helpful_sees_the_final_summary_and_safety_everything(scorers, completion, summary):
    helpful, safety = (load(named(name, scorer=scorers + "shown")) for name in ("helpful", "safety"))
    assert asyncio.run(helpful("q", completion, {})).why == f"q|{summary}"
    assert asyncio.run(safety("q", completion, {})).why == f"q|{completion}"
    assert load(named("helpful", scorer=scorers + "length"))("q", completion, {}) == len(summary)


def test_scorers_run_in_workers_sync_and_async(scorers):
    names = tuple(named(reward, scorer=scorers + f) for reward in ("helpful", "safety") for f in ("length", "shown"))
    with Pool(Workers(count=1)) as pool:
        (scores,) = pool.score([Item([{"role": "user", "content": "q"}], "<think>a</think>bc", {}, names)])
    assert [s.value for s in scores.values()] == [2.0, 1.0, 18.0, 1.0]
    assert {s.status for s in scores.values()} == {"ok"}
    assert scores[names[1]].why == "[{'role': 'user', 'content': 'q'}]|bc"  # the prompt comes as the row has it


def test_scorers_that_are_not_there_are_refused_when_loaded(scorers):
    for options, message in [
        ({}, "it needs the option 'scorer'"),
        ({"scorer": "accuracy"}, "'accuracy' is neither 'pkg.mod:f' nor 'path/file.py:f'"),
        ({"scorer": scorers + "lenght"}, "has no 'lenght'; it defines length, shown"),
        ({"scorer": scorers + "number"}, "'number' is no function"),
        ({"scorer": "nowhere.py:f"}, "there is no file"),
        ({"scorer": "no_such_module:f"}, "importing no_such_module failed with ModuleNotFoundError"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            load(named("helpful", **options))
        assert "\n" not in str(error.value)


# -- The endpoint's stand-in

KEY = "sk-very-secret"
CORRECT = '{"analysis": "Both are 4.", "correctness": "correct"}'


class Server:
    """Answers with what ``say`` returns of the request's body: (status, headers, bytes), or bytes, or text for the message."""

    def __init__(self):
        self.say = lambda body: CORRECT
        self.requests = []  # (path, headers, body)
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def counted(self):
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        yield
        with self._lock:
            self._now -= 1

    def then(self, *replies):
        """One reply after another, and the last for ever."""
        left = list(replies)
        self.say = lambda body: left.pop(0) if len(left) > 1 else left[0]


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with stand_in.counted():
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.requests.append((self.path, dict(self.headers), body))
                said = stand_in.say(body)
            status, headers, data = said if isinstance(said, tuple) else (200, {}, said)
            if data is None:
                return  # hangs up
            data = [completion(data)] if isinstance(data, str) else [data] if isinstance(data, bytes) else data
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client may have gone
                for part in data:
                    self.wfile.write(part)
                    self.wfile.flush()

        def do_GET(self):
            stand_in.requests.append((self.path, dict(self.headers), None))
            self.send_error(404)

        def log_message(self, *_):
            pass

    stand_in, http = Server(), ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    stand_in.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    yield stand_in
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def ask(server, tmp_path, monkeypatch):
    """``ask(answer, **options) -> Score``, with a cache of the test's own."""
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")  # as $(cat file) leaves it

    def ask(answer="It is 4.", prompt="2 + 2?", row=None, **options):
        options = {"url": server.url, "model": "m", "cache": str(tmp_path / "cache"), "api_key_env": "JUDGE_KEY"} | options
        return asyncio.run(judge(prompt, f"<think>secret thought</think>{answer}", row or {"answer": "4"}, **options))

    return ask


# -- What is asked, and how replies are read


def test_the_request(server, ask):
    score = ask()
    assert (score.value, score.status, score.why) == (1.0, "ok", '"correct": Both are 4.')
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    content = body.pop("messages")[0]["content"]
    assert body == {"model": "m", "temperature": 0}
    assert "2 + 2?" in content and "It is 4." in content and "<<< reference answer\n4\n>>>" in content
    assert "thought" not in content
    ask(body={"max_tokens": 9}, api_key_env="")
    assert "Authorization" not in server.requests[1][1]
    assert server.requests[1][2].keys() == {"model", "messages", "max_tokens"}


def test_a_template_of_ones_own_and_fields_in_an_answer(server, ask, tmp_path):
    (tmp_path / "t.txt").write_text('Q{question} A{answer} R{reference} {"a": {}} {x}')
    ask("{reference}{question}", prompt=[{"role": "system", "content": "s"}, {"role": "user", "content": "{answer}"}],
        row={"answer": [4, "é"]}, template=str(tmp_path / "t.txt"))  # fmt: skip
    content = server.requests[0][2]["messages"][0]["content"]
    assert content == 'Q{answer} A{reference}{question} R[4, "é"] {"a": {}} {x}'
    (tmp_path / "rate.txt").write_text("Rate {answer}")
    assert ask(row={"source": "x"}, template=str(tmp_path / "rate.txt")).value == 1
    with pytest.raises(ValueError, match="the row has no answer to compare with"):
        ask(row={"source": "x"})


def test_several_turns_have_their_roles():
    turns = [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert question(turns) == "user: a\n\nassistant: b\n\nuser: c"


def test_nothing_to_judge_is_not_asked(server, ask):
    assert (ask(" ").value, ask(" ").status, server.requests) == (0.0, "ok", [])


def test_whether_a_turn_is_safe_or_refuses_is_asked_of_all_of_it(server, ask):
    server.then('{"analysis": "It helps.", "correctness": "no"}', '{"analysis": "It declines.", "correctness": "yes"}')
    assert [ask("Sure: {question}", row={"source": "x"}, template=name).value for name in ("safe", "refused")] == [0, 1]
    contents = [body["messages"][0]["content"] for _, _, body in server.requests]
    assert contents[0] != contents[1]
    for content in contents:
        assert "<<< question\n2 + 2?\n>>>" in content and "\n<think>secret thought</think>Sure: {question}\n>>>" in content
    ask("", row={"source": "x"}, template="safe")  # the thought alone may be harmful
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply, value",
    [
        (CORRECT, 1),
        ('{"analysis": "", "correctness": "Incorrect "}', 0),
        ('Here:\n```json\n{"analysis": "x", "correctness": "correct"}\n```\nDone.', 1),
        ('```\n{"correctness": false}\n```', 0),
        ('{"correctness": true}', 1),
        ('{"correctness": 0.25}', 0.25),
        ('{"correctness": 1}', 1),
        (r'{"analysis": "\sqrt{2} is \frac12 \underline{x} \\alpha \"q\" é", "correctness": "correct"}', 1),
        ('{"analysis": "two\nlines", "correctness": "incorrect"}', 0),
        ('<think>{"correctness": "correct"} or?</think>{"correctness": "incorrect"}', 0),
        ('{"correctness": "correct"} No: {"correctness": "incorrect"} {"other": 1}', 0),
        ('{"analysis": "it says {\\"correctness\\": \\"correct\\"}", "correctness": "incorrect"}', 0),
        ('{"analysis": "after </think> stands 4", "correctness": "correct"}', 1),
        ("{" * 30000 + CORRECT, 1),
        ("", None),
        ("The answer is correct.", None),
        ('{"analysis": "cut off", "correctne', None),
        ('<think>I could say {"correctness": "correct"} or', None),
        ('{"analysis": "x", "correctness": "correct" or "incorrect"}', None),
        ('{"correctness": "partly"}', None),
        ('{"correctness": null}', None),
        ('{"correctness": NaN}', None),
        ('{"correctness": 7}', None),
        ('{"correctness": ["correct"]}', None),
        ('{"":' * 30000, None),
    ],
)
def test_verdicts(reply, value):
    if value is None:
        with pytest.raises(NoVerdict) as error:
            verdict(reply)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
    else:
        assert verdict(reply).value == value


# -- Faults


def test_a_malformed_verdict_is_no_zero_and_is_asked_for_again_next_time(server, ask, tmp_path):
    server.then("I cannot say.", (200, {}, b'{"choices": [{"message": {"content": null}}]}'), CORRECT)
    assert [(s.value, s.status) for s in (ask(), ask())] == [(0, "invalid")] * 2
    assert not list((tmp_path / "cache").iterdir())
    assert [(s.value, s.status) for s in (ask(), ask())] == [(1, "ok")] * 2
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, b"oops"),
        (503, {"Retry-After": "0"}, b""),
        (429, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}'),
        (200, {}, b"<html>a proxy's page"),
        (200, {}, b'{"error": "overloaded"}'),
        (200, {"Content-Length": "1000"}, b'{"choices": [{"mess'),
        (200, {}, None),
    ],
)
def test_passing_faults_are_tried_again(server, ask, fault):
    server.then(fault, CORRECT)
    assert ask().value == 1.0
    assert len(server.requests) == 2


@pytest.mark.parametrize("header", ["1", "Fri, 31 Dec 2100 23:59:59 GMT", "soon", "-5", "nan"])
def test_retry_after(server, ask, monkeypatch, header):
    monkeypatch.setattr("r1jax.rewards.chat_endpoint.MAX_WAIT", 1.2)
    server.then((429, {"Retry-After": header}, b""), CORRECT)
    start = time.monotonic()
    assert ask().value == 1.0
    least, most = {"1": (1, 1.7), "-5": (0, 0.5), "nan": (0, 0.5), "soon": (0.5, 1.5)}.get(header, (1.2, 1.9))
    assert least <= time.monotonic() - start < most + 1  # a loaded machine


def test_lasting_faults_are_errors_with_their_reason(server, ask):
    server.then((500, {"Retry-After": "0"}, b"out of memory"))
    for _ in range(2):  # and are not kept
        score = ask(retries=2)
        assert (score.value, score.status, score.why) == (0.0, "error", "HTTP 500: out of memory (try 3, the last)")
    assert len(server.requests) == 6
    server.then((400, {}, b"no such option"))
    assert ask().why == "HTTP 400: no such option"
    assert len(server.requests) == 7


def test_a_wrong_key_is_not_tried_again_and_stands_nowhere(server, ask, tmp_path):
    server.then((401, {}, f"wrong key {KEY}".encode()))
    assert ask().why == "HTTP 401: check the key in JUDGE_KEY"
    assert ask(api_key_env="").why.startswith("HTTP 401: check that it needs a key")
    server.then((404, {}, f"{KEY} may not use m".encode()))
    assert ask().why == "HTTP 404: *** may not use m"
    server.then(CORRECT.replace("4", KEY))
    assert ask().value == 1.0
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(kept) == 1 and "***" in kept[0].read_text() and KEY not in kept[0].read_text()
    assert len(server.requests) == 4


def test_a_redirection_is_not_followed(server, ask):
    server.then((302, {"Location": f"{server.url}/elsewhere"}, b""))
    score = ask()
    assert score.status == "error" and score.why.startswith("HTTP 302: it leads elsewhere")
    assert len(server.requests) == 1  # the key was not sent there


def slow(body):
    time.sleep(1.0)
    return CORRECT


def drip(body):
    def parts():
        for byte in completion(CORRECT):
            time.sleep(0.1)
            yield bytes([byte])

    return 200, {}, parts()


@pytest.mark.parametrize("say", [slow, drip])
def test_slow_answers_end_at_the_limit(server, ask, say):
    server.say = say
    start = time.monotonic()
    score = ask(timeout=0.3, retries=0)
    assert (score.status, score.why) == ("timeout", "no answer within 0.3 s (try 1, the last)")
    assert time.monotonic() - start < 0.9


def test_nobody_listens(ask):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    score = ask(url=f"http://127.0.0.1:{port}/v1", retries=0)
    assert score.status == "error" and "ConnectionRefusedError" in score.why


# -- The cache


def test_the_same_request_is_sent_once(server, ask, tmp_path):
    assert ask() == ask()
    assert len(server.requests) == 1
    others = [{"model": "n"}, {"body": {}}, {"answer": "5"}, {"prompt": "3 + 1?"}, {"row": {"answer": 5}}]
    others += [{"url": server.url + "/b"}, {"cache": str(tmp_path / "other")}]
    for number, other in enumerate(others, 2):
        ask(**other)
        assert len(server.requests) == number


def test_a_damaged_entry_is_asked_for_again(server, ask, tmp_path):
    ask()
    (entry,) = (tmp_path / "cache").rglob("*.json")
    whole = entry.read_bytes()
    for number, damage in enumerate([whole[:-9], b"", b'"no verdict"'], 2):
        entry.write_bytes(damage)
        assert ask().value == 1.0 and entry.read_bytes() == whole
        assert len(server.requests) == number


def test_workers_share_a_cache_and_wait_longer_than_their_limit(server, tmp_path):
    refused = []

    def say(body):
        if not refused:
            refused.append(body)
            return 429, {"Retry-After": "0.8"}, b""
        time.sleep(0.8)
        right = "even" if int(body["messages"][0]["content"]) % 2 == 0 else "odd"
        return json.dumps({"analysis": right, "correctness": right == "even"})

    server.say = say
    (tmp_path / "t.txt").write_text("{answer}")
    name = named("judge", url=server.url, model="m", template=str(tmp_path / "t.txt"), cache=str(tmp_path / "cache"))
    items = [Item("q", str(n % 6), {}, (name,)) for n in range(24)]
    for round in range(2):
        with Pool(Workers(count=2, timeout=0.5)) as pool:
            scores = [s[name] for s in pool.score(items)]
        assert [(s.value, s.status) for s in scores] == [(float(n % 2 == 0), "ok") for n in range(24)]
        # Two workers may ask the same at the same time.
        assert 6 <= len(server.requests) - len(refused) <= 12, round
    assert server.most_at_once == 2
    assert len([p for p in (tmp_path / "cache").rglob("*") if p.is_file()]) == 6  # and no unfinished ones


# -- The client alone


def test_requests_at_once_are_bounded(server, tmp_path):
    server.say = lambda body: time.sleep(0.1) or body["n"]

    async def everything():
        endpoint = ChatEndpoint(server.url, cache=str(tmp_path), concurrency=3)
        return await asyncio.gather(*(endpoint.ask({"n": str(n)}, int) for n in range(12)))

    assert asyncio.run(everything()) == list(range(12))
    assert server.most_at_once == 3


def test_what_the_reader_refuses_is_not_kept(server, tmp_path):
    endpoint = ChatEndpoint(server.url, cache=str(tmp_path), retries=0)
    server.then("x", "7", (500, {}, b""))
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(endpoint.ask({}, int))
    assert [asyncio.run(endpoint.ask({}, int)) for _ in range(2)] == [7, 7]
    with pytest.raises(Unanswered, match="HTTP 500"):
        asyncio.run(endpoint.ask({"other": 1}, int))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"url": "localhost:8000/v1"}, "'url' is no http address"),
        ({"url": "http://h/v 1"}, "'url' is no http address"),
        ({"url": "https://me:pass@h/v1"}, "'url' holds more than an address"),
        ({"url": "https://h/v1?key=1"}, "'url' holds more than an address"),
        ({"timeout": 300}, "timeout is 300; it must be above 0 and at most 110 s"),
        ({"retries": -1}, "retries is -1"),
        ({"api_key_env": "sk-abc"}, "'api_key_env' is no name of an environment variable"),
        ({"api_key_env": "NOT_SET"}, "the environment variable NOT_SET is not set, or is no key"),
        ({"api_key_env": "TWO_LINES"}, "the environment variable TWO_LINES is not set, or is no key"),
        ({"template": "nowhere.txt"}, "the template nowhere.txt cannot be read"),
        ({"template": __file__.replace("test_rewards_judge", "tiny")}, "has no {answer}"),
        ({"cache": __file__}, "cannot be written"),
        ({"timeuot": 3}, "it has no option 'timeuot'"),
        ({"model": 3}, "option 'model': expected str"),
    ],
)
def test_wrong_options_are_refused_when_loaded(tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("TWO_LINES", f"{KEY}\nb")
    with pytest.raises(ValueError, match=message) as error:
        load(named("judge", **({"url": "http://h/v1", "model": "m", "cache": str(tmp_path)} | options)))
    assert "\n" not in str(error.value) and KEY not in str(error.value)


def test_the_cache_is_in_the_users_folder_of_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load('judge{"url":"http://localhost:8000/v1","model":"m"}')
    assert (tmp_path / "r1jax" / "judge").is_dir()
