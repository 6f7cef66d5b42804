"""Parses whether the text of a request asks for AutoML.

Every name (AutoML, HPO, hyper-parameter tuning) is replaced by `automl`, and every value of its
switch (`automl_enabled: false`, "use AutoML? no") by "automl on" or "automl off", so that a short
table of phrases is enough. A negation before a phrase inverts it ("don't disable AutoML"). The last
statement with an intent counts. If that statement also declines AutoML, it declines: a search that
was not requested is expensive. Words for a normal training ("train normally") count only where
their statement contains no other intent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_NEGATION_REACH_WORDS = 6
_NEGATIONS = frozenset({"not", "no", "never", "without"})

# From a text to plain words, in this order.
_PATH_OR_URI = re.compile(
    r"://|(?:^|[=:\"'(])[~.]{0,2}/|/.*/"
    r"|\.(?:ya?ml|json|pth|ckpt|safetensors|onnx|py|sh|txt|csv|zip|gz)\W*$"
)
_STATEMENT_END = r"[.;!]+|\n\s*[\n*-]"
_HYPER = r"hyper ?param(?:eter)?s?"
_ACTIVITY = r"(?:search|tuning|optimi[sz]ation|sweep)(?:e?s)?"
_SUBJECT = (
    rf"\b(?:auto ?ml|hpos?|{_HYPER}(?: {_ACTIVITY})?|hyper ?tuning"
    rf"|(?:parameter|learning rate|lr|grid|random|bayesian) {_ACTIVITY}|tuning)\b"
)
_FILLERS = (
    "the|an?|any|all|of|this|my|our|its|more|further|some|please|kind|automatic|automated"
    "|expensive|full|extra|old|normal|simple"
)
_VERB = r"(?:\b(?:enabled?|run|use|do|need|want|try|start) )?"
_SWITCH = r"\bautoml(?: (?:enabled?|on|policy|switch))?"
_OFF_VALUE = r"(?:off|false|no|none|never|0|disabled?)\b"
_ON_VALUE = r"(?:on|true|yes|1|enabled?)\b"
_REWRITES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"[\u2018\u2019`]", "'"),
        (r"\b(do|does|did|is|was|were|should|would|could|must|need|wo|ca|ha[ds])n'?t\b", r"\1 not"),
        (r"\bcannot\b", "can not"),
        (_STATEMENT_END, " ; "),
        (r"(?<=\w)[_-]+(?=\w)|[^\w;,:=?()]+", " "),
        (r"\b(?:instead of|rather than)\b", "without"),
        (r"\b(?:fine|prompt|instruction) ?tun\w+", " "),
        (r"\bno (?:problems?|doubt|worries)\b|\bnot only\b", " "),
        (_SUBJECT, "automl"),
        (r"\b(?:the|that|those|our|last|previous) (?:no|non) automl\b", " "),
        (rf"\b(?:{_FILLERS})\b", " "),
        (r" +", " "),
        (r"\bautoml(?: automl)+\b|\bsweeps?\b(?! automl)", "automl"),
        (rf"{_SWITCH} ?\? ?{_OFF_VALUE}", ", automl off"),
        (rf"{_SWITCH} ?\? ?{_ON_VALUE}", ", automl on"),
        (rf"{_VERB}{_SWITCH} ?(?:[:=]+|to|is) ?{_OFF_VALUE}", "automl off"),
        (rf"{_VERB}{_SWITCH} ?(?:[:=]+|to|is) ?{_ON_VALUE}", "automl on"),
        (r"[:=]+", " "),
    )
)
_CLAUSE_END = re.compile(
    r"[,?()]|\b(?:but|because|since|then|and|so|however|though|although|while)\b"
)
# Questions, conditions and clauses about the past express no intent.
_NO_INTENT = re.compile(
    r"^(?:why|what|how|when|which|who|is|are|does|did|if|unless|whether)\b|\b(?:was|were|had|did)\b"
)

_SETTING = (
    r"(?:(?:turn|turning|switch|keep|leave|set|with|have|use|run|want) )?automl "
    r"(?P<{0}>(?:(?:policy|to|is|be|should|must|does|set|turned|switched|stays?|back|not) )*)"
)
_TARGET = r"(?:learning rates?|lr|weight decay|batch size|settings|configuration|values|automl)"
_OFF = (
    _SETTING.format("before_off") + r"(?:off|disabled|false|unnecessary)",
    r"(?:turn|turning|switch) off automl",
    r"(?:disabl|skip|avoid|omit|bypass|drop|stop|deactivat|exclud)\w* automl",
    r"(?:no|not|non|never|without) automl",
    r"no (?:budget|money|need|reason|time)(?: left)? for automl",
    r"automl free",
    r"automl (?:\w+ )?(?:not|never) (?:be )?(?:run|used?|start|started|happen)",
    r"(?:no|without|skip|skipping|avoid) search(?:ing)?",
    r"(?:not|never|no need to) tune(?: anything)?$",
)
_PLAIN = (
    r"plain (?:train|training|run)",
    r"(?:just|only|simply) train(?:ing)?",
    r"train(?:ing)? plainly",
)
# Words with other meanings too ("the standard training set", "better than standard training",
# "one run only per trial"): they count only without a comparison, at the end of a clause.
_COMPARISONS = (
    "than", "over", "beat", "beats", "against", "beyond", "from", "to", "as", "like", "around",
    "versus", "vs", "in",
)  # fmt: skip
_NOT_COMPARED = "".join(rf"(?<!\b{word} )" for word in _COMPARISONS)
_ENDS = (
    r"(?= *$| (?:please|only|today|now|this time|(?:on|for|with)(?! (?:each|every|trials?)\b))\b)"
)
_VAGUE = (
    r"(?:standard|vanilla|regular|ordinary) train(?:ing)?(?: run)?",
    r"vanilla run",
    r"train(?: (?:it|this|model|network))? normally",
    r"(?:single|one) (?:training )?run only",
    r"(?:just|only) (?:single|one) (?:training )?run",
)
_ON = (
    _SETTING.format("before_on") + r"(?:on|enabled|true|needed|necessary|required|wanted)",
    r"(?:turn|turning|switch)(?: back)? on automl",
    r"(?:enabl|activat|us|apply|perform|launch|optimi[sz]|tun)(?:e|ing)? automl",
    r"(?:run|running|do|doing|try|trying|start|want|need|with|via|search|sweep) automl",
    rf"tune (?:{_TARGET}|parameters)",
    rf"(?:search|look|find|hunt)(?: for)? (?:best|better|optimal) (?:\w+ ){{0,2}}?{_TARGET}",
)
_PHRASE = re.compile(
    rf"\b(?:(?P<off>{'|'.join(_OFF)})|(?P<plain>{'|'.join(_PLAIN)})|(?P<on>{'|'.join(_ON)}))(?!\w)"
)
# In these statements the normal training is one part of a search, or follows one.
_MORE_THAN_PLAIN = re.compile(
    r"\b(?:automl|search\w*|trials?|grid|explor\w+|tun(?:e|ing)|compar\w+|vary"
    r"|then|after|afterwards|finally)\b"
)
_VAGUE_PHRASE = re.compile(rf"{_NOT_COMPARED}\b(?:{'|'.join(_VAGUE)}){_ENDS}")


def parse_automl_intent(request: str) -> bool | None:
    """Return whether a request asks for AutoML; None where it says neither."""
    for statement in reversed(_plain_words(request).split(";")):
        clauses = list(_clauses(statement))
        intents = [intent for clause in clauses for intent in _intents(clause)]
        if intents:
            return intents[-1][0] and (False, True) not in intents
        if not _MORE_THAN_PLAIN.search(statement) and any(map(_is_vaguely_plain, clauses)):
            return False
    return None


def _plain_words(request: str) -> str:
    """Return the words without paths, with one name for AutoML and `;` between statements."""
    text = unicodedata.normalize("NFKC", request).casefold()
    text = re.sub(r"\S+", lambda word: _punctuation_after_path(word[0]), text)
    for pattern, words in _REWRITES:
        text = pattern.sub(words, text)
    return text


def _punctuation_after_path(word: str) -> str:
    """Return only the trailing punctuation of a path or URI; other words unchanged."""
    return word[len(word.rstrip(".,;!?)")) :] if _PATH_OR_URI.search(word) else word


def _clauses(statement: str) -> Iterator[str]:
    """Yield the clauses that may express an intent."""
    for clause in _CLAUSE_END.split(statement):
        words = " ".join(clause.split())
        if not _NO_INTENT.search(words):
            yield words


def _is_vaguely_plain(clause: str) -> bool:
    """Whether a clause asks for a normal training and is not negated."""
    found = _VAGUE_PHRASE.search(clause)
    return found is not None and _NEGATIONS.isdisjoint(clause[: found.start()].split())


def _intents(clause: str) -> Iterator[tuple[bool, bool]]:
    """Yield, for each phrase, whether it asks for AutoML and whether it names it."""
    end = 0
    for found in _PHRASE.finditer(clause):
        before = clause[end : found.start()].split()[-_NEGATION_REACH_WORDS:]
        inside = (found["before_off"] or found["before_on"] or "").split()
        is_negated = sum(word in _NEGATIONS for word in [*before, *inside]) % 2 == 1
        yield (found["on"] is not None) != is_negated, found["plain"] is None
        end = found.end()
