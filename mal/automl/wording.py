"""What the words of a request say about AutoML.

The request is cut into clauses, and every name of the thing (AutoML, HPO, hyper-parameter tuning)
becomes the one word `automl`, so that a short table of phrases is enough. A negation before a
phrase turns it round ("don't disable AutoML"). The last phrase of the request wins.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_NEGATION_REACH_WORDS = 6

_HYPER = r"hyper ?param(?:eter)?s?"
_ACTIVITY = r"(?:search|tuning|optimi[sz]ation|sweep)(?:e?s)?"
_SUBJECT = re.compile(
    rf"\b(?:auto ?ml|hpos?|{_HYPER}(?: {_ACTIVITY})?|hyper ?tuning"
    rf"|(?:parameter|learning rate|lr|grid|random|bayesian) {_ACTIVITY}|tuning)\b"
)
_OTHER_TUNING = re.compile(r"\b(?:fine|prompt|instruction) ?tun\w+")
_IDIOMS = re.compile(r"\bno (?:problems?|doubt|worries)\b|\bnot only\b")
_FILLERS = re.compile(
    r"\b(?:the|an?|any|all|of|this|my|our|its|more|further|some|please|kind|automatic|automated"
    r"|expensive|full|extra)\b"
)
_DESCRIBED = re.compile(r"\b(?:the|that|those|our|last|previous) (?:no|non) automl\b")

_CLAUSE_END = re.compile(
    r"[.,;!?()]+|\n\s*[\n*-]|\b(?:but|because|since|then|and|so|however|though|although|while)\b"
)
# Clauses that ask, suppose or tell of the past wish for nothing.
_NO_WISH = re.compile(
    r"^(?:why|what|how|when|which|who|is|are|does|did|if|unless|whether)\b|\b(?:was|were|had|did)\b"
)

_SETTING = (
    r"(?:(?:turn|turning|switch|keep|leave|set|with|have|use|run|want) )?automl "
    r"(?P<{0}>(?:(?:policy|to|is|be|should|must|set|turned|switched|stays?|back|not) )*)"
)
_TARGET = r"(?:learning rates?|lr|weight decay|batch size|settings|configuration|values|automl)"
_OFF = (
    _SETTING.format("before_off") + r"(?:off|disabled|false|unnecessary)",
    r"(?:turn|turning|switch) off automl",
    r"(?:disabl|skip|avoid|omit|bypass|drop|stop|deactivat|exclud)\w* automl",
    r"(?:no|not|non|never|without|instead|rather than) automl",
    r"no (?:budget|money|need|reason|time)(?: left)? for automl",
    r"automl free",
    r"(?:not|never) tune(?: anything)?$",
    r"plain (?:train|training|run)",
    r"(?:just|only|simply) train(?:ing)?",
    r"train(?:ing)? plainly",
)
_ON = (
    _SETTING.format("before_on") + r"(?:on|enabled|true|needed|necessary|required|wanted)",
    r"(?:turn|turning|switch)(?: back)? on automl",
    r"(?:enabl|activat|us|apply|perform|launch|optimi[sz]|tun)(?:e|ing)? automl",
    r"(?:run|running|do|doing|try|trying|start|want|need|with|via|search|sweep) automl",
    rf"tune (?:{_TARGET}|parameters)",
    rf"(?:search|look|find|hunt)(?: for)? (?:best|better|optimal) (?:\w+ ){{0,2}}?{_TARGET}",
)
_PHRASE = re.compile(rf"\b(?:(?P<off>{'|'.join(_OFF)})|(?P<on>{'|'.join(_ON)}))(?!\w)")
_NEGATIONS = frozenset({"not", "no", "never", "without", "instead", "rather"})


def wish_of(request: str) -> bool | None:
    """Return whether a request wants AutoML, or None where it does not say."""
    wishes = [wish for clause in _clauses(request) for wish in _wishes(clause)]
    return wishes[-1] if wishes else None


def _clauses(request: str) -> Iterator[str]:
    """Yield the clauses that may wish, as plain words with one name for AutoML."""
    text = unicodedata.normalize("NFKC", request).casefold()
    text = re.sub(r"[\u2018\u2019`]", "'", text)
    text = re.sub(r"\b(?:do|wo|ca|should|is|need|must|would)n't\b|\bdont\b", " not ", text)
    text = text.replace("cannot", "can not")
    for clause in _CLAUSE_END.split(text):
        words = " ".join(re.findall(r"\w+", clause.replace("_", " ")))
        if _NO_WISH.search(words):
            continue
        words = _SUBJECT.sub("automl", _IDIOMS.sub(" ", _OTHER_TUNING.sub(" ", words)))
        words = _FILLERS.sub(" ", _DESCRIBED.sub(" ", words))
        yield re.sub(r"\bautoml(?: automl)+\b", "automl", " ".join(words.split()))


def _wishes(clause: str) -> Iterator[bool]:
    """Yield what each phrase of a clause wishes, negations counted."""
    end = 0
    for found in _PHRASE.finditer(clause):
        before = clause[end : found.start()].split()[-_NEGATION_REACH_WORDS:]
        inside = (found["before_off"] or found["before_on"] or "").split()
        is_negated = sum(word in _NEGATIONS for word in [*before, *inside]) % 2 == 1
        yield (found["on"] is not None) != is_negated
        end = found.end()
