"""Error messages in place of answers: stack traces, status lines, error objects, which teach a model to fail.

`error_answer` knows them by their whole shape, so that an answer that explains an error, or quotes one, is left alone.
"""

from __future__ import annotations

import json
import re

_PHRASE = r"""
    internal\ (?:server|service)?\ ?error | bad\ gateway | service\ (?:is\ )?(?:temporarily\ )?unavailable
  | gateway\ time-?\ ?out | too\ many\ requests | (?:api\ )?rate[ _]limit(?:ed)?\ (?:reached|exceeded|hit|error)
  | rate[ _]limit[ _](?:reached|exceeded|error) | quota\ exceeded | insufficient[ _]quota
  | (?:the\ )?(?:upstream|server|proxy|api|model|backend|gateway|network|read|connect|connection|socket|operation
      |llm)?\ ?(?:request|response|call|connection)?\ ?(?:has\ )?(?:timed\ ?out|time-?out(?:\ error)?)
  | upstream\ (?:connect|request|server|service)?\ ?(?:error|failure|failed|unavailable)
  | upstream\ connect\ error\ or\ disconnect/reset\ before\ headers.{0,160}
  | no\ healthy\ upstream | connection\ (?:was\ )?(?:reset|refused|aborted|closed|error)(?:\ by\ peer)?
  | broken\ pipe | socket\ hang\ up | context\ deadline\ exceeded
  | e(?:conn(?:reset|refused|aborted)|timedout|pipe)(?:\ \S{1,80})?
  | cuda\ (?:error|out\ of\ memory) | out\ of\ memory | segmentation\ fault | core\ dumped
  | (?:(?:the|that)\ )?(?:server|model|service|engine)\ is\ (?:currently\ )?
      (?:overloaded|unavailable|down|not\ available)
  | (?:an?\ )?(?:unexpected|internal|unknown|server|network|unhandled)\ (?:server\ )?(?:error|exception)
      (?:\ (?:has\ )?occurr?ed)?
  | an?\ (?:error|exception)\ (?:has\ )?occurr?ed
  | (?:oops\W{1,3})?something\ went\ wrong | failed\ to\ fetch | max(?:imum)?\ retries\ exceeded
  | request\ (?:failed|aborted|was\ aborted)
"""
_TAIL = r"""
    (?: \s*[.!…]{0,3} (?:\s*\(?\s*(?:please\ )?(?:try|retry|wait|contact|reduce|slow)\b.{0,160})?
      | \s*[:(\[;,-]\s?.{0,80}
      | \ (?:for|in|while|during|on|with|from|after)\ .{0,120}\d.{0,120}
      | \ (?:while|during)\ .{0,80} )
"""
_LEAD = (
    r"(?:\W{0,3}(?:error|fatal|failure|exception|http(?:/[\d.]{1,3})?|status(?:[ _]code)?|code)\b[\s:=#\]-]{0,4}){0,3}"
)
_STATUS_NAME = r"bad request|unauthori[sz]ed|forbidden|not found|conflict|gone|method not allowed|payload too large"

_HTTP = re.compile(
    rf"""{_LEAD} (?:[45]\d\d\b[\s:,-]{{0,4}})? (?:{_PHRASE}) {_TAIL}
       | {_LEAD} [45]\d\d\b [\s:,-]{{1,4}}
         (?:client\ error|server\ error|{_STATUS_NAME.replace(" ", chr(92) + " ")}) {_TAIL}
       | (?:http(?:/[\d.]{{1,3}})?\ ?(?:error|status)?|error(?:\ code)?|status(?:[ _]code)?)[\s:=]{{1,3}}[45]\d\d\b
         (?:\s?[-:({{].{{0,1000}}|[.!]?)""",
    re.IGNORECASE | re.VERBOSE,
)
_EXCEPTION = re.compile(
    r"(?:uncaught |unhandled |fatal |error: |exception: |exception in thread \S{1,60} )?"
    r"(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z]\w{0,60}(?:Error|Exception|Timeout|Interrupt): [^\n]{1,400}"
)
_FRAMES = re.compile(r"(?:\s*at |\s*File \"|\s*\.\.\. \d+ more|Caused by: |\s{2,}\S|goroutine \d|[\w./-]+:\d+\b)")
_LOG_LINE = re.compile(r"(?:\[(?:ERROR|FATAL|CRITICAL|error)\]|(?:ERROR|FATAL|CRITICAL)\b ?[:|-]) ?[^\n]{1,300}")
_TRACEBACK = re.compile(r"(?:error:? ?|```\w{0,10}\n)?Traceback \(most recent call last\)(?::|\s*$)", re.IGNORECASE)
_GOES_ON = re.compile(
    r"Traceback|During handling|The above exception|\s|[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b"
)
_PANIC = re.compile(r"panic: [^\n]{1,300}\n|thread '[^'\n]{1,60}' panicked at |Exception in thread \"")
_ERROR_PAGE = re.compile(
    r"<(?:!doctype html|html|head)[^>]{0,100}>.{0,300}?<title>[^<]{0,60}?(?:429|50[0-4]|52\d|bad gateway|unavailable|"
    r"server error|time-?out)",
    re.IGNORECASE | re.DOTALL,
)
_ERROR_OBJECT = re.compile(r"\[?\{\s*['\"]errors?['\"]\s*:\s*(?!null\b|None\b|false\b|False\b|\"\"|''|\[\]|\{\}|0\b)")
_NO_VALUE = frozenset({"null", "NULL", "undefined", "NaN", "[object Object]", "(null)", "<null>"})
_ENVELOPE_KEYS = (
    "error errors message code status statuscode status_code type detail details reason request_id requestid "
    "timestamp path param success ok errormessage errortype error_description error_code errorcode exception "
    "stacktrace stack trace name title instance object event_id traceid trace_id documentation_url"
)
_ENVELOPE = frozenset(_ENVELOPE_KEYS.split())
_NAMES_ERROR = ("error", "errors", "errormessage", "exception", "stacktrace", "error_description", "error_code")

