"""No secret that the harness holds leaves it: canaries in every encoding and carrier, whole and in pieces."""

from __future__ import annotations

import base64
import html
import json
import quopri
import random
import string
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus, urlencode

from proofs._proof import Promise, Result, Scale
from quell.audit import Redactor
from quell.config import Secret

SECRETS = {"ci": 40, "full": 400}
ALPHABETS = (
    string.ascii_letters + string.digits,
    string.ascii_letters + string.digits + "-_",
    string.digits + "abcdef",
    string.printable[:94],
    string.ascii_letters + "äöüß€漢字😀\"\\/&<>'+= ",
)
Encode = Callable[[str, random.Random], str]


def _hex_units(text: str, digits: str) -> str:
    raw = text.encode("utf-16-be")
    return "".join(digits % int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2))


def _among(text: str, dice: random.Random) -> bytes:
    """Put a secret between other bytes, so that its base64 starts at any of the three alignments."""
    return dice.randbytes(dice.randrange(7)) + text.encode() + dice.randbytes(dice.randrange(7))


ENCODINGS: dict[str, Encode] = {
    "plain": lambda text, _: text,
    "base64": lambda text, dice: base64.b64encode(_among(text, dice)).decode(),
    "base64 alone": lambda text, _: base64.b64encode(text.encode()).decode(),
    "base64 without padding": lambda text, dice: base64.b64encode(_among(text, dice)).decode().rstrip("="),
    "base64 for URLs": lambda text, dice: base64.urlsafe_b64encode(_among(text, dice)).decode(),
    "base64 of user and secret": lambda text, _: base64.b64encode(f"user:{text}".encode()).decode(),
    "base64 in a URL": lambda text, dice: quote(base64.b64encode(_among(text, dice)).decode(), safe=""),
    "hex": lambda text, dice: _among(text, dice).hex(),
    "hex in capitals": lambda text, dice: _among(text, dice).hex().upper(),
    "url": lambda text, _: quote(text, safe=""),
    "url path": lambda text, _: quote(text),
    "url query": lambda text, _: quote_plus(text),
    "url form": lambda text, _: urlencode({"q": text}),
    "url in small letters": lambda text, _: _small_percent(quote(text, safe="")),
    "url of every byte": lambda text, _: "".join(f"%{byte:02X}" for byte in text.encode()),
    "url of every byte, small": lambda text, _: "".join(f"%{byte:02x}" for byte in text.encode()),
    "json": lambda text, _: json.dumps(text),
    "json with letters": lambda text, _: json.dumps(text, ensure_ascii=False),
    "json in json": lambda text, _: json.dumps(json.dumps(text)),
    "json with escaped slashes": lambda text, _: json.dumps(text).replace("/", "\\/"),
    "json of every unit": lambda text, _: _hex_units(text, "\\u%04x"),
    "json of every unit, capitals": lambda text, _: _hex_units(text, "\\u%04X"),
    "html": lambda text, _: html.escape(text),
    "html without quotes": lambda text, _: html.escape(text, quote=False),
    "html decimal": lambda text, _: "".join(f"&#{ord(letter)};" for letter in text),
    "html hex": lambda text, _: "".join(f"&#x{ord(letter):x};" for letter in text),
}


def _small_percent(text: str) -> str:
    head, *rest = text.split("%")
    return head + "".join(f"%{part[:2].lower()}{part[2:]}" for part in rest)


def _noise(dice: random.Random, *, length: int) -> str:
    words = ("error", "GET /api/items", "took 12 ms", "Zeichen äöü", "{", "}", '"level":"info"', "%20", "\\n", "日本")
    return " ".join(dice.choice(words) for _ in range(length))


def _in_text(form: str, redactor: Redactor, dice: random.Random) -> str:
    return redactor.text(f"{_noise(dice, length=3)} {form} {_noise(dice, length=3)}")


