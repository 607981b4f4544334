"""A language model behind an OpenAI-compatible server, as the judge of world/judge.py."""
import concurrent.futures
import contextlib
import http.client
import json
import math
import re
import threading
import urllib.error
import urllib.request

from data import UserError
from world.labelers import rows_to_add_to


class Busy(Exception):
    """What may go better the next time. wait: seconds that the server asks for, or None."""

    def __init__(self, problem, wait=None):
        super().__init__(problem)
        self.wait = wait


MOST = 2**22  # bytes of an answer


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for one host: nobody follows to another. (The redirect is an HTTP error, then.)"""

    def redirect_request(self, *args):
        return None


OPENER = urllib.request.build_opener(NoRedirect)


def in_time(seconds, work, *args):
    """work(*args), or TimeoutError where that is not there after so many seconds, whatever it waits for: a
    name, a connection, a header that comes drop by drop. Then it is left to itself."""
    found = concurrent.futures.Future()

    def run():
        try:
            found.set_result(work(*args))
        except Exception as error:  # raised again by result()
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found.result(seconds)


def fetch(request, seconds):
    """(HTTP status, headers, bytes) of the answer to a request; of an error whose text breaks off the status
    and b"". Raises OSError, HTTPException, or ValueError where it is too long."""
    try:
        reply = OPENER.open(request, timeout=seconds)
        return reply.status, reply.headers, read_all(reply)
    except urllib.error.HTTPError as error:
        said = b""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            said = in_time(seconds / 2, read_all, error)  # in less time than there is for all of it
        return error.code, error.headers, said


def read_all(reply):
    read = b""
    with reply:
        while part := reply.read1(65536):
            read += part
            if len(read) > MOST:
                raise ValueError(f"answers with more than {MOST / 2**20:.0f} MB")
    return read


class Server:
    """A language model behind a server: POST URL/completions. Each answer of it is kept in a file, and not
    bought twice.

    url: up to and including /v1; key: for the Authorization header, or ""; path: the file, or None;
    timeout, wait: seconds for an answer, and before the second try (then twice as long each time). Raises
    UserError with a sentence about what is wrong and could be done."""

    form = "server"  # which of world.judge.FORMS it is asked in

    def __init__(self, url, model="", key="", path=None, timeout=60.0, tries=5, wait=1.0, parallel=4):
        self.url, self.key, self.path = url.rstrip("/"), key, path
        self.timeout, self.tries, self.wait, self.parallel = timeout, tries, wait, parallel
        self.lock, self.stop = threading.Lock(), threading.Event()
        if not re.fullmatch(r"[\w.~+/=:@-]*", key, re.ASCII):
            raise UserError("JUDGE_API_KEY: expected one line of letters, digits and . _ ~ + / = : @ -")
        self.name = model or self.first_model()  # what another model has answered is no answer of this one
        self.bought = {}
        if path:
            calls = rows_to_add_to(path, is_call)
            self.bought = {json.dumps(row["asked"]): row["choice"] for row in calls}

    # One request

    def headers(self):
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Content-Type": "application/json", **key}

    def first_model(self):
        """The first model that the server lists, or "" where it has no list."""
        request = urllib.request.Request(f"{self.url}/models", headers=self.headers())
        try:
            _, _, listed = in_time(self.timeout, fetch, request, self.timeout)
            return str(json.loads(listed)["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError):
            return ""

    def shown(self, text):
        """What a server says (all of it, for a part of the key would not be found), fit to be printed: short,
        without control characters, without the key."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        text = text.replace(self.key, "(key)") if self.key else text
        return re.sub(r"[^ -~\u00a1-\uffff]", " ", text)[:300]

    def request(self, asked):
        """The bytes that the server sends back. Raises Busy where it may be asked again, UserError where
        not."""
        body = json.dumps({k: v for k, v in asked.items() if k != "url"}).encode()
        try:
            request = urllib.request.Request(f"{self.url}/completions", body, self.headers())
            code, headers, said = in_time(self.timeout, fetch, request, self.timeout)
        except (ValueError, http.client.InvalidURL) as error:  # no request, or an answer without end
            raise UserError(f"{self.url}: {self.shown(str(error))}; --judge_url is http://HOST:PORT/v1"
                            ) from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", None)
            if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
                raise Busy(f"gave no answer within {self.timeout:g} s") from None
            problem = self.shown(str(reason or repr(error)))
            raise Busy(f"cannot be reached ({problem}): is the server running?") from None
        if code >= 300:
            raise self.refusal(code, headers, self.shown(said) or "without a reason")
        return said

    def refusal(self, code, headers, said):
        """What an HTTP error means: Busy or UserError."""
        if 300 <= code < 400:
            return UserError(f"{self.url} sends us on to another address (HTTP {code}), where the key does "
                             "not go: give the final address as --judge_url")
        if code in (401, 403):
            return UserError(f"{self.url} refuses the key (HTTP {code}): "
                             "set the environment variable JUDGE_API_KEY")
        if code == 404:
            return UserError(f"{self.url}/completions is not there (HTTP 404: {said}): "
                             "--judge_url ends in /v1 and --judge_model names a model of that server")
        if code not in (408, 409, 429) and code < 500:
            return UserError(f"{self.url} does not accept the question (HTTP {code}: {said})")
        wait = None
        with contextlib.suppress(TypeError, ValueError):
            wait = max(0.0, min(float(headers.get("Retry-After")), 60.0))
        if code == 429:
            return Busy("asks for fewer questions at a time (HTTP 429)", wait)
        return Busy(f"has trouble of its own (HTTP {code}: {said})", wait)

    def patiently(self, asked):
        """The same, asked again as long as there is hope."""
        for attempt in range(self.tries):
            try:
                return self.request(asked)
            except Busy as busy:
                if attempt + 1 == self.tries or self.stop.is_set():
                    raise UserError(f"{self.url} {busy}, {self.tries} times; what it has answered is kept, "
                                    "the same command goes on from there") from None
                self.stop.wait(self.wait * 2**attempt if busy.wait is None else busy.wait)

    def ask(self, asked):
        """The first choice of the server's answer to one request (a dict), from the file if it is there."""
        model = {"model": self.name} if self.name else {}
        asked = {"url": self.url, **model, "temperature": 0, **asked}
        key = json.dumps(asked)
        if key in self.bought:
            return self.bought[key]
        raw = self.patiently(asked)
        try:
            choice = json.loads(raw)["choices"][0]
            choice = {"text": choice["text"], "logprobs": choice.get("logprobs")}
            if not is_call({"asked": asked, "choice": choice}):
                raise ValueError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            said = self.shown(raw)[:200]
            raise UserError(f"{self.url} answered something that is no completion: {said!r}") from None
        with self.lock:
            self.bought[key] = choice
            if self.path:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"asked": asked, "choice": choice}) + "\n")
        return choice

    # What a judge needs: next tokens and text

    def ask_all(self, asked):
        """Several requests at a time, each once; the answers in their order."""
        new = {json.dumps(a): a for a in asked}
        pool = concurrent.futures.ThreadPoolExecutor(self.parallel)
        try:
            answers = dict(zip(new, pool.map(self.ask, new.values()), strict=True))
        finally:
            self.stop.set()  # nobody tries again where one has failed, or Ctrl-C was pressed
            pool.shutdown(cancel_futures=True)
            self.stop.clear()
        return [answers[json.dumps(a)] for a in asked]

    def likeliest(self, texts):
        """{token: log-probability} of the likeliest next tokens of each text."""
        found = []
        for choice in self.ask_all([{"prompt": text, "max_tokens": 1, "logprobs": 5} for text in texts]):
            try:
                top = dict(choice["logprobs"]["top_logprobs"][0])
                found.append({token: min(0.0, log_probability(value)) for token, value in top.items()})
            except (TypeError, LookupError, ValueError, OverflowError):
                raise UserError(f"{self.url} gives no log-probabilities with its completions, and a soft "
                                "label is made of them: choose a server that gives them") from None
        return found

    def next_token(self, texts, words):
        """{word: log-probability} of each text, for those of the words that the server lists among the
        likeliest next tokens. Where it lists none of them but a blank, which some vocabularies have before
        a number, those behind it."""
        listed = self.likeliest(texts)
        blank = [i for i, top in enumerate(listed) if " " in top and not words_in(top, words)]
        behind = self.likeliest([texts[i] + " " for i in blank])
        for i, top in zip(blank, behind, strict=True):
            listed[i] = top
        return [words_in(top, words) for top in listed]

    def write(self, texts, max_new_tokens):
        """How each text goes on: the first line with something in it, for many models begin with an empty
        one."""
        choices = self.ask_all([{"prompt": text, "max_tokens": max_new_tokens} for text in texts])
        return [" ".join(choice["text"].strip().partition("\n")[0].split()) for choice in choices]


def is_call(row):
    """Whether a row of the file is a question and the choice that answered it."""
    choice = row.get("choice")
    return (isinstance(row.get("asked"), dict) and isinstance(choice, dict)
            and isinstance(choice.get("text"), str) and isinstance(choice.get("logprobs"), dict | None))


def log_probability(value):
    """A number that is one, up to rounding. Raises ValueError for another."""
    if isinstance(value, bool) or not -math.inf < float(value) < 0.01:
        raise ValueError
    return float(value)


def words_in(top, words):
    """Likeliest tokens -> {word: log-probability}, " 1" and "1" together. Example: {" 1": log .5, "1": log
    .1} -> {"1": log .6}."""
    found = {}
    for word in words:
        total = sum(math.exp(logprob) for token, logprob in top.items() if token.strip() == word)
        if total:
            found[word] = math.log(total)
    return found