# What all of them begin with, in lower case: nearly all answers are done with after this one match.
_MAYBE = re.compile(
    r"\s*(?:[\[{<(`#\"']|\W{0,3}(?:an? |the |that )?(?:internal|inter?rupted|bad|service|gateway|too many|(?:api )?rate"
    r"|quota|insufficient|upstream|server|proxy|api |model|backend|network|read|connect|socket|operation|llm|request"
    r"|response|call|time|no healthy|broken|context|econn|etimed|epipe|cuda|out of|segmentation|core|engine|unexpected"
    r"|unknown|unhandled|uncaught|error|exception|oops|something|failed|max|http|status|code|fatal|critical|failure"
    r"|traceback|panic|thread|null|undefined|nan\b|[45]\d\d\b|[a-z_][\w.]*+: ))"
)

_ABOUT_FAILURES = re.compile(
    r"\b(?:https?(?!:)|status codes?|error (?:codes?|messages?)|errors? mean|[45]\d\d)\b", re.IGNORECASE
)
_ABOUT_CODE = re.compile(
    r"\b(?:code|error|errors|exception|exceptions|traceback|stack ?trace|raises?|throws?|print(?:s|ed)?|"
    r"html|json|null|undefined|nan|javascript|python|java|sql|console|log|logs|program|script|function)\b",
    re.IGNORECASE,
)


def error_answer(text: str, question: str = "") -> str | None:
    """What kind of failure an answer is, or None when it is an answer.

    The text must be only the failure: a stack trace, an HTTP status line, an exception with its message, an error
    object in JSON, a server's error page, or a bare `null`. Where the question is about such things, the answer may be
    right.
    """
    if _MAYBE.match(text[:120].lower()) is None:
        return None
    text = text.strip()
    kind = _kind(text)
    if kind is None:
        return None
    about = _ABOUT_FAILURES if kind in ("an HTTP error", "an error object") else _ABOUT_CODE
    return None if about.search(question) else kind


def _kind(text: str) -> str | None:
    if text in _NO_VALUE:
        return "no value"
    if text[0] in "{[" and _is_error_object(text):
        return "an error object"
    if text[0] == "<":
        return "an error page" if len(text) < 20_000 and _ERROR_PAGE.match(text) else None
    if _TRACEBACK.match(text):
        return "a stack trace" if all(map(_GOES_ON.match, text.split("\n\n")[1:])) else None
    if len(text) <= 1500 and "\n" not in text:
        if _HTTP.fullmatch(text):
            return "an HTTP error"
        if _EXCEPTION.fullmatch(text) or _LOG_LINE.fullmatch(text):
            return "an exception"
        return None
    first, _, rest = text.partition("\n")
    frames = [line for line in rest.split("\n") if line.strip()]
    if _EXCEPTION.fullmatch(first) or _PANIC.match(text):
        return "a stack trace" if frames and all(map(_FRAMES.match, frames)) else None
    return None


def _is_error_object(text: str) -> bool:
    """JSON that has only an error in it; cut-off JSON and Python's way of writing it count too."""
    if len(text) > 20_000:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return len(text) < 3000 and _ERROR_OBJECT.match(text) is not None
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    if not isinstance(value, dict) or not value:
        return False
    low = {key.casefold(): item for key, item in value.items()}
    if not low.keys() <= _ENVELOPE:
        return False
    codes = (low.get(name) for name in ("status", "statuscode", "status_code", "code"))
    if any(low.get(name) for name in _NAMES_ERROR) or any(isinstance(c, int) and 400 <= c < 600 for c in codes):
        return True
    message = low.get("message") or low.get("detail")
    status = re.compile(_STATUS_NAME, re.IGNORECASE)
    return isinstance(message, str) and bool(_HTTP.fullmatch(message) or status.fullmatch(message))