def _in_large_text(form: str, redactor: Redactor, dice: random.Random) -> str:
    """Large enough for the wide search, over the border of one of its pieces too."""
    before = "." * dice.choice((300, 17_000, 65_536 - len(form) // 2))
    return redactor.text(before + form + _noise(dice, length=20))


def _in_bytes(form: str, redactor: Redactor, dice: random.Random) -> str:
    data = dice.randbytes(20).replace(b"[", b"(") + b" " + form.encode() + b" " + dice.randbytes(20)
    return redactor.raw(data).decode("utf-8", "replace")


def _in_value(form: str, redactor: Redactor, dice: random.Random) -> str:
    value = {"a": [1, None, {"b": f"x {form} y"}], form: True, "n": dice.randrange(9)}
    return str(redactor.value(value))


def _in_url(form: str, redactor: Redactor, _: random.Random) -> str:
    return redactor.text(f"https://example.org/p/{form}?a={form}#{form}")


def _in_pieces(form: str, redactor: Redactor, dice: random.Random) -> str:
    text = f"{_noise(dice, length=2)} {form} {_noise(dice, length=2)}"
    stream = redactor.stream()
    out, at = [], 0
    while at < len(text):
        step = dice.choice((1, 1, 2, 3, 7, 50))
        out.append(stream.feed(text[at : at + step]))
        at += step
    return "".join((*out, stream.close()))


CARRIERS = {
    "text": _in_text,
    "large text": _in_large_text,
    "bytes": _in_bytes,
    "JSON value": _in_value,
    "URL": _in_url,
    "pieces": _in_pieces,
}


def leaks(out: str, secret: str, form: str) -> bool:
    """Tell whether a secret can still be read, by undoing what was done to it rather than by looking for forms."""
    core = form if len(form) < 12 else form[4:-4]
    seen = {out, html.unescape(out)}
    seen |= {_unquoted(text) for text in (out, out.replace("+", " "))}
    seen |= {_unescaped(text) for text in (out, _unescaped(out))}
    return any(secret in text for text in seen) or core in out or secret.encode().hex() in out.lower()


def _unquoted(text: str) -> str:
    raw = quopri.decodestring(text.replace("=", "=3D").replace("%", "=").encode("utf-8", "replace"))
    return raw.decode("utf-8", "replace")


def _unescaped(text: str) -> str:
    try:
        return str(json.loads('"' + text.strip('"') + '"', strict=False))
    except ValueError:
        return text


def secrets(count: int, dice: random.Random) -> Iterator[str]:
    for number in range(count):
        alphabet = ALPHABETS[number % len(ALPHABETS)]
        length = dice.choice((6, 8, 16, 20, 32, 40, 64))
        made = "".join(dice.choice(alphabet) for _ in range(length)).strip()
        yield made if len(made) >= 6 else made + "x8Kq2z"


def try_redaction(scale: Scale, seed: int, *, redactor_class: type[Redactor] = Redactor, count: int = 0) -> Result:
    """Hide every canary in every encoding and carrier, and look for it in what comes out."""
    dice = random.Random(seed)
    held = list(secrets(count or SECRETS[scale], dice))
    redactor = redactor_class({f"canary-{number}": Secret(secret) for number, secret in enumerate(held)}, rules="off")
    ruled = redactor_class({f"canary-{number}": Secret(secret) for number, secret in enumerate(held)})
    cases = 0
    failures = []
    for secret in held:
        for encoding, encode in ENCODINGS.items():
            form = encode(secret, dice)
            for carrier, carry in CARRIERS.items():
                cases += 1
                out = carry(form, ruled if cases % 2 else redactor, dice)
                if leaks(out, secret, form):
                    failures.append(f"{encoding} in {carrier}, a secret of {len(secret)} letters, seed {seed}")
                elif carrier != "pieces" and redactor.text(out) != out:
                    failures.append(f"not idempotent: {encoding} in {carrier}, seed {seed}")
    return Result(
        cases=cases,
        violations=len(failures),
        is_exhaustive=False,
        note=f"{len(held)} random secrets x {len(ENCODINGS)} encodings x {len(CARRIERS)} carriers",
        failures=tuple(failures[:10]),
    )


PROMISES = (
    Promise(
        name="secrets-redacted",
        promise="A secret that the harness holds leaves it in no encoding, whole or in pieces.",
        try_it=try_redaction,
    ),
)
