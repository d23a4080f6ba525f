"""Secrets in a text: keys of known services, credentials in URLs, and values next to "password" or "token"."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator

from tuneloop.data.clean.language import known_words, made_of_words
from tuneloop.data.pii.identifiers import Span, base58check

# Forms that services document for their keys. Those in a shape of their own need no word next to them.
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    # OpenAI, Anthropic, OpenRouter, Langfuse
    r"sk-(?:proj|svcacct|admin|None|ant-[a-z0-9]{2,8}|or-v1|lf)?-?[A-Za-z0-9_-]{16,}"
    # Stripe and alike
    r"|(?:sk|pk|rk|whsec|sess|sq0(?:atp|csp)|rzp)_?-?(?:live|test|prod)_[A-Za-z0-9]{8,}|whsec_[A-Za-z0-9+/=]{24,}"
    r"|sq0(?:atp|csp|idp)-[\w-]{22,}"  # Square
    r"|(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # Amazon
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"  # GitHub
    r"|gl(?:pat|dt|rt|ptt|ft|soat|cbt|imt|agent)-[\w.-]{16,}"  # GitLab
    r"|xox[abceoprs]-[\w-]{10,}|xapp-[\w-]{10,}"  # Slack
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|1//0[\w-]{30,}"  # Google
    r"|hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|[ps]k\.ey[JK][A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"  # Mapbox
    r"|ey[JK][A-Za-z0-9_-]{8,}\.ey[JK]?[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?"  # JSON Web Token (RFC 7519)
    r"|(?:SK|AC)[0-9a-f]{32}(?![A-Za-z0-9])"  # Twilio
    r"|SG\.[\w-]{16,}\.[\w-]{16,}"  # SendGrid
    # registries of packages
    r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}|rubygems_[0-9a-f]{40,}|dckr_pat_[\w-]{20,}|oy2[a-z0-9]{43}"
    r"|dop_v1_[0-9a-f]{40,}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{24,}|glsa_\w{30,}|hvs\.[\w-]{20,}|NRAK-[A-Z0-9]{20,}"
    r"|lin_api_[A-Za-z0-9]{30,}|PMAK-[\w-]{40,}|figd_[\w-]{30,}|secret_[A-Za-z0-9]{40,}|ntn_[A-Za-z0-9]{36,}"
    r"|r8_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{30,}|xai-[A-Za-z0-9]{40,}|pplx-[A-Za-z0-9]{30,}|nvapi-[\w-]{40,}"
    r"|tgp_v1_[\w-]{20,}|fw_[A-Za-z0-9]{20,}(?![A-Za-z0-9])|dapi[0-9a-f]{32}|ATATT3[\w=-]{30,}|ATCTT3[\w=-]{30,}"
    r"|EAA[A-Za-z0-9]{40,}|A{16,}[\w%]{30,}|pat[A-Za-z0-9]{14}\.[0-9a-f]{64}|key-[0-9a-f]{32}|[0-9a-f]{32}-us\d{1,2}"
    r"|sbp_[0-9a-f]{40}|pscale_\w{3,8}_[\w.-]{30,}|phc_[A-Za-z0-9]{30,}|sntry[su]_[\w=+/-]{30,}"
    r"|\d{8,10}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9])"  # Telegram
    r"|[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}"  # Discord
    r"|[\w~.-]{3}\dQ~[\w~.-]{31,34}"  # Microsoft Entra
    # and the usual shape of the rest
    r"|AGE-SECRET-KEY-1[A-Z0-9]{50,}|[a-z]{2,8}[-_](?:api|key|secret|live|prod|token|pat|sk)[-_][A-Za-z0-9]{20,}"
    r")"
    r"|(?<=hooks\.slack\.com/services/)T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/\w{16,}"
    r"|(?<=discord\.com/api/webhooks/)\d{15,}/[\w-]{40,}"
)
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----BEGIN).){0,20000}?"
    r"(?:-----END [A-Z0-9 ]{0,40}-----|\Z)|-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY"
    r"(?: BLOCK)?-----[A-Za-z0-9+/=\s\\]{0,20000}",
    re.DOTALL,
)
_WIF = re.compile(
    r"(?<![0-9A-Za-z])(?:[5KL][1-9A-HJ-NP-Za-km-z]{50,51}|[xyz]prv[1-9A-HJ-NP-Za-km-z]{100,110})(?![0-9A-Za-z])"
)
_PART = re.compile(r"[A-Za-z]{16,}")
_CONSONANTS = re.compile(r"[b-df-hj-np-tv-xz]{4,}", re.IGNORECASE)


def _random_letters(part: str) -> bool:
    """Whether letters without a gap make no words: names do not change case at every second letter, nor lack vowels."""
    changes = sum(a.isupper() != b.isupper() for a, b in itertools.pairwise(part))
    if changes >= 0.35 * len(part):
        return True
    runs = [len(run) for run in _CONSONANTS.findall(part)]
    vowels = sum(c in "aeiouAEIOU" for c in part)
    few_vowels = vowels <= 0.35 * len(part) and (len(runs) > 1 or max(runs, default=0) > 4)
    return few_vowels and not made_of_words(part.lower(), known_words("en"))


def keys(text: str) -> Iterator[Span]:
    """Keys and tokens in the form of a known service, private keys."""
    for match in _KEY.finditer(text):
        value = match.group()
        # A key is random: what has no digit is mostly a name such as sk-learn-contrib or pk_test_customer_name.
        if any(c.isdigit() for c in value[3:]) or any(map(_random_letters, _PART.findall(value))):
            yield ("API_KEY", match.start(), match.start() + len(value.rstrip("-_.")))
    if "-----BEGIN" in text:
        for match in _PEM.finditer(text):
            yield ("API_KEY", *match.span())
    for match in _WIF.finditer(text):
        if base58check(match.group()) is not None:
            yield ("API_KEY", *match.span())


_USER_INFO = re.compile(r"(?<=://)[^\s/?#@\"'<>]{1,256}(?:@[^\s/?#@\"'<>]{1,64}){0,3}(?=@[\w.\[-])")
_QUERY = re.compile(
    r"(?<=[?&;#])(?:amp;)?(?:[\w.-]{0,20}(?:token|api[_-]?key|apikey|secret|passw(?:or)?d|pwd|signature|credential)"
    r"|access[_-]?key|auth|key|sig|pass|code|sid|session(?:id|_id)?|jwt|hash|otp"
    r"|subscription-key)=([^&\s#\"'<>)\\]{4,})",
    re.IGNORECASE,
)


def url_credentials(text: str) -> Iterator[Span]:
    """User and password before the host of a URL, and tokens in its query (RFC 3986, sections 3.2.1 and 3.4)."""
    for match in _USER_INFO.finditer(text):
        if ":" in match.group() or len(match.group()) >= 16:  # a bare user such as git@ is no secret
            yield ("URL_CREDENTIALS", *match.span())
    if "=" in text:
        for match in _QUERY.finditer(text):
            if match.group(1)[:1] not in "{<$[":
                yield ("URL_CREDENTIALS", *match.span(1))


# For lower-case text; each begins with plain letters, so that `re` skips ahead to one of them.
_NAME = re.compile(
    r"(?:pass(?:[ _-]?(?:words?|wrd|phrase|code)|wd|wort|(?=[\"']{0,2}\s?=|[\"']\s?:))(?:[_-]?(?:value|hash|[12]))?|pwd"
    r"|kennwort|mot de passe|mdp|contrase[ñn]a|clave|senha|wachtwoord|has[łl]o|lösenord|parola"
    r"|密码|密碼|パスワード|пароль"
    r"|login credentials?|api[ _-]?(?:secret|key|token)(?:[ _-]?id)?|access[ _-]?(?:secret|key|token|code)(?:[ _-]?id)?"
    r"|app[ _-]?(?:secret|key|token)|auth(?:entication)?[ _-]?(?:secret|key|token)|account[ _-]?key|private[ _-]?key"
    r"|encryption[ _-]?key|signing[ _-]?(?:key|secret)|storage[ _-]?key|subscription[ _-]?key"
    r"|client[ _-]?(?:secret|id|key)|shared[ _-]?(?:access[ _-]?)?(?:secret|key)|master[ _-]?key|service[ _-]?key"
    r"|license[ _-]?key|activation[ _-]?key|secret(?:[ _-]?(?:access[ _-]?)?(?:key|token))?|tokens?|credentials?"
    r"|authorization|bearer|cookie|session[ _-]?id|connection[ _-]?string|pin(?:[ _-]?(?:code|number|no\.?))?|cvv2?"
    r"|cvc2?|csc|otp|security code|verification code|one[- ]time (?:code|pass(?:word|code))|sms code|2fa code|card code"
    r"|entry code|door code|unlock code)"
)
_PIN = re.compile(r"pin|cvv|cvc|csc|otp|one[- ]time|.*code")
_PASSWORD = re.compile(r"pass|pwd|kenn|mot|mdp|contra|clave|senha|wacht|has|lös|paro|密|パ|пар|login")
_GLUE_AND_VALUE = re.compile(
    # as in prose, code, JSON, YAML, an environment or an HTTP header
    r"(?P<glue>[\"'\]*`]{0,4}(?:\s{0,3}(?:=>|:=|==|=|:|->|–|—)\s{0,3}"
    r"|\s(?:(?:for|to|of|at|on) (?:[\w.@-]{1,30} ){1,4}?)?(?:is|was|are|ist|es|est|é|è|jest|är|set to|changed to"
    r"|=)\s(?:now |still |just |currently )?:?\s?|\s-\s|(?<=bearer)\s|\s(?=\d{3,8}(?!\S))"
    r"|\s(?=[\"'`])))(?P<value>(?:(?:bearer|basic|token)\s+)?[\"'`*\\]{0,3}(?:(?<=[\"'`])[^\"'`\n]{3,200}(?=\\?[\"'`])"
    r"|[^\s\"'`<>]{3,400}))",
    re.IGNORECASE,
)
_NO_VALUE = re.compile(
    r"(?:none|null|nil|true|false|undefined|required|optional|string|str|int|text|char|varchar|hidden|redacted|removed"
    r"|unknown|empty|missing|invalid|incorrect|wrong|correct|expired|not|the|too|very|my|your|a|an|in|on|no|being"
    r"|needed|secure|safe|weak|strong|changed|changeme|reset|forgotten|lost|same|different|default|example|placeholder"
    r"|here|there|above|below|xxx+|\*+|\.\.+|_+|-+|\?+|…+|[•●]+|input|getpass|os|process|env|config|settings|self|this"
    r"|request|args|data|user|value|new|old|sent|blocked|locked|stolen|working|needed|saved|stored|valid|accepted"
    r"|rejected|what|which|how|when|something|anything|everything|nothing|it|that|they|just|only|also|always|never"
    r"|still|already|being|case|at|least|between|for|from|to|and|or|with|without|if|is|are|was)(?![\w@!#$%^&*-])"
    r"|[\[({<$%]|[a-z_.]{2,40}\(|your\w*|my[-_ ]|<|\d{1,2}(?!\S)",
    re.IGNORECASE,
)
_TRAILING = ".,;:!?)]}>*`\\"


def named_secrets(text: str, lower: str) -> Iterator[Span]:
    """Values next to a word that names them: "password: ...", "my PIN is ...", "Authorization: Bearer ...". After a
    sign of assignment nearly any value counts; after "is" only one that is no word, for people write "my password is
    wrong".
    """
    for name in _NAME.finditer(lower):
        match = _GLUE_AND_VALUE.match(text, name.end())
        if match is None:
            continue
        start, stop, quoted = _trimmed(text, *match.span("value"))
        glue, word = match.group("glue"), name.group()
        in_query = text[name.start() - 1 : name.start()] in ("?", "&") or not _PASSWORD.match(word)
        if in_query and "&" in text[start:stop]:
            stop = text.index("&", start)
        value = text[start:stop]
        assigned = any(sign in glue for sign in ":=>")
        if _NO_VALUE.match(value):
            continue
        if _PIN.match(word):
            embedded = name.start() > 0 and lower[name.start() - 1].isalpha()  # "shopping: 1234"
            postcode = word.startswith("pin") and "code" in word and len(value) == 6
            if not embedded and not postcode and re.fullmatch(r"\d{3,8}|\d{3}[ -]\d{3}", value):
                yield ("PASSWORD", start, stop)
        elif _PASSWORD.match(word):
            # "Passwords: make sure that ..." is prose: a bare word with another one after it.
            end = match.end("value")
            prose = not quoted and value.isalpha() and re.match(r"[ \t]+\w", text[end : end + 9]) is not None
            if not prose and _is_password(value, assigned=assigned, quoted=quoted):
                yield ("PASSWORD", start, end if text[stop:end] in ("!", "*") else stop)
        elif looks_random(value) or (assigned and quoted and len(value) >= 8 and _mixed(value) and " " not in value):
            yield ("API_KEY", start, stop)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int, bool]:
    """A value without an HTTP header's scheme, quotes and the sentence's punctuation; and whether it was quoted."""
    scheme = re.match(r"(?:bearer|basic|token)\s+", text[start:end], re.IGNORECASE)
    start += scheme.end() if scheme else 0
    quoted = False
    while start < end and text[start] in "\"'`*\\":
        quoted, start = True, start + 1
    while end > start and text[end - 1] in _TRAILING and not quoted:
        end -= 1
    if quoted and end > start and text[end - 1] == "\\":
        end -= 1
    return start, end, quoted


def _mixed(value: str) -> bool:
    digits_and_letters = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    return digits_and_letters or any(c in "!@#$%^&*+=~|" for c in value)


def _is_password(value: str, *, assigned: bool, quoted: bool) -> bool:
    if len(value) < 4:
        return False
    if assigned or quoted:
        # "Password: at least 8 characters" and `password = get_password()` hold none.
        return _mixed(value) or (" " not in value and len(value) <= 64 and not value.endswith(("(", "()")))
    inner = any(a.islower() and b.isupper() for a, b in itertools.pairwise(value))
    return _mixed(value) or inner or (value.isdigit() and len(value) >= 4) or ("-" in value and value.count("-") >= 2)


def looks_random(value: str) -> bool:
    """Whether a value looks machine-made: 12 letters and digits or more, at least 2.8 bits each (Shannon)."""
    if len(value) < 12 or " " in value or not any(c.isdigit() for c in value) or not any(c.isalpha() for c in value):
        return False
    counts = Counter(value)
    bits = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    return bits >= 2.8 and "://" not in value


AWS_SECRET = re.compile(r"(?<![A-Za-z0-9/+=])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])")


def aws_secrets(text: str) -> Iterator[Span]:
    """Amazon's secret access keys, 40 characters of Base64, near an access key's id or the word."""
    for sign in re.finditer(r"AKIA|ASIA|(?i:aws|secret.{0,3}access)", text):
        for match in AWS_SECRET.finditer(text, max(0, sign.start() - 100), sign.end() + 160):
            if looks_random(match.group()) and not re.fullmatch(r"[0-9a-f]{40}", match.group()):
                yield ("API_KEY", *match.span())
