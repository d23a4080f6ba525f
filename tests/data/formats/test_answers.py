"""An answer that is an error message is rejected; an answer about errors stays."""

from __future__ import annotations

import pytest
from format_records import parse, reason
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.data.formats import error_answer

TRACEBACK = 'Traceback (most recent call last):\n  File "app.py", line 3, in <module>\n    f()\nValueError: no'


@pytest.mark.parametrize(
    "text",
    [
        "Internal Server Error",
        "500 Internal Server Error",
        "Error: 502 Bad Gateway",
        "HTTP/1.1 503 Service Unavailable",
        "404 Not Found",
        "upstream request timeout",
        "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
        "Request timed out.",
        "Error code: 429 - {'error': {'message': 'Rate limit reached'}}",
        "Rate limit exceeded. Please try again in 20s.",
        "ECONNREFUSED 127.0.0.1:8080",
        "An unexpected error occurred. Please try again later.",
        "The server is overloaded",
        "TypeError: Cannot read properties of undefined (reading 'x')",
        "openai.error.RateLimitError: Rate limit reached for gpt-4",
        "java.lang.NullPointerException: x is null\n\tat com.shop.Cart.add(Cart.java:42)\n\tat com.shop.Main.main(Main.java:7)",
        "TypeError: x is not a function\n    at run (/app/index.js:10:5)\n    at main (/app/index.js:2:1)",
        "[ERROR] worker died",
        TRACEBACK,
        "Traceback (most recent call last): ...",
        '{"error": {"message": "Rate limit reached", "type": "requests"}}',
        '{"error": "timeout", "status": 504}',
        '{"message": "Internal server error"}',
        '{"error": {"message": "cut o',
        "{'error': 'model not loaded'}",
        "<html>\n<head><title>502 Bad Gateway</title></head><body>nginx</body></html>",
        "null",
        "undefined",
        "[object Object]",
    ],
)
def test_what_a_failed_call_prints_is_no_answer(text: str) -> None:
    assert error_answer(text)
    assert reason(parse({"prompt": "Where is my card?", "completion": f" {text}\n"})) == "error_output"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "An internal server error means that the server failed; try again in a minute.",
        "Internal Server Error is what the page shows when our server is down. Please clear your cache.",
        "The 404 error means the page was moved.",
        "Error messages like this one appear when the card is blocked.",
        "Timeouts happen when the line is slow.",
        "Time out of mind",
        "Errors: none. Your order is complete.",
        "Sorry, I can't do that. Something went wrong with your order, and I have asked a colleague to look.",
        "You see this traceback:\n\n" + TRACEBACK,
        TRACEBACK + "\n\nThis means that the value was wrong.",
        '{"error": null, "result": 5}',
        '{"error": "a typo", "correction": "the"}',
        '{"name": "Ann", "code": 7}',
        "<html><head><title>My shop</title></head></html>",
        "Null hypotheses are rejected at 5 %.",
        "None",
        "Not found",
        "500",
        "Server",
        "Network",
        "Connection: the cable comes first.",
        "Note: Error handling is up to you.",
        "Unknown",
    ],
)
def test_answers_about_errors_are_answers(text: str) -> None:
    assert error_answer(text) is None


def test_an_error_that_was_asked_for_is_an_answer() -> None:
    assert error_answer("404 Not Found", "Which HTTP status says that a page is missing?") is None
    assert error_answer("ValueError: no", "What does this code print?") is None
    assert error_answer("upstream request timeout", "What does this code print?")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aeE rox:.{}[]\"'\n<>0245/", max_size=60))
def test_the_search_for_errors_ends_on_any_text(text: str) -> None:
    assert error_answer(text) in (
        None, "no value", "an error object", "an error page", "a stack trace", "an HTTP error", "an exception",
    )  # fmt: skip
